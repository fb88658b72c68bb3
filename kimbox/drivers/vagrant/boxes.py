"""The image of a machine as a Vagrant box, among the boxes that kimbox has Vagrant keep for itself."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kimbox import paths
from kimbox.drivers.vagrant.command import Call
from kimbox.drivers.vagrant.hypervisor import Hypervisor
from kimbox.drivers.vagrant.names import prefix
from kimbox.files import locked, remove_tree
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine.folder import Machine, machines
from kimbox.render.vagrantfile import box_name
from kimbox.spec.model import Box

#: Another kimbox may be making the same box.
LOCK_WAIT_S = 600.0

#: What a kimbox, or a Vagrant, that is killed while it makes a box leaves: whole disks. Vagrant names the last two
#: (lib/vagrant/action/builtin/box_add.rb, lib/vagrant/box_collection.rb).
LEFT = ("box-*", "tmp/box*", "tmp/vagrant-box-add-temp-*")


def name_of(box: Box, image: Image) -> str:
    """What Vagrant calls the image of a machine of this home."""
    return box_name(box.name, image.key, prefix())


def ensure(image: Image, box: Box, under: Hypervisor, call: Call) -> None:
    """Makes the image a box of Vagrant's for a hypervisor, if it is none yet."""
    vagrant_box = name_of(box, image)
    home = paths.vagrant_dir()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone():
        if any((home / "boxes" / vagrant_box).glob(f"*/{under.NAME}")):
            return
        with log.step("making a box for Vagrant"), tempfile.TemporaryDirectory(prefix="box-", dir=home) as folder:
            file = Path(folder) / f"{vagrant_box}.box"
            under.write_box(box, image, file)
            call("box add", lambda v: v.box_add(vagrant_box, str(file), provider=under.NAME, force=True))


def drop(vagrant_box: str, under: Hypervisor, call: Call) -> None:
    """Removes a box that no machine needs any more, from Vagrant's boxes and from the hypervisor."""
    home = paths.vagrant_dir()
    with _alone():
        if _is_needed(vagrant_box):
            return
        under.drop_image(vagrant_box)
        if (home / "boxes" / vagrant_box).is_dir():
            call("box remove", lambda v: v.box_remove(vagrant_box, under.NAME))
        remove_tree(home / "boxes" / vagrant_box)


def drop_image(vagrant_box: str, under: Hypervisor, of: Machine) -> None:
    """Removes what the hypervisor has of a box's image, unless another machine than `of` needs it.

    A Vagrant that was killed leaves the beginning of an image, which the next would take for the whole.
    """
    with _alone():
        if not _is_needed(vagrant_box, but=of.name):
            under.drop_image(vagrant_box)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Nobody else makes or removes boxes meanwhile; what one that was killed has left is gone."""
    home = paths.vagrant_dir()
    with locked(home / "kimbox.lock", wait_s=LOCK_WAIT_S, busy="another kimbox is making a box for Vagrant"):
        for pattern in LEFT:
            for path in home.glob(pattern):
                if path.is_dir():
                    remove_tree(path)
                else:
                    path.unlink()
        yield


def _is_needed(vagrant_box: str, but: str | None = None) -> bool:
    """Whether a machine, other than `but`, was made from a box."""
    files = [machine.folder / "box" for machine in machines() if machine.name != but]
    return any(file.exists() and file.read_text().strip() == vagrant_box for file in files)
