"""kimbox completion: the completion script of a shell, and the completions that the script requests."""

from __future__ import annotations

import contextlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer
from typer._completion_classes import BashComplete, FishComplete, ZshComplete

from kimbox.cli.output import report


class Shell(StrEnum):
    """Shells for which there is a completion script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")] = Shell.BASH) -> None:
    """Print the completion script of a shell. It completes verbs, options, names of boxes and snapshots, and files.

    \b
    Examples:
      kimbox completion bash >~/.local/share/bash-completion/completions/kimbox
      kimbox completion fish >~/.config/fish/completions/kimbox.fish
    """
    from typer._completion_shared import get_completion_script

    from kimbox.cli.completers import COMPLETE_VARIABLE

    script = get_completion_script(prog_name="kimbox", complete_var=COMPLETE_VARIABLE, shell=str(shell))
    report("completion", {"shell": str(shell), "script": script}, script, is_file=True)


@attrs.frozen
class Candidate:
    """A word that completes the command line, with the attributes that typer requires."""

    value: str
    help: str | None = None
    type: str = "plain"


class _GlobalOptions:
    """Moves global options in front of the verb, because typer accepts them only there."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the complete words after `kimbox`, and the beginning of the next word."""
        from kimbox.cli.options import hoist
        from kimbox.settings import settings

        words, incomplete = super().get_completion_args()  # type: ignore[misc]
        settings.after = words[words.index("--") + 1 :] if "--" in words else None
        return hoist(words), incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[Any]:
        """Returns the candidates of the verb, with the global options."""
        from kimbox.cli.options import GLOBAL_OPTIONS

        candidates: list[Any] = list(super().get_completions(args, incomplete))  # type: ignore[misc]
        if incomplete.startswith("-") and "--" not in args:
            used = {item.value for item in candidates} | set(args)
            candidates += [Candidate(o) for o in GLOBAL_OPTIONS if o.startswith(incomplete) and o not in used]
        return candidates


class _Bash(_GlobalOptions, BashComplete):
    pass


class _Zsh(_GlobalOptions, ZshComplete):
    def format_completion(self, item: Any) -> str:
        """Formats a candidate as typer does, but without rich. Loading rich for the description takes 0.1 s."""
        value = super().format_completion(Candidate(item.value))  # type: ignore[arg-type]
        if not item.help:
            return value
        return f"{value}:{super().format_completion(Candidate(item.help))}"  # type: ignore[arg-type]


class _Fish(_GlobalOptions, FishComplete):
    def format_completion(self, item: Any) -> str:
        """Formats a candidate as typer does, but without rich."""
        return f"{item.value}\t{' '.join(item.help.split())}" if item.help else str(item.value)


def print_completions(app: typer.Typer) -> int:
    """Prints the completions that a shell requests through the environment. Returns the exit code.

    It prints no error, because the user is in the middle of a command line.
    """
    from typer import _completion_classes as classes

    for shell, kind in ((Shell.BASH, _Bash), (Shell.ZSH, _Zsh), (Shell.FISH, _Fish)):
        classes.add_completion_class(kind, str(shell))  # type: ignore[attr-defined]
    try:
        with Path(os.devnull).open("w") as devnull, contextlib.redirect_stderr(devnull):
            app([], prog_name="kimbox", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception:
        return 1
    return 0
