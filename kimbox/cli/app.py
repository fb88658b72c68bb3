"""The command line: verbs, global options, and how errors end the program.

Each verb is a function in a module of its own. The module is loaded when the verb is used.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kimbox import paths
from kimbox.cli import afterwards
from kimbox.cli.completers import COMPLETE_VARIABLE
from kimbox.cli.options import hoist, seconds_of, split_global
from kimbox.cli.output import STDOUT, report_error
from kimbox.cli.verbs import GROUPS, VERBS
from kimbox.errors import Interrupted, KimboxError, StateError, UsageError
from kimbox.files import is_full, space_hint
from kimbox.log import log
from kimbox.settings import Settings, settings

#: The global flags that have a letter, which may be combined before the verb, as in `-qv`.
_LETTERS = re.compile("-[qv]+")


#: Verbs of other tools (Vagrant, docker, Lima, virsh) -> the verb of kimbox that does the same.
OTHER_VERBS = {
    "check": "validate", "connect": "ssh", "console": "logs --serial", "copy": "cp", "delete": "destroy",
    "down": "halt", "enter": "ssh", "images": "box list", "info": "status", "kill": "halt --force", "log": "logs",
    "login": "ssh", "ls": "list", "new": "init", "poweroff": "halt", "ps": "list", "reboot": "reload",
    "remove": "destroy", "restart": "reload", "rm": "destroy", "rsync": "cp", "run": "exec", "scp": "cp",
    "shell": "ssh", "show": "status", "shutdown": "halt", "transfer": "cp", "undefine": "destroy", "unpause": "resume",
    "update": "lock --update-all", "upgrade": "lock --update-all", "upload": "cp", "verify-lock": "lock --check",
}  # fmt: skip


class Verbs(TyperGroup):
    """A command group that loads the module of a verb only when the verb is used."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb. Two exceptions that typer would replace are raised as Interrupted and as RuntimeError."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", hint=_after_interrupt()) from None
        except EOFError as error:
            raise RuntimeError("unexpected end of file") from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the verb and its arguments. Raises UsageError, with the most similar verb, if the verb is unknown."""
        if not ctx.resilient_parsing and args and args[0] not in VERBS and not args[0].startswith("-"):
            from kimbox.spec.schema import guess

            meant = OTHER_VERBS.get(args[0])
            similar = f"did you mean {meant}?" if meant else guess(args[0], list(VERBS), list_all=False)
            hint = f"{similar} See `kimbox --help`" if similar else "see `kimbox --help`"
            raise UsageError(f"unknown verb {args[0]}", code="usage", hint=hint, fields={"verb": args[0]})
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns every verb, in the order of the help."""
        return list(VERBS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the groups of the help, with one line for each verb."""
        width = max(map(len, VERBS))
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(width), summary) for verb, (_, summary) in verbs.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Returns the verbs or the options that begin with `incomplete`."""
        from kimbox.cli.completion import Candidate

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        summaries = {verb: summary for verbs in GROUPS.values() for verb, (_, summary) in verbs.items()}
        return [Candidate(verb, text) for verb, text in summaries.items() if verb.startswith(incomplete)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns the command of a verb; None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"kimbox.cli.{VERBS[cmd_name]}")
        verb_app = getattr(module, "group", None)  # a verb with actions that have their own arguments
        if verb_app is None:
            verb_app = typer.Typer(add_completion=False, rich_markup_mode=None)
            verb_app.command(cmd_name)(getattr(module, VERBS[cmd_name]))
        command = typer.main.get_command(verb_app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_given: bool) -> None:
    from kimbox import __version__

    if is_given:
        print(f"kimbox {__version__}")
        raise typer.Exit


@app.callback()
def kimbox(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors on stderr.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print details, and the output of other programs.")
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="Print no colours. The environment variable NO_COLOR does the same.")
    ] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="Timeout of a boot, for example 5m or 90s.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Declarative, reproducible boxes: one YAML spec becomes a locked, provisioned virtual machine.

    BOX is the name of a machine that exists, or of a box that ships with kimbox. Without BOX, a verb uses the spec of
    the current folder or of the nearest folder above (kimbox.yaml, or -f FILE).

    \b
    Examples:
      kimbox up openkim-dev
      kimbox init && kimbox up
      kimbox exec -- cat /etc/os-release

    Exit codes: 0 done; 1 failed; 2 usage; 3 invalid spec, lock, box, digest or signature; 4 the guest failed (`exec`
    exits with the status of its command); 5 not found or wrong state; 6 a program is missing on the host; 70 a bug in
    kimbox; 130 interrupted.
    """
    # The options are declared for the help and for the errors of the parser. `run` has already read their values.


def _configure(arguments: list[str]) -> None:
    """Sets the settings of this run. This happens before the parser runs, because its errors depend on the settings.

    Raises UsageError, after the settings are set, if --timeout is not a duration.
    """
    front, rest, _ = split_global(arguments)
    while rest and _LETTERS.fullmatch(rest[0]):
        front += [f"-{letter}" for letter in rest.pop(0)[1:]]
    if rest[:1] == ["--"]:
        del rest[0]
    new = Settings(
        json="--json" in front,
        quiet=bool({"-q", "--quiet"} & {*front}),
        verbose=bool({"-v", "--verbose"} & {*front}),
        color="--no-color" not in front and "NO_COLOR" not in os.environ,
        verb=rest[0] if rest and not rest[0].startswith("-") else "",
        after=rest[rest.index("--") + 1 :] if "--" in rest else None,
    )
    try:
        new.timeout_s = _timeout(front)
    finally:
        settings.replace(new)


def _timeout(front: list[str]) -> float | None:
    """Returns the value of the last --timeout, in seconds. Raises UsageError if it is not a duration."""
    timeout = None
    for word, next_word in itertools.pairwise([*front, ""]):
        option, equals, value = word.partition("=")
        if option == "--timeout":
            timeout = value if equals else next_word
    return None if timeout is None else seconds_of("--timeout", timeout)


def run(arguments: list[str]) -> int:
    """Runs kimbox with these arguments. Prints every error, and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name can have bytes that are not valid text
            is_for_programs = stream is sys.stdout and not stream.isatty()
            stream.reconfigure(errors="kimbox.bytes" if is_for_programs else "backslashreplace")
    try:
        _configure(arguments)
        try:
            code = _call(hoist(arguments))
        finally:
            afterwards.check(settings.verb)
        sys.stdout.flush()
    except KimboxError as error:
        return _report(error)
    except (KeyboardInterrupt, typer.Abort):
        return _report(Interrupted("interrupted", hint=_after_interrupt()))
    except BrokenPipeError:
        return _discard_stdout()
    except OSError as error:
        return _report_stdout_error(error) or _report(_system_error(error))
    except Exception as error:
        return _report(_usage_error(error) or _bug(error))
    return code


