"""kimbox extend: move the end of the lifetime of a box."""

from __future__ import annotations

from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.options import seconds_of
from kimbox.cli.output import report

To = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="DURATION", help="New remaining lifetime, such as 12h or 2d. Default: the whole lifetime."
    ),
]


def extend(box: target.Name = None, file: target.File = None, to: To = None) -> None:
    """Move the end of the lifetime of a box: it ends DURATION from now. At the end it is shut down and saved.

    A box has at most a week from now, unless `lifetime` of its spec is longer. A box that has no lifetime gets one. If
    the lifetime has ended, `kimbox start` begins a new one.

    The JSON has: name, ends_at (in UTC), remaining_s, ended_at and failure.

    \b
    Examples:
      kimbox extend
      kimbox extend study --to 2d
    """
    import time

    from kimbox.actions import lifetime
    from kimbox.machine.life import duration_words
    from kimbox.spec.notify import MAX_LIFETIME_S

    length_s = None if to is None else int(seconds_of("--to", to, max_days=MAX_LIFETIME_S // 86400))
    machine = target.machine(box, file)
    extended = lifetime.extend(machine, length_s)
    now_s = time.time()
    text = f"{machine.name} ends in {duration_words(extended.remaining_s(now_s))}, at {extended.ends_at}"
    report("extend", {"name": machine.name, **extended.as_json(now_s)}, text)
