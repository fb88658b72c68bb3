"""A snapshot that is smaller than its origin, in a real guest: it fills, is extended, becomes invalid, is replaced.

`script/test soak` runs it, because filling takes minutes. In every run, test_boot_modes.py and test_resnap.py boot with
a full snapshot.
"""

from __future__ import annotations

import pytest
from conftest import Kimbox, state_of, until

pytestmark = [pytest.mark.guest, pytest.mark.soak]

NAME = "filling"

#: The volume group has 64 MiB free, so that the snapshot can grow from 64 to 128 MiB.
SPEC = "boot: resnap\ndisk: {size: 3204MiB, volumes: {root_snap: 64MiB}}\n"

#: Fills the snapshot to 86 % of its size after the last extension. It is one program of root, because under emulation
#: each sudo takes longer than a write. The box looks every second, and again after lvextend. If it saw the extended
#: snapshot only when it was above the same level again, 1 MiB at a time leads to the next level.
FILL = """
is_full() {
    set -- $(dmsetup status vagrant--pipeline-root_snap)
    [ $((${4%/*} * 100 / ${4#*/})) -ge 86 ]
}
i=0
while :; do
    mib=4
    if is_full; then
        looks=0
        while is_full && [ "$looks" -lt 10 ]; do
            looks=$((looks + 1))
            sleep 0.3
        done
        while pgrep -x lvextend >/dev/null; do
            sleep 0.2
        done
        if is_full; then
            mib=1
            if [ $(vgs --noheadings -o vg_free_count vagrant-pipeline) -eq 0 ]; then
                break
            fi
        fi
    fi
    i=$((i + 1))
    dd if=/dev/zero of=/var/fill-$i bs=1M count=$mib conv=fsync 2>/dev/null
done
"""


def events(kimbox: Kimbox, name: str) -> list[dict[str, object]]:
    """Returns the fields of the events with a name that the box has sent in the current boot."""
    return [event.fields for event in kimbox.machine(NAME).boot_events() if event.name == name]


def level(kimbox: Kimbox) -> int:
    """Returns the highest percentage that the box has reported in this boot, or 0."""
    return max((int(str(fields["percent"])) for fields in events(kimbox, "snapshot")), default=0)


def extended(kimbox: Kimbox) -> list[object]:
    """Returns for each percentage that the box has reported in this boot: was the snapshot extended, yes or no."""
    return [fields["extended"] for fields in events(kimbox, "snapshot")]


def write_more(kimbox: Kimbox) -> bool:
    """Writes 1 MiB, so that the box reaches its next level if it has passed the last one unseen. Returns false."""
    kimbox.sh(NAME, "sudo dd if=/dev/zero of=/var/more bs=1M count=1 oflag=append conv=notrunc,fsync 2>/dev/null")
    return False


def test_a_snapshot_that_fills_is_reported_and_extended(kimbox: Kimbox) -> None:
    """The box reports percentages while it fills. At 100 % it reports the failure and reboots with a new root."""
    kimbox.spec(NAME, SPEC)
    kimbox("up")
    first = kimbox.machine(NAME).boot_events()[-1].boot
    assert events(kimbox, "snapshot") == []
    size_sectors = "sudo dmsetup table vagrant--pipeline-root_snap-cow | cut -d' ' -f2"
    before = int(kimbox.sh(NAME, size_sectors))
    kimbox("exec", NAME, "--", "sudo", "sh", "-s", input=FILL)
    until("the level at which it cannot be extended", lambda: "no" in extended(kimbox) or write_more(kimbox), every_s=5)
    reported = level(kimbox)
    assert 85 <= reported < 100
    assert kimbox.json("status")["snapshot_percent"] >= 70
    assert f'"percent":{reported}' in kimbox("logs", "--events").stdout.replace(" ", "")
    assert "yes" in extended(kimbox)
    assert int(kimbox.sh(NAME, size_sectors)) == before + (64 << 20) // 512

    kimbox("exec", "--", "sudo", "dd", "if=/dev/zero", "of=/var/last", "bs=1M", "count=100", check=False)
    until("the next boot", lambda: kimbox.machine(NAME).boot_events()[-1].boot != first)
    until("the box to be ready again", lambda: state_of(NAME) == "ready")
    status = kimbox.json("status")
    assert "was full" in status["died"]
    assert (status["boot"], status["snapshot_percent"]) == ("resnap", None)
    assert kimbox.sh(NAME, "ls /var/fill-1 2>/dev/null || echo gone") == "gone\n"
    assert "kimbox: the snapshot vagrant-pipeline/root_snap was full" in kimbox("logs", "--serial").stdout

    kimbox("reload", "--boot", "keep")
    assert kimbox.json("status")["died"] is None
    kimbox("exec", "--", "sudo", "dd", "if=/dev/zero", "of=/var/last", "bs=1M", "count=150", check=False)
    # test_boot_modes.py tests the message of `up` after this.
    until("the box to power itself off", lambda: state_of(NAME) in ("crashed", "halted"))
    kimbox("destroy", "-y")
