"""The store of templates: boxes that are provisioned and ready, frozen in memory, from which clones continue.

templates/<key>/disk.qcow2     the disk, an overlay on an image of the store
templates/<key>/overlay.qcow2  an empty overlay on that disk: each clone starts with a copy of it
templates/<key>/scratch.qcow2  the scratch space, if the spec has one
templates/<key>/ram            the memory, sparse; clones map it privately
templates/<key>/state          the state of the devices
templates/<key>/template.json  facts about the template
templates/<key>.lease          locked by processes that make a clone, or by the process that removes the template
templates/<key>.lock           locked by the process that makes the template
templates/.tmp-<key>/          a template that is being made
templates/.tmp-gone-<key>/     a template that is being removed

A template is in the store completely or not at all. Its memory holds the private keys of a running box: only this user
may read its files. The files never change.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox import __version__, paths
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import (
    is_locked,
    is_space_error,
    json_bytes,
    locked,
    private_dir,
    ran_out_of_space,
    read_json,
    remove_tree,
    space_error,
    sync_folder,
    write_json,
)
from kimbox.image.store import lease
from kimbox.spec.model import Scratch

#: Names of the files of a template.
DISK = "disk.qcow2"
OVERLAY = "overlay.qcow2"
SCRATCH = "scratch.qcow2"
RAM = "ram"
STATE = "state"
FACTS = "template.json"

#: Version of template.json that kimbox writes and reads.
FORMAT = 1

#: Prefixes of the names of workspaces, and of the folders of templates that are being removed.
TEMPORARY = ".tmp-"
GONE = f"{TEMPORARY}gone-"

#: The subfolder of a workspace that becomes the template.
DONE = "done"

#: Maximum wait for another process that makes the same template, in seconds: as long as a box may be provisioned.
MAKE_WAIT_S = 3600.0


@attrs.frozen
class Template:
    """A template in the store."""

    key: str
    #: Name of the box, key of its image, and digest of its manifest.
    box: str
    image: str
    manifest: str
    cpus: int
    memory_bytes: int
    scratch: Scratch | None
    #: The events of the template's boot that describe a clone, too, as JSON objects.
    events: tuple[dict[str, Any], ...]

    @property
    def folder(self) -> Path:
        return folder(self.key)

    def as_json(self) -> dict[str, Any]:
        """Returns the content of template.json."""
        return {"format": FORMAT, "kimbox": __version__} | attrs.asdict(self)

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Self:
        """Parses the content of template.json. Raises KeyError, TypeError or ValueError if it is not valid."""
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}")
        fields = {field.name: value[field.name] for field in attrs.fields(cls)}
        scratch = fields["scratch"]
        fields["scratch"] = Scratch(int(scratch["size_bytes"]), str(scratch["mount"])) if scratch else None
        fields["events"] = tuple(dict(event) for event in fields["events"])
        fields["cpus"], fields["memory_bytes"] = int(fields["cpus"]), int(fields["memory_bytes"])
        return cls(**fields)


def key_of(*, image: str, manifest: str, facts: list[str]) -> str:
    """Returns the key of a template: a sha256 hex digest of all that its memory depends on."""
    return hashlib.sha256(json_bytes({"image": image, "manifest": manifest, "facts": facts})).hexdigest()


def folder(key: str) -> Path:
    """Returns the folder of a template, whether it exists or not."""
    return paths.templates_dir() / key


def find(key: str) -> Template | None:
    """Returns a template; None if it is not in the store. Raises ImageError (`template-unusable`) if it is damaged."""
    place = folder(key)
    if not place.exists():
        return None
    try:
        template = Template.parse(read_json(place / FACTS))
        if template.key != key:
            raise ValueError(f"{FACTS} describes another template")
        for name in (DISK, OVERLAY, RAM, STATE):
            (place / name).stat()
    except (OSError, KimboxError, KeyError, TypeError, ValueError) as error:
        raise ImageError(
            f"the template {key[:12]} is damaged: {error}",
            code="template-unusable",
            hint="destroy its clones; then `kimbox prune` removes it, and the next `kimbox clone` makes a new one",
            fields={"template": key, "path": str(place)},
        ) from None
    return template


def stored() -> list[str]:
    """Returns the keys of all templates in the store, in order, with those that are damaged."""
    places = paths.templates_dir().glob("*")
    return sorted(place.name for place in places if place.is_dir() and not place.name.startswith(TEMPORARY))


def size_bytes(key: str) -> int:
    """Returns the space that a template takes. A file that another process removes counts as 0."""
    size = 0
    for path in folder(key).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.lstat().st_blocks * 512
    return size


@attrs.frozen
class Summary:
    """A template for a list. `box` is None if it is damaged."""

    key: str
    box: str | None
    image: str | None
    size_bytes: int


def every() -> list[Summary]:
    """Returns all templates, also the damaged ones, in the order of their keys."""
    summaries = []
    for key in stored():
        template = None
        with contextlib.suppress(KimboxError):
            template = find(key)
        box, image = (template.box, template.image) if template else (None, None)
        summaries.append(Summary(key, box, image, size_bytes(key)))
    return summaries


def shared(key: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a template in the store while the block runs, as `lease.shared` does for images."""
    return lease.shared(key, lease.TEMPLATE)


