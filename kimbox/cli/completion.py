"""kimbox completion: for the shell."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from kimbox.cli.output import report


class Shell(StrEnum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell")] = Shell.BASH) -> None:
    """Print the script that makes a shell complete kimbox's verbs and options.

    \b
    Examples:
      kimbox completion bash >~/.local/share/bash-completion/completions/kimbox
      kimbox completion fish >~/.config/fish/completions/kimbox.fish
    """
    from typer._completion_shared import get_completion_script

    from kimbox.cli.app import COMPLETE_VARIABLE

    script = get_completion_script(prog_name="kimbox", complete_var=COMPLETE_VARIABLE, shell=str(shell))
    report("completion", {"shell": str(shell), "script": script}, script)
