"""Starts processes. No other module of kimbox does.

Every program gets an argument list (no shell), stdin from /dev/null by default, the locale C.UTF-8, and only a few
environment variables, so that the user's session does not influence a build. The kernel kills a program when kimbox
ends (`die_with_parent`), also after SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kimbox.errors import NO_SPACE, KimboxError, MissingToolError
from kimbox.landlock import limit_ports
from kimbox.streams import ENDING, Copy, is_file, signals_blocked, wait, was_ended

#: Environment variables that a child process gets. Proxies and certificates are necessary to use the network.
PASSED_ENV = (
    "HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip

#: Folders of system programs that are not on an ordinary user's PATH.
SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

#: Program -> the Debian packages that provide it, for the hint if it is missing.
PACKAGE_OF = {
    "qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils",
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "newuidmap": "uidmap",
    "unshare": "util-linux", "git": "git", "ssh": "openssh-client", "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client", "scp": "openssh-client",
    "vagrant": "vagrant vagrant-libvirt", "virsh": "libvirt-clients", "libvirtd": "libvirt-daemon-system",
    "apt-get": "apt", "apt-config": "apt", "gpg": "gpg",
}  # fmt: skip

#: Maximum number of output lines in an error message; the last ones are used.
TAIL_LINES = 15

#: Maximum length of a line of output, in characters. A longer line is passed on in pieces.
MAX_LINE_CHARACTERS = 1 << 16

#: Maximum size of the output of a background process that is read, in bytes.
OUTPUT_BYTES = 1 << 16

_PR_SET_PDEATHSIG = 1


class CommandError(KimboxError):
    """A program failed. `argv` is its command line, `status` how it ended, `tail` the last lines of its output."""

    code = "command-failed"

    def __init__(self, argv: Sequence[str], status: str, tail: str, *, code: str | None = None) -> None:
        self.argv = list(argv)
        self.status = status
        self.tail = tail
        output = f":\n{tail}" if tail else ""
        command = f"the command was: {shlex.join(argv)}"
        is_full = NO_SPACE in tail
        super().__init__(
            f"{argv[0]} {status}{output}",
            code="no-space" if is_full else code,
            hint=f"free some space, then run the same command again; {command}" if is_full else command,
            fields={"program": Path(argv[0]).name},
        )


@dataclass(frozen=True, slots=True)
class Completed:
    """Exit code (negative: the number of the signal) and output of a program."""

    code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.code == 0


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child process: `PASSED_ENV`, the locale C.UTF-8, system folders on PATH, and `extra`."""
    env = {name: os.environ[name] for name in PASSED_ENV if name in os.environ}
    path = [p for p in env.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":") if p]
    env["PATH"] = ":".join(path + [p for p in SYSTEM_PATHS if p not in path])
    env["LC_ALL"] = "C.UTF-8"
    env.update(extra or {})
    return env


def which(program: str) -> str | None:
    """The full path of a program, or None if it is not installed."""
    return shutil.which(program, path=environment()["PATH"])


def require(program: str, why: str | None = None) -> str:
    """The full path of a program. Raises MissingToolError, with the command that installs it, if it is missing.

    `why` is added to the message, in parentheses.
    """
    if path := which(program):
        return path
    package = PACKAGE_OF.get(program)
    raise MissingToolError(
        f"the program {program} is not installed" + (f" ({why})" if why else ""),
        hint=f"sudo apt-get install {package}" if package else "install it; `kimbox doctor` checks all programs",
        fields={"program": program},
    )


