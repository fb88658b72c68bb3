"""kimbox provenance: write the SBOM and the provenance statement of a box."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report

#: Maximum number of inputs without a pin that are printed.
MAX_SHOWN = 20


def provenance(
    box: target.Name = None,
    file: target.File = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the files. Default: the current folder."),
    ] = Path(),
) -> None:
    """Write the SBOM (NAME.cdx.json and NAME.spdx.json) and the in-toto statement (NAME.intoto.json) of a box.

    The SBOM is written as CycloneDX 1.6 and as SPDX 2.3. It lists every package that dpkg on the disk has, and every
    repository. The statement has the predicate https://slsa.dev/provenance/v1 and links the image to the digests of
    spec and lock, and to each package and commit. kimbox does not sign it; sign it with a tool of your choice.

    The files name what no lock pins: repositories at other commits, packages and files that were changed by hand, steps
    that ran under other commits. Packages in which lock and disk differ are named, too.

    The files describe the machine by its own record, and the packages that the running box has. If there is no machine,
    they describe the image of the spec. Equal input gives equal files.

    \b
    Examples:
      kimbox provenance
      kimbox provenance openkim-dev --output release
    """
    from kimbox.actions.provenance import provenance_of
    from kimbox.files import write_atomic
    from kimbox.lock.provenance.cyclonedx import sbom
    from kimbox.lock.provenance.spdx import spdx
    from kimbox.lock.provenance.statement import statement

    project = target.project(box, file)
    described = provenance_of(project)
    whole = described.provenance
    documents = {"sbom": ("cdx", sbom), "spdx": ("spdx", spdx), "statement": ("intoto", statement)}
    files = {kind: output / f"{project.name}.{suffix}.json" for kind, (suffix, _) in documents.items()}
    for kind, (_, document) in documents.items():
        write_atomic(files[kind], document(whole))
    result = {kind: str(path) for kind, path in files.items()}
    counted = f"{len(whole.packages)} packages, {len(whole.lock.repositories)} repositories, from {described.lock_name}"
    lines = [*(f"wrote {path}" for path in files.values()), counted]
    lines += [
        f"step {step} ran under other commits: {', '.join(f'{name} {pin[:12]}' for name, pin in pins.items())}"
        for step, pins in whole.stale.items()
    ]
    lines += unpinned_lines(whole.unpinned) + whole.mismatch.lines()
    stale = {step: dict(pins) for step, pins in whole.stale.items()}
    about = {"of": described.lock_name, "stale": stale, "unpinned": whole.unpinned}
    report("provenance", result | about | {"lock_mismatch": whole.mismatch.as_json()}, "\n".join(lines))


def unpinned_lines(unpinned: Sequence[str]) -> list[str]:
    """Returns the lines about inputs that no lock pins, not more than MAX_SHOWN."""
    more = len(unpinned) - MAX_SHOWN
    lines = [f"not pinned: {change}" for change in unpinned[:MAX_SHOWN]]
    return lines + ([f"not pinned: {more} more (--json names them)"] if more > 0 else [])
