"""The initramfs of a box: with `resnap` it replaces the snapshot, whatever its state. It boots no other volume."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox
from rig import BEGUN, Boot, Rig

from kimbox import run
from kimbox.spec.layout import plan
from kimbox.spec.load import load_box

pytestmark = pytest.mark.guest

NAME = "rigged"

#: Number of power failures, spread over the duration of the premount phase.
CUTS = 20

MOUNTED = "kimbox-root: "


@pytest.fixture(scope="module")
def rig(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A disk of a small box, with the box's kernel and initramfs."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp("rigged"))
    kimbox.spec(NAME)
    return Rig.of(kimbox)


def begin_with_root(rig: Rig, words: str) -> Boot:
    """Boots with these words until the initramfs begins with the root. Power cuts are counted from this moment."""
    boot = rig.start_at_root(words)
    boot.go_on()
    boot.until_printed(BEGUN)
    return boot


@pytest.mark.parametrize("cuts", [5, pytest.param(CUTS, marks=pytest.mark.soak)])
def test_power_cuts_in_the_premount_phase(rig: Rig, cuts: int) -> None:
    """If the power fails during the replacement of the snapshot, the next boot with `resnap` has a new root."""
    assert rig.boot() == "pristine"
    assert rig.boot() == "changed"
    boot = begin_with_root(rig, "resnap")
    begun = time.monotonic()
    boot.until_printed(MOUNTED)
    phase_s = time.monotonic() - begun
    boot.ended()
    for cut in range(cuts):
        boot = begin_with_root(rig, "resnap")
        threading.Event().wait(phase_s * cut / (cuts - 1))
        boot.kill()
        assert rig.boot("resnap") == "pristine", f"after {cut + 1} cuts"
    assert rig.boot("resnap") == "pristine"


def cut(rig: Rig, words: str, start: str, end: str, cuts: int) -> Iterator[int]:
    """Boots with these words, and cuts the power at points between two texts on the console. Yields after each cut.

    From `BEGUN` on, each boot has the disk as the last one left it; from another text on, the disk of that point.
    """
    point = f"{len(words)}-{cuts}"
    if start != BEGUN:
        boot = rig.start_at_root(words)
        boot.go_on()
        boot.until_printed(start)
        boot.save(point)

    def go_on() -> Boot:
        if start == BEGUN:
            return begin_with_root(rig, words)
        boot = rig.start(at=point)
        boot.go_on()
        return boot

    boot = go_on()
    begun = time.monotonic()
    boot.until_printed(end)
    phase_s = time.monotonic() - begun
    boot.ended()
    for number in range(cuts):
        boot = go_on()
        threading.Event().wait(phase_s * (number + 0.5) / cuts)
        boot.kill()
        yield number


@pytest.mark.parametrize("cuts", [2, pytest.param(CUTS, marks=pytest.mark.soak)])
def test_power_cuts_while_a_root_is_kept_and_put_back(rig: Rig, cuts: int) -> None:
    """After each cut, a boot with `resnap` has the whole kept root or an empty snapshot."""
    for number in cut(rig, "resnap look=keep", "look: keeping", "look: saved", cuts):
        assert rig.boot("resnap") in ("pristine", "kept"), f"after {number + 1} cuts"
    assert rig.boot("resnap look=keep") in ("pristine", "kept")
    assert rig.boot("resnap") == "kept"
    for number in cut(rig, "resnap", BEGUN, MOUNTED, cuts):
        assert rig.boot() in ("changed", "pristine", "kept"), f"after {number + 1} cuts"
        assert rig.boot("resnap") == "kept", f"after {number + 1} cuts"
    rig.boot("look=drop")
    assert rig.boot("resnap") == "pristine"


def test_a_full_snapshot_is_replaced_and_not_booted(rig: Rig, tmp_path: Path) -> None:
    """The kernel marks a full snapshot as invalid. Without `resnap`, the box reports it and boots nothing."""
    offset = plan(load_box(rig.folder / "kimbox.yaml").disk).snapshot.place.offset_bytes
    assert rig.boot("resnap") == "pristine"
    run.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0 {offset + 4} 4", str(rig.disk)])  # struct disk_header: valid
    assert rig.boot() == ""
    assert reported_failure(rig) == "the snapshot vagrant-pipeline/root_snap was full, and its content is lost"
    assert rig.boot("resnap") == "pristine"
    assert rig.boot() == "changed"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("remove", "there is no snapshot vagrant-pipeline/root_snap"),
        ("plain", "vagrant-pipeline/root_snap is no snapshot"),
    ],
)
def test_a_missing_or_incomplete_snapshot_is_replaced_and_not_booted(rig: Rig, damage: str, reason: str) -> None:
    """The snapshot is removed, or incomplete after a power failure during lvcreate."""
    rig.boot(f"look={damage}", root="root")
    assert rig.boot() == ""
    assert reported_failure(rig) == reason
    assert rig.boot("resnap") == "pristine"


def test_changes_of_the_root_itself_are_in_every_later_boot(rig: Rig) -> None:
    """A change of the root itself stays. An existing snapshot still shows the old root, a new snapshot the new root."""
    assert rig.boot("resnap") == "pristine"
    assert rig.boot("look=nothing", root="root") == "pristine"
    assert rig.boot("resnap") == "changed"


def test_a_missing_volume_group_is_named(rig: Rig) -> None:
    """No disk has the volume group: the box reports it after the time of rootdelay=, and boots nothing."""
    assert rig.boot(group="elsewhere") == ""
    assert reported_failure(rig) == "cannot activate the volume group elsewhere"


def reported_failure(rig: Rig) -> str:
    """Returns the reason of the only event of a failed boot, up to its first colon. The console shows it too."""
    (event,) = rig.events
    assert (event.name, event.text("kind"), event.text("name")) == ("failed", "boot", "root_snap")
    reason = event.text("reason").split(":")[0]
    assert f"kimbox: FAILED: {reason}" in rig.console
    return reason
