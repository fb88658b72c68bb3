"""kimbox verify: whether spec and lock give the same image again."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report

#: Lines about differences that are shown; --json has all.
MAX_LINES = 200


def verify(
    box: target.Name = None,
    file: target.File = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no server: the package cache alone.")] = False,
) -> None:
    """Build the image of a box again from its spec and lock, and compare it byte for byte with the one in the store.

    Nothing is changed: the second image is removed. Where they differ, the partition, the logical volume and the files
    are named, and the exit status is 1.

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
    found = verifying.verify(project.box, locked.recipe, offline=offline)
    lines = [line for difference in found.differences for line in difference.lines()]
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... {len(lines) - MAX_LINES} more lines; --json has all"]
    end = "they differ" if found.differences else f"the same again, sha256 {found.stored_sha256}"
    report(
        "verify",
        {
            "name": project.name, "key": found.key, "same": not found.differences, "build_s": found.build_s,
            "sha256": {"stored": found.stored_sha256, "built": found.built_sha256},
            "differences": [attrs.asdict(difference) for difference in found.differences],
        },
        "\n".join(map(printable, [*lines, end])),
    )  # fmt: skip
    if found.differences:
        raise typer.Exit(KimboxError.exit_code)
