"""A snapshot that is smaller than its origin, in a real guest: it fills, is extended, becomes invalid, is replaced."""

from __future__ import annotations

import pytest
from conftest import Kimbox, state_of, until

pytestmark = pytest.mark.guest

NAME = "filling"

#: The volume group has 64 MiB free, so that the snapshot can grow from 128 to 192 MiB.
SPEC = "boot: resnap\ndisk: {size: 3268MiB, volumes: {root_snap: 128MiB}}\n"

#: Fills the snapshot to 86 % of its size after the last extension.
FILL = """
i=0
while :; do
    set -- $(sudo dmsetup status vagrant--pipeline-root_snap)
    if [ $((${4%/*} * 100 / ${4#*/})) -ge 86 ]; then
        if [ "$had" = "$4" ] && [ $(sudo vgs --noheadings -o vg_free_count vagrant-pipeline) -eq 0 ]; then
            break
        fi
        had=$4
        sleep 3
        continue
    fi
    i=$((i + 1))
    sudo dd if=/dev/zero of=/var/fill-$i bs=1M count=4 conv=fsync 2>/dev/null
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


def test_a_snapshot_that_fills_is_reported_and_extended(kimbox: Kimbox) -> None:
    """The box reports percentages while it fills. At 100 % it reports the failure and reboots with a new root."""
    kimbox.spec(NAME, SPEC)
    kimbox("up")
    first = kimbox.machine(NAME).boot_events()[-1].boot
    assert events(kimbox, "snapshot") == []
    size_sectors = "sudo dmsetup table vagrant--pipeline-root_snap-cow | cut -d' ' -f2"
    before = int(kimbox.sh(NAME, size_sectors))
    kimbox.sh(NAME, FILL)
    until("the level at which it cannot be extended", lambda: "no" in extended(kimbox))
    reported = level(kimbox)
    assert 85 <= reported < 100
    assert kimbox.json("status")["snapshot_percent"] >= 70
    assert f'"percent":{reported}' in kimbox("logs", "--events").stdout.replace(" ", "")
    assert "yes" in extended(kimbox)
    assert int(kimbox.sh(NAME, size_sectors)) == before + (64 << 20) // 512

    kimbox("exec", "--", "sudo", "dd", "if=/dev/zero", "of=/var/last", "bs=1M", "count=200", check=False)
    until("the next boot", lambda: kimbox.machine(NAME).boot_events()[-1].boot != first)
    until("the box to be ready again", lambda: state_of(NAME) == "ready")
    status = kimbox.json("status")
    assert "was full" in status["died"]
    assert (status["boot"], status["snapshot_percent"]) == ("resnap", None)
    assert kimbox.sh(NAME, "ls /var/fill-1 2>/dev/null || echo gone") == "gone\n"
    assert "kimbox: the snapshot vagrant-pipeline/root_snap was full" in kimbox("logs", "--serial").stdout

    kimbox("reload", "--boot", "keep")
    assert kimbox.json("status")["died"] is None
    kimbox("exec", "--", "sudo", "dd", "if=/dev/zero", "of=/var/last", "bs=1M", "count=300", check=False)
    # test_boot_modes.py tests the message of `up` after this.
    until("the box to power itself off", lambda: state_of(NAME) in ("crashed", "halted"))
    kimbox("destroy", "-y")