def describe_status(code: int) -> str:
    """An exit code, or the signal that killed a program, as text."""
    if code >= 0:
        return f"failed with exit status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def die_with_parent_prefix() -> list[str]:
    """Arguments to put before the command line of a program that a library starts: the program dies with kimbox.

    setpriv(1) sets the parent-death signal. The shell then exits if kimbox died before that. This is faster than a
    preexec_fn, with which each start copies the page tables of this process (3 ms). Raises MissingToolError.
    """
    setpriv = require("setpriv", "child processes are terminated with it when kimbox exits")
    return [setpriv, "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]


def _die_with(parent: int) -> None:
    """In a child process: sets the parent-death signal. Kills the process if its parent is dead already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
    pass_fds: Iterable[int] = (),
    stdout: int | None = None,
    discards: bool = False,
    die_with_parent: bool = True,
) -> Completed:
    """Runs a program, waits for its end, and returns its exit code and output.

    `input` is written to its stdin. `stdout`: an open file that gets its stdout, which is then not returned.
    `discards`: its output is not read, because a guest may have written it, without end. Raises
    MissingToolError if there is no such program, and, with `check`, CommandError (`command-failed`) if its exit code is
    not 0. After `timeout_s` seconds it is killed, and CommandError (`timeout`) is raised with and without `check`.
    """
    args = [str(a) for a in argv]
    args[0] = require(args[0])
    try:
        done = subprocess.run(
            args,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            stdout=subprocess.DEVNULL if discards else subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.DEVNULL if discards else subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment(env),
            cwd=cwd,
            timeout=timeout_s,
            pass_fds=tuple(pass_fds),
            preexec_fn=functools.partial(_die_with, os.getpid()) if die_with_parent else None,
        )
    except subprocess.TimeoutExpired as late:
        printed = (late.stderr or b"").decode("utf-8", "replace")  # bytes, though `text` is true
        raise CommandError(args, f"did not end within {timeout_s:g} s", tail(printed), code="timeout") from None
    if check and done.returncode != 0:
        raise CommandError(args, describe_status(done.returncode), tail(done.stderr or done.stdout or ""))
    return Completed(done.returncode, done.stdout or "", done.stderr or "")


def stream(
    argv: Sequence[str | Path],
    *,
    on_line: Callable[[str], None],
    log: IO[str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Runs a program. Passes each line of its stdout and stderr to `on_line`, and writes it to `log`, immediately.

    Raises MissingToolError, and CommandError (`command-failed`) with the last lines of the output.
    """
    args = [str(a) for a in argv]
    args[0] = require(args[0])
    last: list[str] = []
    with subprocess.Popen(
        args,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(env),
        cwd=cwd,
        preexec_fn=functools.partial(_die_with, os.getpid()),
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            while line := process.stdout.readline(MAX_LINE_CHARACTERS):
                if log:
                    log.write(line)
                    log.flush()
                on_line(line.rstrip("\n"))
                last = [*last[-TAIL_LINES + 1 :], line.rstrip("\n")]
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise CommandError(args, describe_status(process.returncode), "\n".join(last))


def attached(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    no_input: bool = False,
    on_signal: Callable[[int], bool] | None = None,
) -> int:
    """Runs a program (ssh, an editor) on kimbox's own stdin, stdout and stderr. Returns its exit code.

    A program killed by signal N returns 128 + N. The program gets the user's whole environment. `no_input`: its stdin
    is /dev/null.

    SIGHUP and SIGTERM end the program. SIGINT does not: the terminal sends it to both. With `on_signal`, each of them
    calls that function in a thread. It ends what the program runs elsewhere, and returns whether it did. A second
    signal does not wait for that. Raises OSError (`filename` is `stdout`) if stdout is a file that cannot be written.
    """
    args = [str(a) for a in argv]
    args[0] = require(args[0])
    with signals_blocked() as ending:
        process = subprocess.Popen(
            args,
            cwd=cwd,
            stdin=subprocess.DEVNULL if no_input else None,
            stdout=subprocess.PIPE if is_file(1) else None,
            preexec_fn=functools.partial(_unblock, os.getpid()),
        )
        copy = Copy(process.stdout, process.kill) if process.stdout else None
        received = wait(process, ending, on_signal)
        if copy:
            received = copy.end(ending, received)
        if copy and copy.error:
            if on_signal:
                on_signal(signal.SIGTERM)
            raise OSError(copy.error.errno, copy.error.strerror, "stdout")
    code = process.returncode
    if received and was_ended(code):
        return 128 + received
    return code if code >= 0 else 128 - code


def _unblock(parent: int) -> None:
    """In a child process: undoes `signals_blocked`, and sets the parent-death signal."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, signal.SIGCHLD})
    _die_with(parent)


def detach(
    argv: Sequence[str | Path],
    *,
    log: Path,
    pass_fds: Iterable[int] = (),
    cwd: Path = Path("/"),
    connects_to: frozenset[int] | None = None,
    dies_with_parent: bool = False,
    env: Mapping[str, str] | None = None,
) -> Callable[[], int | None]:
    """Starts a program that continues after kimbox ends, in its own session. Its output is written to the file `log`.

    `connects_to`: the TCP ports to which the program may connect (kimbox/landlock.py); None: all. `dies_with_parent`:
    it does not continue after kimbox, also if kimbox is killed. `env`: more environment variables. Returns a function
    that returns the exit code, or None while the program runs. Raises KimboxError if the ports cannot be limited.
    """
    args = [str(a) for a in argv]
    args[0] = require(args[0])
    before_start = None if connects_to is None else functools.partial(limit_ports, connects_to)
    if dies_with_parent:
        before_start = functools.partial(_die_with, os.getpid())
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                args,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(env),
                cwd=cwd,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
                preexec_fn=before_start,
            )
        except subprocess.SubprocessError as error:  # `limit_ports` failed
            raise KimboxError(f"the TCP ports of {args[0]} cannot be limited: {error}", code="command-failed") from None
    return process.poll


class BackgroundProcess:
    """A program that `background` started."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        #: Its process id.
        self.pid = process.pid

    def code(self) -> int | None:
        """Its exit code (negative: the number of the signal), or None while it runs."""
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Waits for its end, and returns its exit code. Raises KimboxError (`timeout`) after `timeout_s` seconds."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            program = f"{self._process.args!r:.60}"
            raise KimboxError(f"{program} does not end within {timeout_s:g} s", code="timeout") from None

    def output(self) -> str:
        """The start of its stdout and stderr, at most OUTPUT_BYTES."""
        # The file offset belongs to the program.
        return os.pread(self._log.fileno(), OUTPUT_BYTES, 0).decode(errors="replace")


@contextlib.contextmanager
def background(argv: Sequence[str | Path]) -> Iterator[BackgroundProcess]:
    """Runs a program in the background of the block. It is killed at the end of the block, if it still runs."""
    args = [require(str(argv[0])), *map(str, argv[1:])]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            preexec_fn=functools.partial(_die_with, os.getpid()),
        )
        try:
            yield BackgroundProcess(process, log)
        finally:
            process.kill()
            process.wait()


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])
