"""kimbox render: what Vagrant needs to make boxes, for those who have no kimbox."""

from __future__ import annotations

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
        help="Boxes, or files of their specs. Default: the spec of this folder",
        autocompletion=completers.boxes_or_specs,
    ),
]


def render(
    boxes: Boxes = None,
    file: target.File = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")] = Path(
        "vagrant"
    ),
    box: Annotated[
        str | None,
        typer.Option("--box", metavar="FILE|URL", help="Where Vagrant finds the image, in place of FOLDER/NAME.box."),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option("--digest", metavar="SHA256", help="With --box: what Vagrant checks that file against."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare: exit status 3 where a file is not what would be written.")
    ] = False,
) -> None:
    """Write a Vagrantfile, and what provisions its boxes, for libvirt and VirtualBox.

    Where the folder is used no kimbox is needed: `vagrant up` there makes the box from its image, at the commits of the
    lock, in the way `kimbox up` does; later boots provision themselves. Several boxes become several machines of one
    Vagrantfile. The image is FOLDER/NAME.box, unless --box names another place.

    The same spec and lock give the same files. --check writes nothing and asks no server. Under VirtualBox
    boxes have no scratch space, and what is rendered for it has never been run.

    \b
    Examples:
      kimbox render
      kimbox render --box https://example.org/study.box --digest sha256:0123...
      kimbox render director.yaml worker.yaml --output site
      kimbox render --check
    """
    from kimbox.actions import vagrant_export

    if (box or digest) and len(boxes or []) > 1:
        raise UsageError("--box and --digest are about one box", hint="render the boxes one by one")
    if digest and not box:
        raise UsageError("--digest belongs to --box", hint="write --box FILE|URL --digest SHA256")
    requests, given = [], [*(boxes or []), *([] if boxes else [None])]
    for named in given:
        project = target.project(named, file)
        location = vagrant_export.checked_location(box, output)
        requests.append(vagrant_export.ExportRequest(project, location, _digest(digest)))
    names = [request.project.name for request in requests]
    result = {"folder": str(output), "machines": names}
    if check:
        vagrant_export.check(requests, output)
        report("render", result | {"written": []}, f"{output} stands")
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
        raise UsageError(f"--digest: {fault.message}", hint=fault.hint) from None
