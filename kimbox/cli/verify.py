"""kimbox verify: build an image again and compare it byte for byte."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report

#: Maximum number of lines about differences that are printed. --json has all differences.
MAX_LINES = 200


def verify(
    box: target.Name = None,
    file: target.File = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no server, and use only the package cache.")
    ] = False,
) -> None:
    """Build the image of a box again from its spec and lock, and compare it byte for byte with the image in the store.

    The second image is removed, and the store does not change. If the images differ, the exit status is 1, and the
    output has the partition, the logical volume and the files that differ.

    \b
    Examples:
      kimbox verify
      kimbox verify openkim-dev --offline
    """
    from kimbox.actions import verify as verifying
    from kimbox.errors import KimboxError
    from kimbox.project import pins

    project = target.project(box, file, frozen=True, offline=offline)
    locked = pins.lock_for(project)
    comparison = verifying.verify(project.box, locked.recipe, offline=offline)
    lines = [line for difference in comparison.differences for line in difference.lines()]
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more lines, all of them in --json"]
    conclusion = (
        "the images differ" if comparison.differences else f"the images are the same, sha256 {comparison.stored_sha256}"
    )
    result = {
        "name": project.name,
        "key": comparison.key,
        "same": not comparison.differences,
        "build_s": comparison.build_s,
        "sha256": {"stored": comparison.stored_sha256, "built": comparison.built_sha256},
        "differences": [attrs.asdict(difference) for difference in comparison.differences],
    }
    report("verify", result, "\n".join(map(printable, [*lines, conclusion])))
    if comparison.differences:
        raise typer.Exit(KimboxError.exit_code)
