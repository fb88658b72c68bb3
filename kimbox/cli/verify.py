"""kimbox verify: build an image again and compare it byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report

if TYPE_CHECKING:
    from kimbox.actions.verify import Verified

#: Maximum number of lines about differences that are printed. --json has all differences.
MAX_LINES = 200


def verify(
    box: target.Name = None,
    file: target.File = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="If files differ, build once more, and write the files that differ in each build to the lock.",
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no server, and use only the package cache.")
    ] = False,
) -> None:
    """Build the image of a box again from its spec and lock, and compare it byte for byte with the image in the store.

    The second image is removed, and the store does not change. If the images differ, the exit status is 1, and the
    output has the partition, the logical volume and the files that differ, with the kind of difference.

    A few packages write a random number or a time to a file at installation. With --deep, kimbox builds the image a
    third time. The files that differ between the two new images are written to the lock, under `varying`. A later
    `verify` prints them and expects that they differ. A file that differs only from the stored image is never accepted.

    \b
    Examples:
      kimbox verify
      kimbox verify --deep
      kimbox verify openkim-dev --offline
    """
    from kimbox.actions import verify as verifying
    from kimbox.errors import KimboxError

    project = target.project(box, file, frozen=True, offline=offline)
    verified, is_recorded = verifying.verify_project(project, deep=deep)
    lines = [line for difference in verified.differences for line in difference.lines()]
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more lines, all of them in --json"]
    if verified.varying:
        varying = [f"{path} ({how})" for path, how in verified.varying.items()]
        lines += ["files that differ in each build:", *_indented(varying)]
    if is_recorded:
        lines.append(f"wrote these files to {project.lock_path}")
    result = {
        "name": project.name,
        "key": verified.key,
        "same": verified.outcome == verifying.Outcome.SAME,
        "outcome": verified.outcome,
        "build_s": verified.build_s,
        "sha256": {"stored": verified.stored_sha256, "built": verified.built_sha256},
        "differences": [attrs.asdict(difference) for difference in verified.differences],
        "varying": dict(verified.varying),
        "unexpected": list(verified.unexpected),
        "recorded": is_recorded,
    }
    report("verify", result, "\n".join(map(printable, [*lines, *_conclusion(verified, deep)])))
    if verified.outcome == verifying.Outcome.DIFFERENT:
        raise typer.Exit(KimboxError.exit_code)


def _indented(names: Sequence[str]) -> list[str]:
    """Returns one line for each name, up to MAX_LINES."""
    more = [f"  ... and {len(names) - MAX_LINES} more, all of them in --json"] if len(names) > MAX_LINES else []
    return [*(f"  {name}" for name in names[:MAX_LINES]), *more]


def _conclusion(verified: Verified, deep: bool) -> list[str]:
    """The last lines of the output."""
    match verified.outcome:
        case "same":
            return [f"the images are the same, sha256 {verified.stored_sha256}"]
        case "expected":
            return ["the images are the same, except for these files"]
    if deep:
        reason = "differ from the stored image and not in each build, or cannot be listed in the lock"
        return [f"the images differ; these files or parts of the disk {reason}:", *_indented(verified.unexpected)]
    hint = "`kimbox verify --deep` shows which files differ in each build, and writes them to the lock"
    return ["the images differ", hint] if all(d.files for d in verified.differences) else ["the images differ"]
