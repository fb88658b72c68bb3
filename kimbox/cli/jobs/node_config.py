"""kimbox job node-config: print the configuration of the nodes of a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli.output import printable, report


def node_config(
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FOLDER", help="Write the configuration and its program to a new folder."),
    ] = None,
) -> None:
    """Print what an administrator of a pool of HTCondor installs on its nodes.

    The configuration has a startd cron. Every hour it boots a tiny guest, and the node then advertises HasKimboxVM,
    KimboxAccelerator (kvm, tcg or none) and KimboxQemu. A job of `kimbox job submit` avoids nodes whose HasKimboxVM is
    false. It is also where the nodes keep images.

    The JSON has: configuration, and with --output path.

    \b
    Examples:
      kimbox job node-config
      kimbox job node-config --output for-nodes
    """
    from kimbox.jobs.backends.htcondor import nodeconfig
    from kimbox.jobs.backends.runner import runner
    from kimbox.newfiles import making

    text = nodeconfig.configuration()
    if output is None:
        report("job", {"configuration": text}, text.rstrip())
        return
    with making(output) as work:
        new = work / output.name
        new.mkdir()
        (new / nodeconfig.CONFIGURATION).write_text(text)
        (new / nodeconfig.PROGRAM).write_bytes(runner())
        (new / nodeconfig.PROGRAM).chmod(0o755)
    report("job", {"configuration": text, "path": str(output)}, printable(f"wrote {output}"))
