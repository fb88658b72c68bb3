"""The command line as a whole. Each verb is a function in a module of its own, loaded when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import sys
import tempfile
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kimbox.cli.output import STDOUT, report_error, settings
from kimbox.errors import Interrupted, KimboxError, StateError, UsageError
from kimbox.files import is_full
from kimbox.log import log

#: Every verb, in the order of the help, and the module that has it as a function.
VERBS = {
    "init": "init", "validate": "validate", "schema": "schema", "lock": "lock", "diff": "diff", "verify": "verify",
    "provenance": "provenance", "build": "build", "maintain": "maintain", "package": "package", "box": "box",
    "render": "render",
    "up": "up", "provision": "provision", "status": "status", "list": "list_", "ssh": "ssh", "exec": "exec_",
    "logs": "logs", "halt": "halt", "reload": "reload", "suspend": "suspend", "resume": "resume",
    "snapshot": "snapshot", "secure": "secure", "audit": "audit", "destroy": "destroy", "ssh-config": "ssh_config",
    "shrink": "shrink", "doctor": "doctor",
    "prune": "prune", "completion": "completion",
}  # fmt: skip

#: Options that are understood before and after the verb; the value tells whether one takes an argument.
GLOBAL_OPTIONS = {
    "--json": False, "--quiet": False, "-q": False, "--verbose": False, "-v": False, "--no-color": False,
    "--timeout": True,
}  # fmt: skip

#: What a shell sets when it asks for completions.
COMPLETE_VARIABLE = "_KIMBOX_COMPLETE"


class Verbs(TyperGroup):
    """A group that loads a verb's module only when that verb is wanted."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb. What typer would swallow or take for something else leaves as what it is."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", hint=_after_interrupt()) from None
        except EOFError as error:
            raise RuntimeError("an end of file that nobody expected") from error

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

    \b
    Exit codes: 0 done; 1 failed; 2 usage; 3 bad spec, lock or box; 4 the guest failed (exec passes the command's
    status through); 5 not found or wrong state; 6 a program is missing on the host; 70 a bug in kimbox;
    130 interrupted.
    """
    settings.json = json
    if timeout is not None:
        settings.timeout_s = _duration(timeout)
    log.configure(quiet=quiet, verbose=verbose, color=not (no_color or "NO_COLOR" in os.environ))


def _duration(text: str) -> float:
    from kimbox.spec.nodes import Fault
    from kimbox.spec.units import duration

    try:
        return float(duration(text))
    except Fault as fault:
        raise UsageError(f"--timeout: {fault}", hint="write it as 90s, 5m or 2h") from None


def hoist(arguments: list[str]) -> list[str]:
    """Puts global options that stand after the verb before it. What follows `--` is somebody else's.

    So is, without `--`, what follows the program of `exec`: an option there is refused, and not taken for ours.
    Raises UsageError if an option lacks its value.
    """
    front: list[str] = []
    rest: list[str] = []
    names: list[str] = []
    words = iter(arguments)
    for word in words:
        option = word.split("=", 1)[0]
        if word == "--" or (names[:1] == ["exec"] and len(names) == 3):
            rest += [word, *words]
        elif option in GLOBAL_OPTIONS:
            front.append(word)
            if GLOBAL_OPTIONS[option] and "=" not in word:
                value = next(words, "-")
                if value.startswith("-") or value in VERBS:
                    raise UsageError(f"{option} lacks its value", hint=f"write it as {option} 5m or {option}=90s")
                front.append(value)
        else:
            rest.append(word)
            names += [] if word.startswith("-") else [word]
    return front + rest


def _take_note(arguments: list[str]) -> None:
    """Settings that must be known before the parser is at work, and for its own errors."""
    rest = list(arguments)
    settings.json, settings.timeout_s = False, None
    while rest and (option := rest[0].split("=", 1)[0]) in GLOBAL_OPTIONS:
        settings.json |= option == "--json"
        del rest[: 2 if GLOBAL_OPTIONS[option] and "=" not in rest[0] else 1]
    if rest[:1] == ["--"]:
        del rest[0]
    settings.verb = rest[0] if rest and not rest[0].startswith("-") else ""
    settings.after = rest[rest.index("--") + 1 :] if "--" in rest else None


def run(arguments: list[str]) -> int:
    """Runs kimbox with these arguments and returns the exit code; every error has been shown."""
    _take_note(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        settings.json |= "--json" in itertools.takewhile(lambda word: word != "--", arguments)  # for hoist's own error
        arguments = hoist(arguments)
        _take_note(arguments)
        code = _call(arguments)
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
    """Has the parser call the verb."""
    if COMPLETE_VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
    elif not arguments:
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
    """Nobody reads what is printed any more, as in `kimbox list | head`: Python must not try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _no_room(error: OSError) -> int:
    """Where it was stdout that took nothing (a full disk behind `>file`): says so, and returns 1; else 0."""
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
    """The parser's own words, if it was the parser that raised the error."""
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
    """What the operating system refuses (no space, no permission) is no bug."""
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
    """Something that is no error of the user, the guest or the host."""

    exit_code = 70
    code = "bug"


def _bug(error: Exception) -> Bug:
    """Writes the traceback to a file, for a report, and says where."""
    try:
        handle, path = tempfile.mkstemp(prefix="kimbox-bug-", suffix=".txt")
        with os.fdopen(handle, "w", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return Bug(f"a bug in kimbox: {error!r}", hint="please report it with the lines above")
    return Bug(f"a bug in kimbox: {error!r}", hint=f"please report it with {path}")