def _call(arguments: list[str]) -> int:
    """Calls the verb, or prints the completions that a shell requests. Returns the exit code."""
    if COMPLETE_VARIABLE in os.environ:
        from kimbox.cli.completion import print_completions

        return print_completions(app)
    if not arguments:
        with contextlib.redirect_stdout(sys.stderr):
            app(["--help"], prog_name="kimbox", standalone_mode=False)
        return UsageError.exit_code
    code = app(arguments, prog_name="kimbox", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _report(error: KimboxError) -> int:
    """Prints an error. Returns its exit code."""
    try:
        report_error(error)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError as stdout_error:
        _report_stdout_error(stdout_error)
    return error.exit_code


def _discard_stdout() -> int:
    """Replaces stdout by /dev/null, so that Python's flush at exit does not fail. Returns the exit code.

    The reader of a pipe may have ended, as in `kimbox list | head`.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _report_stdout_error(error: OSError) -> int:
    """Reports an error of stdout itself (a full disk behind `>file`) and returns 1. Returns 0 for any other error."""
    try:
        sys.stdout.flush()
        is_stdout = error.filename == STDOUT
    except OSError:
        is_stdout = True
    if not is_stdout:
        return 0
    print(f"kimbox: error: stdout cannot be written: {error.strerror}", file=sys.stderr)
    return _discard_stdout()


def _usage_error(error: Exception) -> UsageError | None:
    """Returns the error as a UsageError if the parser raised it, else None."""
    if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context else f"kimbox {settings.verb or ''}".strip()
    hint = f"see `{command} --help`"
    if settings.verb == "exec" and settings.after is None:
        hint = "write the program and its arguments after `--`: kimbox exec [BOX] -- COMMAND [ARG]..."
    return UsageError(error.format_message(), code="usage", hint=hint)


def _after_interrupt() -> str | None:
    """Returns the hint for a verb whose machine keeps running after Ctrl-C; None for other verbs."""
    if settings.verb in ("up", "reload", "provision"):
        return "if the box has started, it keeps running: the same command waits for it, `kimbox halt` stops it"
    return None


def _system_error(error: OSError) -> KimboxError:
    """Returns the KimboxError for an error of the operating system (no space, no permission), which is not a bug."""
    if log.verbose:
        traceback.print_exception(error)
    if isinstance(error, FileNotFoundError) and not _current_folder_exists():
        return StateError(
            "the current folder was removed", code="file-not-found", hint="change to a folder that exists"
        )
    where = f"{error.filename}: " if error.filename else ""
    hint = space_hint(Path(str(error.filename or paths.home()))) if is_full(error) else None
    return KimboxError(
        f"{where}{error.strerror or repr(error)}",
        code="no-space" if is_full(error) else "failed",
        hint=hint or "--verbose shows where it happened",
        fields={"path": str(error.filename)} if error.filename else None,
    )


def _current_folder_exists() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return False
    return True


class Bug(KimboxError):
    """An exception that kimbox does not expect. The cause is kimbox itself, not the user, the guest or the host."""

    exit_code = 70
    code = "bug"


def _bug(error: Exception) -> Bug:
    """Writes the traceback to a file for a bug report. Returns the error; its hint names the file."""
    try:
        handle, path = tempfile.mkstemp(prefix="kimbox-bug-", suffix=".txt")
        with os.fdopen(handle, "w", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return Bug(f"a bug in kimbox: {error!r}", hint="please report it with the lines above")
    return Bug(f"a bug in kimbox: {error!r}", hint=f"please report it with {path}")
