"""Removes unused files: templates and images of the store that no machine, template or added box refers to, downloads,
remains of interrupted runs, logs, and caches."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.actions.stop import destroy
from kimbox.drivers import registry
from kimbox.errors import KimboxError, StateError
from kimbox.files import is_locked, locked, remove_tree
from kimbox.guest import delivery
from kimbox.image.store import images, names
from kimbox.lock.git import bare
from kimbox.machine import rebuilt, templates
from kimbox.machine.folder import Machine, interrupted, machines
from kimbox.machine.record import Ended, Purpose, Record
from kimbox.transfer import downloads


@attrs.frozen
class Unused:
    """An image, download, log or cache that may be removed, and the space that it takes."""

    path: Path
    size_bytes: int
    #: What it is, if the path does not show it.
    description: str = ""
    #: The driver whose file it is. Empty for the files of kimbox itself.
    driver: str = ""


def unused(*, packages: bool = False) -> list[Unused]:
    """Templates that no clone refers to, images that no machine, template and added box refers to, downloads, remains
    of interrupted runs, and logs of failed builds. Without those that a process works on now.

    The image of an unused template counts as used, until the template was removed.

    `packages`: also the cache of packages and the lists of the archives, which kimbox downloads again if necessary.

    Raises StateError if the record of a machine cannot be read, because the machine may need any of the images.
    """
    used = used_images()
    unused_paths = [images.folder(key) for key in images.stored() if key not in used]
    unused_paths += paths.images_dir().glob("*.failed.log")
    unused_paths += [templates.folder(key) for key in templates.stored() if key not in used_templates()]
    remains = images.remains() + bare.remains() + templates.remains()
    remains += [folder for machine in interrupted() for folder in (machine.folder, machine.unfinished)]
    remains += [machine.folder for machine in machines() if _is_left_by_sweep(machine)]
    remains += [path for machine in machines() if not is_locked(machine.lock_file) for path in _remains_in(machine)]
    if packages:
        unused_paths += [folder for folder in (paths.packages_dir(), paths.archives_dir()) if folder.is_dir()]
    items = [Unused(path, _size_bytes(path)) for path in unused_paths]
    items += [Unused(path, _size_bytes(path), "of an interrupted run") for path in remains if path.exists()]
    items += [Unused(p, _size_bytes(p), text, driver) for p, (driver, text) in registry.remains().items()]
    return sorted([*items, *unused_downloads()], key=lambda item: item.path)


def _remains_in(machine: Machine) -> list[Path]:
    """What an interrupted run leaves in the folder of a machine: copies of the disk, and copies of repositories.

    They are from `package`, `maintain` and `shrink`, and from `up` and `provision`. Also the disk with a delivery, of a
    machine that ended before it took that.
    """
    left = [machine.package_work, machine.commit_work, machine.new_disk, *machine.folder.glob(f"{delivery.TEMPORARY}*")]
    with contextlib.suppress(KimboxError):  # it was removed since it was listed, or is damaged
        if not machine.running and machine.record().ended is not Ended.SUSPENDED:
            left.append(machine.delivery)
    return left


def unused_downloads() -> list[Unused]:
    """Downloads, complete or not, that no process works on."""
    return [Unused(p, _size_bytes(p), f"download of {downloads.location(p) or 'a file'}") for p in downloads.unused()]


def used_images() -> set[str]:
    """The keys of the images that machines and added boxes refer to. Raises StateError as `unused` does."""
    used = {box.image for box in names.every()} | used_by_machines()
    for machine in machines():
        others = (rebuilt.former(machine), rebuilt.coming(machine))
        used |= {record.image for record in others if record}
    for key in templates.stored():
        with contextlib.suppress(KimboxError):  # nothing can use a damaged template: `prune` removes it
            if template := templates.find(key):
                used.add(template.image)
    return used


def used_by_machines() -> set[str]:
    """The keys of the images of the present disks of machines. Raises StateError as `unused` does."""
    return {record.image for record in _records()}


def _records() -> list[Record]:
    """The records of all machines. Raises StateError as `unused` does."""
    records = []
    for machine in machines():
        try:
            records.append(machine.record())
        except KimboxError as error:
            if error.code == "box-not-found":  # it was removed since it was listed
                continue
            raise StateError(
                f"cannot find out which images are unused: the record of {machine.name} cannot be read: {error}",
                code=error.code,
                hint=f"`kimbox destroy {machine.name}` removes this machine",
                fields={"name": machine.name},
            ) from None
    return records


def used_templates() -> set[str]:
    """The keys of the templates that clones refer to. Raises StateError as `unused` does."""
    return {record.template for record in _records() if record.template}


def _is_left_by_sweep(machine: Machine) -> bool:
    """Whether a machine ran a job of a sweep that was killed. A sweep that runs holds the locks of its machines."""
    try:
        return machine.record().purpose is Purpose.SWEEP and not machine.is_locked_by_another()
    except (KimboxError, OSError):
        return False


def _size_bytes(path: Path) -> int:
    """The space that a file or all files in a folder take. A file that another process removes counts as 0."""
    files = [path] if path.is_file() else [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    size_bytes = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            size_bytes += file.lstat().st_blocks * 512
    return size_bytes


def remove(items: list[Unused]) -> list[Unused]:
    """Removes items that `unused` returned. Returns those that were removed.

    An image stays if a process is using or making it, or if a machine or an added box refers to it meanwhile. Lock
    files stay, because processes that wait for a lock have its file open. They are empty.
    """
    removed = [item for item in items if _remove(item)]
    images.sweep()
    templates.sweep()
    return [item for item in removed if item.path == paths.packages_dir() or not item.path.exists()]


def _remove(item: Unused) -> bool:
    """Removes a download, a log, an image, a cache or the remains of a run. True if all of it was removed."""
    path = item.path
    if item.driver:
        return registry.remove_remains(item.driver, path)
    if paths.mirrors_dir() in path.parents:
        return bare.remove(path)
    if path.parent == paths.downloads_dir():
        return downloads.remove(path)
    if path.parent == paths.machines_dir():
        return _remove_machine(path)
    if path.parent.parent == paths.machines_dir():
        return _remove_from_machine(Machine(path.parent.name), path)
    if path.name.startswith(images.TEMPORARY):
        return True  # the sweeps at the end of `remove` leave those that a process uses
    if path.parent == paths.templates_dir():
        return templates.remove(path.name, is_unused=lambda: path.name not in used_templates())
    if path.is_file():
        path.unlink(missing_ok=True)
        return True
    if path.parent == paths.images_dir():
        return images.remove(path.name, is_unused=lambda: path.name not in used_images())
    return path.is_dir() and _empty(path)


def _remove_machine(path: Path) -> bool:
    """Removes the folders of a machine whose creation or removal was interrupted."""
    machine = Machine(path.name.removeprefix(images.TEMPORARY))
    try:
        return destroy(machine, only_remains=not _is_left_by_sweep(machine))
    except StateError:  # a process has begun to work on it
        return False


def _remove_from_machine(machine: Machine, path: Path) -> bool:
    """Removes what an interrupted run left in the folder of a machine."""
    try:
        with machine.locked():
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except StateError:
        return False
    return True


def _empty(folder: Path) -> bool:
    """Empties a cache; the lists of an archive stay if a process uses them. True if everything was removed."""
    if folder == paths.packages_dir():
        for suffix in (".deb", ".control"):  # each .deb before its control fields
            for file in folder.glob(f"*/*{suffix}"):
                file.unlink(missing_ok=True)
        return True
    for archive in folder.iterdir():
        with contextlib.suppress(StateError), locked(archive / "lock"):
            remove_tree(archive)
    return not any(folder.iterdir())
