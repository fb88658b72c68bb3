"""kimbox stop: shut a box down and save it."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import report, settings
from kimbox.cli.save import Keep, Sign, store_of, summary_of_save

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The store. Default: `store` of the spec, else the folder saves/NAME of kimbox on this host.",
    ),
]


def stop(
    box: target.Name = None, file: target.File = None, url: Url = None, keep: Keep = None, sign: Sign = None
) -> None:
    """Shut a box down and save it in a store: `kimbox halt` and `kimbox save` in one.

    `kimbox start URL` starts it again from there, on any host; `kimbox start` on this one. The store is tried before
    the box is shut down. If the save fails, the box stays halted with its disk, and the same command saves it.

    A box that is halted already is saved as it is.

    \b
    Examples:
      kimbox stop
      kimbox stop study --url sftp://example.org/saves/study
      kimbox stop study --keep 5
    """
    from kimbox.actions import lifetime, service
    from kimbox.actions import stop as stopping
    from kimbox.actions.saves import candidates
    from kimbox.actions.saves import save as saving
    from kimbox.files import size_words

    machine = target.machine(box, file)
    place = url or store_of(box, file) or str(candidates.default_store(machine))
    candidates.check_before_halt(machine, place)
    before = stopping.halt(machine, timeout_s=settings.timeout_s or stopping.HALT_TIMEOUT_S)
    service.rest(machine)
    done = saving.save(saving.SaveRequest(machine, place, keep, key=sign))
    lifetime.close(machine)
    result = {"name": machine.name, "before": str(before), "url": done.url, "uploaded_bytes": done.uploaded_bytes}
    text = f"{machine.name} is stopped, and saved as number {done.manifest.number} in {done.url}: "
    report("stop", result | summary_of_save(done.manifest), f"{text}{size_words(done.uploaded_bytes)} uploaded")
