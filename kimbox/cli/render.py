"""kimbox render: write a Vagrantfile that makes a box without kimbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import report
from kimbox.errors import UsageError

Boxes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BOX]...",
        help="Boxes, or their spec files. Default: the spec of this folder.",
        autocompletion=completers.boxes_or_specs,
    ),
]


AllowLocal = Annotated[
    bool, typer.Option("--allow-local", help="Pack repositories of this machine (file:) outside of the spec's folder.")
]


def render(
    boxes: Boxes = None,
    file: target.File = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the files.")] = Path(
        "vagrant"
    ),
    box: Annotated[
        str | None,
        typer.Option("--box", metavar="FILE|URL", help="The image for Vagrant, in place of FOLDER/NAME.box."),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option("--digest", metavar="SHA256", help="With --box: the digest that Vagrant requires of that file."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare, and write nothing. Exit status 3 if a file differs."),
    ] = False,
    allow_local: AllowLocal = False,
) -> None:
    """Write a Vagrantfile, and the files that provision its boxes, for libvirt and VirtualBox.

    The user of the folder needs no kimbox. `vagrant up` in the folder makes the box from its image, at the commits of
    the lock, as `kimbox up` does. Later boots provision themselves. Several boxes become several machines. The image is
    FOLDER/NAME.box, unless --box names another file or URL.

    A repository of this machine (`file:`) outside of the spec's folder is packed only after `kimbox lock` or `up` has
    warned of it for this spec, or with --allow-local.

    The same spec and lock give the same files. --check contacts no server. Under VirtualBox, boxes have no scratch
    space and no folders of the host (`mounts`), and the files for VirtualBox are not tested with it.

    \b
    Examples:
      kimbox render
      kimbox render --box https://example.org/study.box --digest sha256:0123...
      kimbox render director.yaml worker.yaml --output site
    """
    from kimbox.actions import vagrant_export

    if digest and not box:
        raise UsageError("--digest requires --box", code="usage", hint="write --box FILE|URL --digest SHA256")
    requests = []
    found = None if boxes else target.several(None, file)
    sources: Sequence[str | None] = boxes or ([member.name for member in found[1]] if found else [None])
    if (box or digest) and len(sources) > 1:
        raise UsageError("--box and --digest require a single box", code="usage", hint="render the boxes alone")
    for source in sources:
        project = target.project(source, found[0] if found else file)
        location = vagrant_export.checked_location(box, output)
        requests.append(vagrant_export.ExportRequest(project, location, _digest(digest), allow_local))
    names = [request.project.name for request in requests]
    result = {"folder": str(output), "machines": names}
    if check:
        vagrant_export.check(requests, output)
        report("render", result | {"written": []}, f"{output} is up to date")
        return
    written = vagrant_export.render(requests, output)
    text = "\n".join(f"wrote {path}" for path in written) or f"{output} is up to date"
    report("render", result | {"written": [str(path) for path in written]}, text)


def _digest(text: str | None) -> str | None:
    from kimbox.spec import rules
    from kimbox.spec.nodes import Fault

    try:
        return rules.digest(text) if text else None
    except Fault as fault:
        raise UsageError(
            f"--digest: {fault.message}", code=fault.code, hint=fault.hint, fields={"option": "--digest"}
        ) from None
