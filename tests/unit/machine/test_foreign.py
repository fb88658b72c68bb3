"""Images that kimbox did not build: how they are recognized, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import madedisk
import makebox
import pytest
from makemachine import RECORD
from refused import refused

from kimbox import run
from kimbox.errors import StateError
from kimbox.machine import foreign
from kimbox.spec.model import BootMode, Box, BoxImage, Mount, Network, RemoteImage, Scratch, User, Variable

REMOTE = RemoteImage("/nowhere/cloud.qcow2", f"sha256:{'a' * 64}")


def of(folder: Path, **changes: Any) -> Box:
    """A box of an image at a location."""
    return attrs.evolve(makebox.make_box(folder), image=REMOTE, **changes)


def test_an_image_is_recognized_by_its_disk(tmp_path: Path) -> None:
    """Only one that kimbox built has an environment of GRUB where kimbox sets it. Each machine is another instance."""
    own, other = tmp_path / "own.raw", tmp_path / "other.raw"
    madedisk.make(own)
    with other.open("wb") as file:
        file.truncate(8 << 20)
    disks = {}
    for raw in (own, other):
        disks[raw] = raw.with_suffix(".qcow2")
        run.run(["qemu-img", "convert", "-O", "qcow2", raw, disks[raw]])
    for image in (REMOTE, BoxImage("added")):
        box = attrs.evolve(makebox.make_box(tmp_path), image=image)
        assert foreign.instance(box, disks[own]) is None
        first, second = (foreign.instance(box, disks[other]) for _ in range(2))
        assert first != second
        assert str(first).startswith("kimbox-")
    assert foreign.instance(makebox.make_box(tmp_path), tmp_path / "not read") is None


@pytest.mark.parametrize(
    ("what", "changes", "mode"),
    [
        ("boot resnap", {}, BootMode.RESNAP),
        ("boot maintain", {}, BootMode.MAINTAIN),
        ("make a template of", {"warm": True}, BootMode.KEEP),
        ("run a job in", {"job": True}, BootMode.KEEP),
        ("make scratch space for", {"scratch": Scratch(1 << 30, "/scratch")}, BootMode.KEEP),
        ("share folders with", {"mounts": (Mount(Path("/srv"), "/srv/host"),)}, BootMode.KEEP),
        ("run a watchdog for", {"watchdog_s": 60}, BootMode.KEEP),
        (
            "connect to a network",
            {"networks": (Network("lan", "10.57.0.0/24", ()),)},
            BootMode.KEEP,
        ),
        ("set variables in", {"variables": (Variable("A", "b", None),)}, BootMode.KEEP),
        ("make accounts in", {"users": (User("alice"),)}, BootMode.KEEP),
    ],
)
def test_what_such_an_image_lacks_is_refused(
    tmp_path: Path, what: str, changes: dict[str, Any], mode: BootMode
) -> None:
    """With the reason."""
    with refused(StateError, "unsupported-by-image", name="tiny", what=what) as caught:
        foreign.check_spec(of(tmp_path, **changes), {mode})
    assert "kimbox did not build its image" in caught.value.message
    foreign.check_spec(of(tmp_path), {BootMode.KEEP})


def test_sealing_is_refused_by_the_record() -> None:
    """A record of a machine whose image kimbox built has no instance."""
    foreign.check(RECORD, "secure")
    with refused(StateError, "unsupported-by-image", name="tiny", what="secure"):
        foreign.check(attrs.evolve(RECORD, seed="kimbox-1"), "secure")
