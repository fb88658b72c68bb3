"""The command line: its verbs, the global options, and what becomes of errors.

Each verb is a function in a module of its own, which is loaded when the verb is used.
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
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kimbox.cli.completers import COMPLETE_VARIABLE
from kimbox.cli.output import STDOUT, report_error
from kimbox.cli.verbs import GROUPS, VERBS
from kimbox.errors import Interrupted, KimboxError, StateError, UsageError
from kimbox.files import is_full
from kimbox.log import log
from kimbox.settings import Settings, settings

#: Options that are accepted before and after the verb. The value: whether the option takes an argument.
GLOBAL_OPTIONS = {
    "--json": False, "--quiet": False, "-q": False, "--verbose": False, "-v": False, "--no-color": False,
    "--timeout": True,
}  # fmt: skip

#: The global flags that have a letter, which may be combined before the verb, as in `-qv`.
_LETTERS = re.compile("-[qv]+")


class Verbs(TyperGroup):
    """A group that loads a verb's module only when that verb is used."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb. Two exceptions that typer would replace are raised as Interrupted and as RuntimeError."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", hint=_after_interrupt()) from None
        except EOFError as error:
            raise RuntimeError("unexpected end of file") from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb and what follows it. Raises UsageError with the nearest one if there is no such verb."""
        if not ctx.resilient_parsing and args and args[0] not in VERBS and not args[0].startswith("-"):
            from kimbox.spec.schema import guess

            near = guess(args[0], list(VERBS), list_all=False)
            hint = f"{near} See `kimbox --help`" if near else "see `kimbox --help`"
            raise UsageError(f"there is no verb {args[0]}", hint=hint)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Every verb."""
        return list(VERBS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the groups of the help, one line per verb."""
        width = max(map(len, VERBS))
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(width), summary) for verb, (_, summary) in verbs.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The verbs or the options that begin with `incomplete`."""
        from kimbox.cli.completion import Candidate

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        summaries = {verb: summary for verbs in GROUPS.values() for verb, (_, summary) in verbs.items()}
        return [Candidate(verb, text) for verb, text in summaries.items() if verb.startswith(incomplete)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a verb, or None."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"kimbox.cli.{VERBS[cmd_name]}")
        one = typer.Typer(add_completion=False, rich_markup_mode=None)
        options = getattr(module, "CONTEXT", None)
        one.command(cmd_name, context_settings=options)(getattr(module, VERBS[cmd_name]))
        command = typer.main.get_command(one)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    from kimbox import __version__

    if asked:
        print(f"kimbox {__version__}")
        raise typer.Exit


@app.callback()
def kimbox(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Details, and the output of programs.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="How long a boot may take (5m, 90s).")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Declarative, reproducible boxes: one YAML spec becomes a locked, provisioned virtual machine.

    A verb without a name means the spec of this folder (kimbox.yaml, or -f FILE); a name means the machine of that
    name or, at its first `up`, the box of that name that ships with kimbox.

    \b
    Examples:
      kimbox up openkim-dev
      kimbox init && kimbox up
      kimbox exec -- cat /etc/os-release

    Exit codes: 0 done; 1 failed; 2 usage; 3 bad spec, lock or box; 4 the guest failed (exec passes the command's
    status through); 5 not found or wrong state; 6 a program is missing on the host; 70 a bug in kimbox;
    130 interrupted.
    """
    # The options are declared for the help and the parser's errors; `run` has read their values before.


def _duration(text: str) -> float:
    from kimbox.spec.nodes import Fault
    from kimbox.spec.units import duration

    try:
        return float(duration(text))
    except Fault as fault:
        raise UsageError(f"--timeout: {fault}", hint="write it as 90s, 5m or 2h") from None


def hoist(arguments: list[str]) -> list[str]:
    """Moves global options to the front. Arguments after `--` belong to another program and stay where they are.

    So do, without `--`, the arguments after the program of `exec`: the parser refuses an option there.
    Raises UsageError if an option lacks its value.
    """
    front, rest, incomplete = _split(arguments)
    if incomplete:
        raise UsageError(f"{incomplete} lacks its value", hint=f"write it as {incomplete} 5m or {incomplete}=90s")
    return front + rest


def _split(arguments: list[str]) -> tuple[list[str], list[str], str | None]:
    """The global options with their values, the other arguments, and the option that lacks its value, if any."""
    front: list[str] = []
    rest: list[str] = []
    names: list[str] = []
    incomplete = None
    words = list(arguments)
    while words:
        word = words.pop(0)
        option = word.split("=", 1)[0]
        if word == "--" or (names[:1] == ["exec"] and len(names) == 3):
            rest += [word, *words]
            break
        if option not in GLOBAL_OPTIONS:
            rest.append(word)
            names += [] if word.startswith("-") else [word]
        elif not GLOBAL_OPTIONS[option] or "=" in word:
            front.append(word)
        elif words and not words[0].startswith("-") and words[0] not in VERBS:
            front += [word, words.pop(0)]
        else:
            incomplete = option
    return front, rest, incomplete


def _configure(arguments: list[str]) -> None:
    """Sets the settings of this run, before the parser runs, because its errors depend on them.

    Raises UsageError, with the settings in place, if --timeout is not a duration.
    """
    front, rest, _ = _split(arguments)
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
    """The value of the last --timeout, in seconds. Raises UsageError if it is not a duration."""
    found = None
    for word, following in itertools.pairwise([*front, ""]):
        option, equals, value = word.partition("=")
        if option == "--timeout":
            found = value if equals else following
    return None if found is None else _duration(found)


def run(arguments: list[str]) -> int:
    """Runs kimbox with these arguments. Prints every error, and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        _configure(arguments)
        code = _call(hoist(arguments))
        sys.stdout.flush()
    except KimboxError as error:
        return _report(error)
    except (KeyboardInterrupt, typer.Abort):
        return _report(Interrupted("interrupted", hint=_after_interrupt()))
    except BrokenPipeError:
        return _no_reader()
    except OSError as error:
        return _no_room(error) or _report(_refused(error))
    except Exception as error:
        return _report(_usage(error) or _bug(error))
    return code


def _call(arguments: list[str]) -> int:
    """Calls the verb, or answers a shell that asks for completions. Returns the exit code."""
    if COMPLETE_VARIABLE in os.environ:
        from kimbox.cli.completion import answer

        return answer(app)
    if not arguments:
        with contextlib.redirect_stdout(sys.stderr):
            app(["--help"], prog_name="kimbox", standalone_mode=False)
        return UsageError.exit_code
    code = app(arguments, prog_name="kimbox", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _report(error: KimboxError) -> int:
    try:
        report_error(error)
        sys.stdout.flush()
    except BrokenPipeError:
        _no_reader()
    except OSError as refused:
        _no_room(refused)
    return error.exit_code


def _no_reader() -> int:
    """stdout is closed, as in `kimbox list | head`: keeps Python from flushing it at exit. Returns the exit code."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _no_room(error: OSError) -> int:
    """Reports an error of stdout itself (a full disk behind `>file`) and returns 1; returns 0 for any other error."""
    try:
        sys.stdout.flush()
        is_stdout = error.filename == STDOUT
    except OSError:
        is_stdout = True
    if not is_stdout:
        return 0
    print(f"kimbox: error: stdout cannot be written: {error.strerror}", file=sys.stderr)
    return _no_reader()


def _usage(error: Exception) -> UsageError | None:
    """The error as a UsageError if the parser raised it, else None."""
    if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
        return None
    context = getattr(error, "ctx", None)
    hint = f"see `{context.command_path} --help`" if context else "see `kimbox --help`"
    if settings.verb == "exec" and settings.after is None:
        hint = "the program and its arguments stand after `--`: kimbox exec [BOX] -- COMMAND [ARG]..."
    return UsageError(error.format_message(), hint=hint)


def _after_interrupt() -> str | None:
    if settings.verb in ("up", "reload", "provision"):
        return "a box that has started goes on by itself: the same command waits for it again, `kimbox halt` stops it"
    return None


def _refused(error: OSError) -> KimboxError:
    """The error for what the operating system refuses (no space, no permission), which is not a bug."""
    if log.verbose:
        traceback.print_exception(error)
    if isinstance(error, FileNotFoundError) and not _is_anywhere():
        return StateError("the current folder is there no more", hint="change to one that is, and try again")
    where = f"{error.filename}: " if error.filename else ""
    hint = "make room, or let $KIMBOX_HOME name a folder on a larger disk" if is_full(error) else None
    return KimboxError(f"{where}{error.strerror or repr(error)}", hint=hint or "--verbose shows where it happened")


def _is_anywhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return False
    return True


class Bug(KimboxError):
    """An unexpected exception: neither the user, the guest nor the host caused it."""

    exit_code = 70
    code = "bug"


def _bug(error: Exception) -> Bug:
    """Writes the traceback to a file for a bug report. The hint names the file."""
    try:
        handle, path = tempfile.mkstemp(prefix="kimbox-bug-", suffix=".txt")
        with os.fdopen(handle, "w", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return Bug(f"a bug in kimbox: {error!r}", hint="please report it with the lines above")
    return Bug(f"a bug in kimbox: {error!r}", hint=f"please report it with {path}")
