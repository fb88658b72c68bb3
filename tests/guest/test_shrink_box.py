"""A real box is filled, emptied and shrunk: its files are there, its file systems sound, its disk small."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Kimbox

from kimbox import run
from kimbox.spec.layout import plan
from kimbox.spec.load import load_box

pytestmark = pytest.mark.guest

NAME = "shrunk"
JUNK_BYTES = 60 << 20


def test_a_box_is_filled_and_shrunk(kimbox: Kimbox, tmp_path: Path) -> None:
    """What was deleted goes from the snapshot's store and from /persistent, what is there stays, and the box boots."""
    spec = kimbox.spec(NAME, "boot: keep\n")
    kimbox("up")
    kimbox.sh(
        NAME,
        "head -c 60M /dev/urandom | sudo tee /var/tmp/junk | sudo tee /persistent/junk >/dev/null; "
        "head -c 3M /dev/urandom | sudo tee /kept | sudo tee /persistent/kept >/dev/null; sync; "
        "sudo rm /var/tmp/junk /persistent/junk; sync",
    )
    sums = kimbox.sh(NAME, "sha256sum /kept /persistent/kept /usr/bin/* | sha256sum")
    kimbox("halt")
    done = kimbox.json("shrink")
    assert ("kept", []) == (done["snapshot"], done["notes"])
    assert done["before_bytes"] > 2 * JUNK_BYTES
    assert done["after_bytes"] < done["before_bytes"] - 2 * JUNK_BYTES
    kimbox("up")
    assert sums == kimbox.sh(NAME, "sha256sum /kept /persistent/kept /usr/bin/* | sha256sum")
    kimbox("halt")
    layout = plan(load_box(spec).disk)
    raw = tmp_path / "raw"
    run.run(["qemu-img", "convert", "-O", "raw", kimbox.machine(NAME).disk, raw])
    for place in (layout.boot, layout.root.place, layout.persistent.place):
        done_fsck = run.run(["e2fsck", "-fn", f"{raw}?offset={place.offset_bytes}"], check=False)
        assert done_fsck.ok, done_fsck.stdout
    kimbox("destroy", "-y")
