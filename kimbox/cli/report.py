"""kimbox report: write one page about a box, for a person to read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.author_keys import public_keys
from kimbox.cli.output import report as print_result
from kimbox.errors import StateError, UsageError

if TYPE_CHECKING:
    from kimbox.actions.reporting.subjects import Subject

#: Suffixes of the files of packages. A file of another name is a package, too, if it is given with a folder.
PACKAGE_SUFFIXES = (".box", ".ova", ".qcow2", ".raw", ".img", ".gz", ".bz2", ".xz", ".zst")

Word = Annotated[
    str | None,
    typer.Argument(
        metavar="[BOX|PACKAGE]",
        help="Name of the box, or file of a package. Default: the spec of this folder, or of the nearest one above.",
        autocompletion=completers.boxes,
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="With a package: an ssh public key, or a file of public keys. One of them must have signed the package.",
    ),
]


def report(
    box: Word = None,
    file: target.File = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page. Default: NAME.report.html.")
    ] = None,
    key: Keys = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build the image again, and compare it byte for byte, as `kimbox verify`.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing page.")] = False,
) -> None:
    """Write a page about a box or a package: one HTML file, without scripts, that needs no network.

    The page has: image, lock, each repository with commit and date, all packages, and what was changed by hand; whether
    the box still is what it was (digests, packages on the disk, audit with evidence, past audits); the timeline of its
    last start; and how to make it again in three commands. Spec and lock are in the page. It can be printed.

    A box is described by the record of its machine and by its disk. If there is no machine, the page is about the image
    of the spec. An open box that runs is audited over ssh, which takes some seconds. Of a sealed box the page has the
    last audit that it sent. A package is unpacked, and its disk is read. What the files in a package say is a claim of
    its author, unless --key verifies the signature.

    The JSON has file (the path of the page), and content (everything that the page shows).

    \b
    Examples:
      kimbox report
      kimbox report openkim-dev -o appendix.html --verify
      kimbox report ./study-libvirt.box --key release.pub
    """
    from kimbox.actions.reporting.facts import facts_of
    from kimbox.files import write_atomic
    from kimbox.log import log
    from kimbox.render.report import render_report

    package = Path(box) if box is not None and _is_package(box) else None
    if package and (file is not None or verify):
        raise UsageError("--file and --verify are not for a package", code="usage", hint="pass the package alone")
    if key and not package:
        raise UsageError("--key is for a package", code="usage", hint="pass the file of the package")
    page = output or Path(f"{package.name if package else target.machine(box, file).name}.report.html")
    if not force:
        _refuse_existing(page)
    if package:
        from kimbox.actions.reporting import subjects

        subject = subjects.of_package(package, public_keys(key or []))
    else:
        subject = _of_box(box, file, verify=verify)
    with log.step("collecting the facts"):
        content = facts_of(subject)
    write_atomic(page, render_report(content))
    lines = [f"wrote {page}: the {content['kind']} {content['name']}, {len(content['packages'])} packages"]
    lines += [f"FAIL {check['name']}: {check['evidence']}" for check in content["checks"] if check["outcome"] == "fail"]
    print_result("report", {"file": str(page), "content": content}, "\n".join(lines))


def _of_box(box: str | None, file: Path | None, *, verify: bool) -> Subject:
    """Returns what the page is about: the machine of a box if there is one, else the image of its spec."""
    from kimbox.actions.reporting import subjects

    machine = target.machine(box, file)
    subject = subjects.of_machine(machine) if machine.exists else subjects.of_image(target.project(box, file))
    return subjects.with_second_build(subject, target.project(box, file, frozen=True)) if verify else subject


def _refuse_existing(page: Path) -> None:
    """Raises StateError if the page exists."""
    if os.path.lexists(page):
        raise StateError(
            f"{page} already exists",
            code="file-exists",
            hint="replace it with --force, or choose another file with --output",
            fields={"path": str(page)},
        )


def _is_package(word: str) -> bool:
    """Whether a word is the file of a package and not the name of a box or the path of a spec."""
    return word.endswith(PACKAGE_SUFFIXES) or ("/" in word and not word.endswith((".yaml", ".yml")))
