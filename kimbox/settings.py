"""The global options of this run. `kimbox.cli.app` sets them once, before a verb starts; other modules read them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Settings:
    """One field for each global option, the verb, and the arguments after `--`."""

    #: --json: one JSON object on stdout.
    json: bool = False
    #: --quiet: only warnings and errors on stderr.
    quiet: bool = False
    #: --verbose: details, and the output of programs, on stderr.
    verbose: bool = False
    #: False for --no-color, or if NO_COLOR is set.
    color: bool = True
    #: --timeout, in seconds. None if it is not given.
    timeout_s: float | None = None
    #: The verb, or "" if there is none.
    verb: str = ""
    #: The arguments after `--`, which belong to another program; None if there is no `--`.
    after: list[str] | None = None

    def replace(self, new: Settings) -> None:
        """Takes over every value of `new`. Modules keep a reference to `settings`, so the object stays the same."""
        for field in fields(Settings):
            setattr(self, field.name, getattr(new, field.name))


#: The settings of this process.
settings = Settings()
