"""Builds an image from a recipe into a workspace of the store, and writes its log."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from kimbox.errors import ImageError
from kimbox.files import ran_out_of_space, write_json
from kimbox.image.build import disk, rootfs
from kimbox.image.disk import rawdisk
from kimbox.image.inputs.recipe import Recipe
from kimbox.image.sanitize import secrets
from kimbox.image.store import images
from kimbox.log import log
from kimbox.run import CommandError

BUILD_LOG = "build.log"

#: Hint for a package that creates a key at installation, if kimbox does not know how to remove that key.
IN_EACH_BOX = "install the package that creates it in a step of `provision`: steps run in each box, not in the image"


def build(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Fills a workspace, as `images.publish` expects it. Returns the facts of the image.

    All packages must be in the cache.

    Raises ImageError if the build fails: `no-space`, else the code and fields of the error that ended it, for example
    `command-failed` with the field `program`. The log of the build is kept as `images.failed_log`. The field `log` has
    its path.
    """
    title = f"building the image ({recipe.distribution} {recipe.suite}, {len(recipe.locked.versions)} packages)"
    try:
        with log.step(title):
            return _build(recipe, work)
    except (CommandError, ImageError, OSError) as error:
        log_path = images.failed_log(recipe.key)
        with contextlib.suppress(OSError):
            (work / BUILD_LOG).replace(log_path)
        if isinstance(error, OSError):
            raise
        is_no_space = ran_out_of_space(error)
        hint = f"the complete log: {log_path}" if isinstance(error, CommandError) else error.hint
        raise ImageError(
            f"the image could not be built: {error.message}",
            code="no-space" if is_no_space else error.code,
            hint=images.ROOM_HINT if is_no_space else hint,
            fields={**error.fields, "log": str(log_path)},
        ) from None


def _build(recipe: Recipe, work: Path) -> dict[str, Any]:
    """`build`, without the treatment of errors."""
    started = time.monotonic()
    done = work / images.DONE
    target = done / images.DISKS["raw"]
    with (work / BUILD_LOG).open("w", encoding="utf-8") as build_log:
        with log.step("installing packages"):
            rootfs.build(recipe, work, on_line=log.now, log=build_log)
        with log.step("writing the disk"):
            unpacked_bytes = disk.assemble(recipe, work, target)
        with log.step("scanning for keys and identities"), rawdisk.opened(target) as view:
            scan = secrets.scan(view, on_part=log.now)
        build_log.writelines(f"kept: {line}\n" for line in scan.lines())
        scan.check("the image", hint=IN_EACH_BOX)
    os.link(work / BUILD_LOG, done / BUILD_LOG)
    write_json(done / images.PACKAGES, recipe.locked.as_tree())
    return {
        "format": "raw",
        "virtual_bytes": recipe.layout.size_bytes,
        "distribution": recipe.distribution,
        "suite": recipe.suite,
        "packages": recipe.packages,
        "unpacked_bytes": unpacked_bytes,
        "kept_keys": [finding.as_json() for finding in scan.kept],
        "build_s": round(time.monotonic() - started, 1),
    }
