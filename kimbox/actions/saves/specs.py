"""The spec of a box that is made of a save: what it may change, and the size of the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kimbox.actions.lifecycle.disksize import smaller
from kimbox.actions.saves import folders
from kimbox.errors import SpecError, StateError, UsageError
from kimbox.image.saves import manifest as manifests
from kimbox.image.saves.manifest import Manifest
from kimbox.spec.load import load_box
from kimbox.spec.model import Box, PackageImage
from kimbox.spec.settings import DISK_SIZE
from kimbox.spec.units import size_text


def load(spec: Path, settings: Sequence[str], manifest: Manifest, url: str, *, is_own: bool) -> Box:
    """Returns the box of a spec for a save. `is_own`: the spec is that of the save, in the store at `url`.

    Raises SpecError if the spec is not valid, or needs files that are beside it where it was written; UsageError if the
    settings change the image; StateError: `disk-smaller`, `name-taken` if it is the spec of another box; KimboxError
    (`save-damaged`, `unsafe-save`) if it is that of the save.
    """
    try:
        saved_box, box = load_box(spec), load_box(spec, settings)
    except SpecError as error:
        if not is_own or settings:
            raise
        hint = "the spec of the save may need files that are beside it: pass a spec that has them, with -f FILE"
        raise SpecError(error.problems, code=error.code, hint=hint, fields=error.fields) from None
    if is_own:
        folders.refuse_mounts(saved_box, url)
    if (box.image, box.disk) != (saved_box.image, saved_box.disk):
        raise UsageError(
            f"--set cannot change the image of {box.name}, or the sizes of volumes: they are those of the save",
            code="usage",
            hint="set other keys, or change the spec and make a new box with `kimbox up`",
            fields={"option": "--set"},
        )
    _check_size(box, manifest)
    if box.name == manifest.box:
        return box
    if is_own:
        raise manifests.damaged(url, manifests.name_of(manifest.number), "its spec is of another box")
    raise StateError(
        f"the save is of the box {manifest.box}, and {box.source} describes {box.name}",
        code="name-taken",
        hint=f"pass the spec of {manifest.box}, or none: the save has its own",
        fields={"name": manifest.box, "owner": url, "spec": str(box.source)},
    )


def _check_size(box: Box, manifest: Manifest) -> None:
    """Raises StateError (`disk-smaller`) if a setting gives the box a smaller disk than the saved one."""
    size_bytes = manifest.disk.size_bytes
    if box.disk_bytes and box.disk_bytes < size_bytes:
        raise smaller(box.name, size_bytes, box.disk_bytes, f"give a size of at least {size_text(size_bytes)}, or none")


def settings_of(box: Box, manifest: Manifest) -> tuple[str, ...]:
    """Returns the settings of a machine that is made of a save. A disk that had grown keeps its size."""
    size_bytes = manifest.disk.size_bytes
    if box.disk_bytes or size_bytes <= box.disk.size_bytes or not isinstance(box.image, PackageImage):
        return box.settings
    return (*box.settings, f"{DISK_SIZE}={size_text(size_bytes)}")
