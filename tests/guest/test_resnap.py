"""The initramfs of a box: a snapshot made anew at the word, whatever became of it; nothing booted in its stead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox
from rig import Rig

from kimbox import run
from kimbox.spec.layout import plan
from kimbox.spec.load import load_box

pytestmark = pytest.mark.guest

NAME = "rigged"

#: Power cuts over the whole of the premount phase.
CUTS = 20

BEGUN = "Running /scripts/local-premount"
MOUNTED = "kimbox-root: "


@pytest.fixture(scope="module")
def rig(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A small box's disk, and its own kernel and initramfs to boot it by."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp("rigged"))
    kimbox.spec(NAME)
    kimbox("up")
    yield Rig.of(kimbox, NAME, kimbox.folder)
    kimbox("destroy", "-y")


def test_power_cuts_at_twenty_points_of_the_premount_phase(rig: Rig) -> None:
    """Wherever the power fails while the snapshot is made anew, the next boot with the word finds it pristine."""
    assert rig.boot() == "pristine"
    assert rig.boot() == "changed"
    boot = rig.start("resnap")
    boot.until_said(BEGUN)
    boot.save("begun")
    boot = rig.start(at="begun")
    boot.go_on()
    begun = time.monotonic()
    boot.until_said(MOUNTED)
    phase_s = time.monotonic() - begun
    boot.ended()
    for cut in range(CUTS):
        boot = rig.start(at="begun")
        boot.go_on()
        threading.Event().wait(phase_s * cut / (CUTS - 1))
        boot.kill()
        assert rig.boot("resnap") == "pristine", f"after {cut + 1} cuts"
    assert rig.boot("resnap") == "pristine"


def test_a_full_snapshot_is_not_booted_but_made_anew(rig: Rig, tmp_path: Path) -> None:
    """The kernel marks a full snapshot invalid in its header. Without the word the box says so and boots nothing."""
    offset = plan(load_box(rig.folder / "kimbox.yaml").disk).snapshot.place.offset_bytes
    assert rig.boot("resnap") == "pristine"
    run.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0 {offset + 4} 4", str(rig.disk)])  # struct disk_header: valid
    assert rig.boot() == ""
    assert told(rig) == "the snapshot vagrant-pipeline/root_snap was full, and its content is lost"
    assert rig.boot("resnap") == "pristine"
    assert rig.boot() == "changed"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("remove", "there is no snapshot vagrant-pipeline/root_snap"),
        ("plain", "vagrant-pipeline/root_snap is no snapshot"),
    ],
)
def test_a_snapshot_that_is_none_is_not_booted_but_made(rig: Rig, harm: str, reason: str) -> None:
    """Removed, or left half-made by a power cut during lvcreate."""
    rig.boot(f"look={harm}", root="root")
    assert rig.boot() == ""
    assert told(rig) == reason
    assert rig.boot("resnap") == "pristine"


def test_changes_of_the_root_itself_are_in_every_later_boot(rig: Rig) -> None:
    """What a maintainer changes stays: a keep boot's snapshot still shows the old root, a new one the new."""
    assert rig.boot("resnap") == "pristine"
    assert rig.boot("look=nothing", root="root") == "pristine"
    assert rig.boot("resnap") == "changed"


def test_a_missing_volume_group_is_named(rig: Rig) -> None:
    """No disk holds it: said after the time that rootdelay= allows, and nothing is booted."""
    assert rig.boot(group="elsewhere") == ""
    assert told(rig) == "cannot activate the volume group elsewhere"


def told(rig: Rig) -> str:
    """The reason of the one event of a boot that failed, up to its first colon; the console has it too."""
    (event,) = rig.events
    assert (event.name, event.text("kind"), event.text("name")) == ("failed", "boot", "root_snap")
    reason = event.text("reason").split(":")[0]
    assert f"kimbox: FAILED: {reason}" in rig.console
    return reason
