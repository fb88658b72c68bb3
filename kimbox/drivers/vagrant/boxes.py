"""Vagrant boxes in kimbox's VAGRANT_HOME: one for each image that a machine under Vagrant uses."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kimbox import paths
from kimbox.drivers.names import prefix
from kimbox.drivers.vagrant.command import Call
from kimbox.drivers.vagrant.hypervisor import Hypervisor
from kimbox.errors import StateError
from kimbox.files import is_locked, locked, remove_tree
from kimbox.image.store import images, lease
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine.folder import Machine, machines
from kimbox.render.vagrantfile import KEY_DIGITS, box_name
from kimbox.spec.model import Box

#: Maximum wait for another kimbox process that writes a box, in seconds.
LOCK_WAIT_S = 600.0

#: Temporary files, with whole disks, that a killed kimbox or Vagrant leaves. The last two patterns are Vagrant's
#: (lib/vagrant/action/builtin/box_add.rb, lib/vagrant/box_collection.rb).
LEFTOVERS = ("box-*", "tmp/box*", "tmp/vagrant-box-add-temp-*")


def name_of(box: Box, image: Image) -> str:
    """Returns the name in Vagrant of the box with an image, in this $KIMBOX_HOME."""
    return box_name(box.name, image.key, prefix())


def ensure(image: Image, box: Box, backend: Hypervisor, call: Call) -> None:
    """Adds the image to Vagrant as a box for a hypervisor, unless Vagrant has that box."""
    vagrant_box = name_of(box, image)
    home = paths.vagrant_dir()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _exclusive():
        if any((home / "boxes" / vagrant_box).glob(f"*/{backend.NAME}")):
            return
        with log.step("writing a box for Vagrant"), tempfile.TemporaryDirectory(prefix="box-", dir=home) as folder:
            file = Path(folder) / f"{vagrant_box}.box"
            backend.write_box(box, image, file)
            call("box add", lambda v: v.box_add(vagrant_box, str(file), provider=backend.NAME, force=True))


def remove(vagrant_box: str, backend: Hypervisor, call: Call) -> None:
    """Removes a box from Vagrant and from the hypervisor, unless a machine uses it."""
    home = paths.vagrant_dir()
    with _exclusive():
        if _is_used(vagrant_box):
            return
        backend.remove_image(vagrant_box)
        if (home / "boxes" / vagrant_box).is_dir():
            call("box remove", lambda v: v.box_remove(vagrant_box, backend.NAME))
        remove_tree(home / "boxes" / vagrant_box)


def remove_image(vagrant_box: str, backend: Hypervisor, of: Machine) -> None:
    """Removes the copy of a box's image in the hypervisor, unless a machine other than `of` uses it.

    A killed Vagrant leaves an incomplete copy, which the next `vagrant up` would use as if it were complete.
    """
    with _exclusive():
        if not _is_used(vagrant_box, except_for=of.name):
            backend.remove_image(vagrant_box)


def remains() -> dict[Path, str]:
    """LEFTOVERS, and boxes that no machine uses, each with a description. None while a process works on the boxes."""
    if is_locked(_lock_file()):
        return {}
    home = paths.vagrant_dir()
    unused = [path for path in (home / "boxes").glob(f"{prefix()}*") if not _is_used(path.name)]
    left = dict.fromkeys(_leftovers(), "of an interrupted run")
    return left | dict.fromkeys(unused, "Vagrant box that no machine uses")


def remove_remains(path: Path) -> bool:
    """Removes a path that `remains` returned, unless a process uses it now. True if it was removed."""
    is_box = path.parent == paths.vagrant_dir() / "boxes"
    keys = [key for key in images.stored() if is_box and path.name.endswith(f"-{key[:KEY_DIGITS]}")]
    try:
        with contextlib.ExitStack() as locks:
            for key in keys:  # a process that creates a machine holds the lease until the machine refers to the box
                locks.enter_context(lease.exclusive(key))
            locks.enter_context(_exclusive(wait_s=0))
            if is_box and not _is_used(path.name):
                remove_tree(path)
    except StateError:
        return False
    return not path.exists()


def _lock_file() -> Path:
    return paths.vagrant_dir() / "kimbox.lock"


def _leftovers() -> list[Path]:
    return [path for pattern in LEFTOVERS for path in paths.vagrant_dir().glob(pattern)]


@contextlib.contextmanager
def _exclusive(wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Holds the lock on Vagrant's boxes, and first removes LEFTOVERS. Raises StateError (`busy`)."""
    with locked(_lock_file(), wait_s=wait_s, busy="another kimbox process is writing a box for Vagrant"):
        for path in _leftovers():
            remove_tree(path) if path.is_dir() else path.unlink()
        yield


def _is_used(vagrant_box: str, except_for: str | None = None) -> bool:
    """Whether a machine, other than `except_for`, was created from a box."""
    files = [machine.folder / "box" for machine in machines() if machine.name != except_for]
    return any(file.exists() and file.read_text().strip() == vagrant_box for file in files)
