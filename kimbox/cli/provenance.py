"""kimbox provenance: write the SBOM and the provenance statement of a box."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report


def provenance(
    box: target.Name = None,
    file: target.File = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for both files. Default: the current folder."),
    ] = Path(),
) -> None:
    """Write the SBOM (NAME.cdx.json) and the in-toto statement (NAME.intoto.json) of a box.

    The SBOM is CycloneDX 1.6 and lists every package of the image and every repository. The statement has the predicate
    https://slsa.dev/provenance/v1 and links the image to the digests of spec and lock, and to each package and commit.
    kimbox does not sign it; sign it with a tool of your choice.

    Both name the steps that ran under other commits than those of the lock, with these commits: the SBOM as properties
    `kimbox:stale`, the statement as `stale`.

    Both describe what the box runs. If the machine does not exist, or has not reported it, they describe the lock.
    Equal input gives equal files.

    \b
    Examples:
      kimbox provenance
      kimbox provenance openkim-dev --output release
    """
    from kimbox.actions.provenance import provenance_of
    from kimbox.files import write_atomic
    from kimbox.lock.provenance import sbom, statement

    project = target.project(box, file)
    whole, told_by = provenance_of(project)
    files = {"sbom": output / f"{project.name}.cdx.json", "statement": output / f"{project.name}.intoto.json"}
    write_atomic(files["sbom"], sbom(whole))
    write_atomic(files["statement"], statement(whole))
    result = {kind: str(path) for kind, path in files.items()}
    counted = f"{len(whole.packages)} packages, {len(whole.lock.repositories)} repositories, from {told_by}"
    lines = [*(f"wrote {path}" for path in files.values()), counted]
    lines += [
        f"step {step} ran under other commits: {', '.join(f'{name} {pin[:12]}' for name, pin in pins.items())}"
        for step, pins in whole.stale.items()
    ]
    stale = {step: dict(pins) for step, pins in whole.stale.items()}
    report("provenance", result | {"of": told_by, "stale": stale}, "\n".join(lines))