def make(key: str, fill: Callable[[Path, Path], Template]) -> Template:
    """Makes a template, unless another process made it meanwhile. Returns it.

    `fill` gets a workspace, and a folder in it to which it writes the files, synced; it returns the facts. What killed
    processes left in the store is removed first. Raises StateError (`busy`) if another process makes this template for
    longer than MAKE_WAIT_S, ImageError (`no-space`), and the errors of `fill`.
    """
    sweep()
    private_dir(paths.templates_dir())
    work = paths.templates_dir() / f"{TEMPORARY}{key}"
    busy = "another kimbox process is making this template"
    try:
        with locked(_lock_file(key), wait_s=MAKE_WAIT_S, busy=busy):
            if template := find(key):
                return template
            remove_tree(work)
            (work / DONE).mkdir(mode=0o700, parents=True)
            try:
                template = fill(work, work / DONE)
                write_json(work / DONE / FACTS, template.as_json(), mode=0o600)
                sync_folder(work / DONE)
                (work / DONE).rename(folder(key))
                sync_folder(paths.templates_dir())
            finally:
                remove_tree(work)
    except (OSError, KimboxError) as error:
        if not ran_out_of_space(error) or is_space_error(error):
            raise
        full = space_error(paths.templates_dir(), "the template")
        raise ImageError(full.message, code=full.code, hint=full.hint, fields=full.fields) from None
    return template


def remove(key: str, *, is_unused: Callable[[], bool]) -> bool:
    """Removes a template. Returns False, and removes nothing, if it is in use or does not exist.

    `is_unused` returns whether it may be removed. While it runs, no other process can start to use the template.
    """
    gone = paths.templates_dir() / f"{GONE}{key}"
    with contextlib.ExitStack() as locks:
        try:
            locks.enter_context(lease.exclusive(key, lease.TEMPLATE))
            locks.enter_context(locked(_lock_file(key)))
        except StateError:
            return False
        if not folder(key).is_dir() or not is_unused():
            return False
        remove_tree(gone)  # an earlier removal was interrupted
        folder(key).rename(gone)
    remove_tree(gone)
    return True


def remains() -> list[Path]:
    """Returns the folders that `sweep` deletes, in order."""
    found = sorted(paths.templates_dir().glob(f"{TEMPORARY}*"))
    return [path for path in found if path.name.startswith(GONE) or not is_locked(_lock_of(path))]


def sweep() -> None:
    """Deletes folders that killed processes left. The process that was to become a template has ended with kimbox."""
    for leftover in remains():
        with contextlib.ExitStack() as locks, contextlib.suppress(StateError):
            if not leftover.name.startswith(GONE):
                locks.enter_context(locked(_lock_of(leftover)))
            remove_tree(leftover)


def _lock_of(work: Path) -> Path:
    """Returns the lock file of a workspace."""
    return _lock_file(work.name.removeprefix(TEMPORARY))


def _lock_file(key: str) -> Path:
    """Returns the file that is locked while a process makes a template."""
    return paths.templates_dir() / f"{key}.lock"


@contextlib.contextmanager
def leased(key: str, make_it: Callable[[], Template]) -> Iterator[Template]:
    """The template of a key, made by `make_it` if it is missing. It stays in the store while the block runs."""
    with shared(key):
        yield find(key) or make_it()
