"""kimbox job: run a folder as a job in a box. Each action is a module of kimbox.cli.jobs, loaded when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

from kimbox.errors import UsageError

#: The actions, in the order of the help, each with one line about it. Its function has the name of its module.
ACTIONS = {
    "init": "Write the folder of a job to start from",
    "pack": "Write the disk of a job from its folder",
    "extract": "Extract the files of a job's disk",
    "run": "Run a folder as a job in a machine of its own",
    "recover": "Write the results of jobs whose kimbox was killed",
    "rerun": "Run a job again, and compare its results",
    "submit": "Submit a job to a pool of HTCondor",
    "watch": "Show the states of submitted jobs until they end",
    "list": "List the submissions",
    "fetch": "Fetch the results of submitted jobs",
    "release": "Run held jobs again",
    "remove": "Remove submitted jobs from the queue",
    "node-config": "Print the configuration of the nodes of a pool",
}

#: Modules whose name is not that of their action.
MODULES = {"list": "submissions", "node-config": "node_config"}


class Actions(TyperGroup):
    """The group of the actions."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns every action, in the order of the help."""
        return list(ACTIONS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns the command of an action; None if there is no such action."""
        if cmd_name not in ACTIONS:
            return None
        name = MODULES.get(cmd_name, cmd_name)
        module = importlib.import_module(f"kimbox.cli.jobs.{name}")
        action_app = typer.Typer(add_completion=False, rich_markup_mode=None)
        action_app.command(cmd_name)(getattr(module, name))
        command = typer.main.get_command(action_app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the action and its arguments. Raises UsageError, with the most similar one, if it is unknown."""
        if not ctx.resilient_parsing and args and args[0] not in ACTIONS and not args[0].startswith("-"):
            from kimbox.spec.schema import guess

            hint = guess(args[0], list(ACTIONS))
            message = f"`kimbox job` has no action {args[0]}"
            raise UsageError(message, code="usage", hint=hint, fields={"verb": args[0]})
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes one line for each action."""
        with formatter.section("Actions"):
            formatter.write_dl(list(ACTIONS.items()))

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Returns the actions or options that begin with `incomplete`."""
        from kimbox.cli.completion import Candidate

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [Candidate(name, text) for name, text in ACTIONS.items() if name.startswith(incomplete)]


group = typer.Typer(cls=Actions, add_completion=False, rich_markup_mode=None)


@group.callback()
def job() -> None:
    """Run the folder of a job in a box. Pack it into a disk, and extract its results.

    The folder has the executable file `run-job`, and what it needs, usually in `input`. A box that is started for a job
    mounts the disk at /mnt/user and runs /mnt/user/run-job as root. The results are the files in /mnt/user/output.

    \b
    Examples:
      kimbox job init DIR
      kimbox job run DIR --box openkim-dev --output results
      kimbox job rerun results/job.json
      kimbox job submit DIR --box openkim-dev && kimbox job watch && kimbox job fetch
      kimbox job pack DIR job.raw
      kimbox job extract job.raw results
    """
