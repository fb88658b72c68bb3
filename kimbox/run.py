"""The one place that starts processes.

Every program gets an argument list (never a shell), stdin from /dev/null unless given, the C.UTF-8 locale, and an
environment of a few known variables, so that nothing of the user's session leaks into a build. A program dies
with kimbox (`die_with_parent`), so that kill -9 leaves nothing running.
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
from pathlib import Path
from typing import IO

import attrs

from kimbox.errors import KimboxError, MissingToolError

#: Variables a child process may see. Proxies and certificates are how the machine reaches the network.
PASSED_ENV = (
    "HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip

#: Folders of system programs that an ordinary user's PATH leaves out.
SYSTEM_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

#: Which Debian package brings a program, for the hint of a missing one.
PACKAGE_OF = {
    "qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils",
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "newuidmap": "uidmap",
    "unshare": "util-linux", "git": "git", "ssh": "openssh-client", "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client",
    "vagrant": "vagrant vagrant-libvirt", "virsh": "libvirt-clients", "libvirtd": "libvirt-daemon-system",
    "apt-get": "apt", "apt-config": "apt", "gpg": "gpg",
}  # fmt: skip

#: Lines of output kept for the message of a failure.
TAIL_LINES = 15

_PR_SET_PDEATHSIG = 1


class CommandError(KimboxError):
    """A program ended badly. Carries what was run, how it ended, and the last lines it said."""

    def __init__(self, argv: Sequence[str], status: str, tail: str) -> None:
        self.argv = list(argv)
        self.status = status
        self.tail = tail
        said = f":\n{tail}" if tail else ""
        super().__init__(f"{argv[0]} {status}{said}", hint=f"the command was: {shlex.join(argv)}")


@attrs.frozen
class Completed:
    """How a program ended: exit code (negative: minus the signal), and what it said, as text."""

    code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.code == 0


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child process: `PASSED_ENV`, a fixed locale, system folders on PATH, and `extra`."""
    env = {name: os.environ[name] for name in PASSED_ENV if name in os.environ}
    path = [p for p in env.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":") if p]
    env["PATH"] = ":".join(path + [p for p in SYSTEM_PATHS if p not in path])
    env["LC_ALL"] = "C.UTF-8"
    env.update(extra or {})
    return env


def which(program: str) -> str | None:
    """Full path of a program, or None."""
    return shutil.which(program, path=environment()["PATH"])


def require(program: str, why: str | None = None) -> str:
    """Full path of a program. Raises MissingToolError, with the command that installs it."""
    if found := which(program):
        return found
    package = PACKAGE_OF.get(program)
    hint = f"sudo apt-get install {package}" if package else "install it, or see `kimbox doctor`"
    raise MissingToolError(f"the program {program} is not installed" + (f" ({why})" if why else ""), hint=hint)


def describe_status(code: int) -> str:
    """Tells an exit status from a signal, in words."""
    if code >= 0:
        return f"failed with exit status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def dying_with_us() -> list[str]:
    """What stands before the arguments of a program that a library starts, so that it ends with kimbox.

    setpriv(1) asks for that; then it is looked whether kimbox has died before. A program of its own, because with a
    preexec_fn every start copies the page tables of this process: 3 ms more each. Raises MissingToolError.
    """
    setpriv = require("setpriv", "it ends with kimbox what kimbox has started")
    return [setpriv, "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]


def _die_with(parent: int) -> None:
    """In a child: ends with its parent, even if that has died already."""
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
    die_with_parent: bool = True,
) -> Completed:
    """Runs a program to its end and returns what it said.

    Raises MissingToolError if there is no such program, and, with `check`, CommandError if it fails. A program over
    `timeout_s` is killed and counts as failed either way.
    """
    args = [str(a) for a in argv]
    args[0] = require(args[0])
    try:
        done = subprocess.run(
            args,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(env),
            cwd=cwd,
            timeout=timeout_s,
            pass_fds=tuple(pass_fds),
            preexec_fn=functools.partial(_die_with, os.getpid()) if die_with_parent else None,
        )
    except subprocess.TimeoutExpired:
        raise CommandError(args, f"did not end within {timeout_s:g} s", "") from None
    if check and done.returncode != 0:
        raise CommandError(args, describe_status(done.returncode), tail(done.stderr or done.stdout))
    return Completed(done.returncode, done.stdout, done.stderr)


def stream(
    argv: Sequence[str | Path],
    *,
    on_line: Callable[[str], None],
    log: IO[str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Runs a long program, handing each line of its merged output to `on_line` and to the file `log` as it comes.

    Raises CommandError with the last lines if it fails.
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
            for line in process.stdout:
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


def attached(argv: Sequence[str | Path], *, cwd: Path | None = None) -> int:
    """Runs a program on kimbox's own stdin, stdout and stderr (ssh, an editor); returns its exit code.

    The program has the whole environment of the user. While it runs, Ctrl-C is its business alone.
    """
    args = [str(a) for a in argv]
    args[0] = require(args[0])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = subprocess.run(args, cwd=cwd, preexec_fn=functools.partial(_restore_sigint, os.getpid())).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def _restore_sigint(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _die_with(parent)


def detach(
    argv: Sequence[str | Path], *, log: Path, pass_fds: Iterable[int] = (), cwd: Path = Path("/")
) -> Callable[[], int | None]:
    """Starts a program that outlives kimbox, in a session of its own, its output in the file `log`.

    Returns a function that tells its exit code, or None while it runs.
    """
    args = [str(a) for a in argv]
    args[0] = require(args[0])
    with log.open("wb") as output:
        process = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )
    return process.poll


class Beside:
    """A program that runs beside kimbox, and does not outlive it."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    def code(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        """Waits for its end. Raises KimboxError if that does not come."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise KimboxError(f"{self._process.args!r:.60} does not end within {timeout_s:g} s") from None

    def said(self) -> str:
        """What it has printed so far; no more than a message needs."""
        return os.pread(self._log.fileno(), 1 << 16, 0).decode(errors="replace")  # its offset is the program's own


@contextlib.contextmanager
def beside(argv: Sequence[str | Path]) -> Iterator[Beside]:
    """Runs a program that serves kimbox; it is ended with the block, if it has not by then."""
    args = [str(a) for a in argv]
    args[0] = require(args[0])
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
            yield Beside(process, log)
        finally:
            process.kill()
            process.wait()


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])
