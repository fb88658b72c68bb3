"""Runs git through GitPython, with its habits contained: a scrubbed environment, no prompts, no hooks, time limits.

The user's own git configuration (credential helpers, insteadOf, proxies) applies, since the host fetches as the user.
What a shell, an outer git or an editor left in the environment does not.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import attrs

from kimbox.errors import KimboxError
from kimbox.log import log
from kimbox.run import dying_with_us, require, tail
from kimbox.spec.urls import GIT_SCHEMES

#: Variables taken out of git's environment, each with what it would do.
SCRUBBED_ENV = {
    "GIT_DIR": "would send every command to the repository of an outer git (hooks set it)",
    "GIT_WORK_TREE": "would make an outer work tree ours",
    "GIT_INDEX_FILE": "would write our index over that of a commit in progress",
    "GIT_PREFIX": "is set in git aliases and shifts relative paths",
    "GIT_COMMON_DIR": "would take refs and objects from another repository",
    "GIT_OBJECT_DIRECTORY": "would store objects outside of the mirror (set while a push is received)",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": "would let a mirror lean on objects that vanish",
    "GIT_QUARANTINE_PATH": "makes git refuse to update refs",
    "GIT_NAMESPACE": "would hide or rename refs",
    "GIT_REPLACE_REF_BASE": "would put other objects in the place of those asked for",
    "GIT_GRAFT_FILE": "would change history",
    "GIT_SHALLOW_FILE": "would cut history",
    "GIT_CEILING_DIRECTORIES": "would change how repositories are found",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM": "would change how repositories are found",
    "GIT_CONFIG_PARAMETERS": "carries the -c options of an outer git",
    "GIT_DEFAULT_HASH": "would make mirrors that no other git of today can read",
    "GIT_ATTR_SOURCE": "would take attributes from a tree of its own",
    "GIT_EXTERNAL_DIFF": "would run a program",
    "GIT_PROXY_COMMAND": "would run a program",
    "GIT_ALLOW_PROTOCOL": "would override protocol.allow below",
    "GIT_PROTOCOL_FROM_USER": "would change which protocols are allowed",
    "GIT_TEMPLATE_DIR": "would put hooks into new mirrors",
    "GIT_LITERAL_PATHSPECS": "would change what paths mean",
    "GIT_GLOB_PATHSPECS": "would change what paths mean",
    "GIT_NOGLOB_PATHSPECS": "would change what paths mean",
    "GIT_ICASE_PATHSPECS": "would change what paths mean",
    "GIT_TRACE": "would mix its output into what we read",
    "GIT_TRACE_CURL": "would write credentials to stderr, which we show",
    "GIT_CURL_VERBOSE": "would write credentials to stderr, which we show",
}

#: Set for every git: never ask on the terminal, never take optional locks.
FIXED_ENV = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}

#: Options of every git.
OPTIONS = (
    "protocol.allow=never",
    *(f"protocol.{name}.allow=always" for name in GIT_SCHEMES),
    "core.hooksPath=/dev/null",  # a hook is a program somebody else wrote
    "core.fsmonitor=false",  # so is this
    "core.logAllRefUpdates=false",
    "gc.auto=0",  # a collector in the background would outlive us and drop what a lock still names
    "maintenance.auto=false",
    "transfer.fsckObjects=true",
    # Old but harmless faults of well-known repositories, which the large hosts let pass as well.
    "fetch.fsck.zeroPaddedFilemode=ignore",
    "fetch.fsck.badTimezone=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.unpackLimit=1",  # one pack, renamed when whole: a kill leaves no commit without its tree
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "submodule.recurse=false",
    "http.lowSpeedLimit=1000",  # bytes/s; below it for a minute, a server counts as dead
    "http.lowSpeedTime=60",
    "advice.detachedHead=false",
    "init.defaultBranch=main",
)

#: Local commands answer within this many seconds; transfers have limits of their own.
LOCAL_TIMEOUT_S = 120

#: No answer of git that is kept in memory is larger.
MAX_OUTPUT_BYTES = 64 << 20

#: A line of stderr is no longer, in bytes; of a longer one the end is kept.
MAX_LINE_BYTES = 4096

#: stderr kept for messages, in bytes.
MAX_STDERR_BYTES = 64 << 10

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_LINE_END = re.compile(rb"[\r\n]")
_OVERWRITTEN = re.compile(rb"^[^\n]*\r(?!\n)", re.MULTILINE)


class GitError(KimboxError):
    """git failed, or a repository does not hold what it was said to. `said` is git's own last lines."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        fields: Mapping[str, str] | None = None,
        said: str = "",
    ) -> None:
        super().__init__(message, code=code, hint=hint, fields=fields)
        self.said = said


class GoneError(GitError):
    """The server answers, and has the commit or the ref no more."""


class SignatureError(GitError):
    """A commit is not signed by a key that the spec names."""


@attrs.frozen
class Answer:
    """How a git ended and what it wrote."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """stdout without surrounding white space."""
        return self.stdout.decode(errors="replace").strip()


def redact(text: str) -> str:
    """A URL, or any text with URLs in it, without user names and passwords."""
    return _CREDENTIALS.sub("", text)


def git(
    args: Sequence[str | Path],
    *,
    git_dir: Path | None = None,
    timeout_s: float = LOCAL_TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    check: bool = True,
    on_progress: Callable[[str], None] | None = None,
    file_bytes: int | None = None,
) -> Answer:
    """Runs one git command to its end. Raises GitError if it fails (with `check`) or does not end in time.

    With `file_bytes` neither it nor its helpers can write a file that is larger.
    """
    require("git", "repositories are fetched with it")
    limit = []
    if file_bytes:  # without the signal, the helper that writes says what is wrong before it ends
        limit = [require("prlimit", "it limits git"), f"--fsize={_lowest(file_bytes)}", "env", "--ignore-signal=XFSZ"]
    unset = [word for name in SCRUBBED_ENV if name in os.environ for word in ("-u", name)]
    scrub = ["env", *unset] if unset else []  # GitPython can add to the environment, but not take from it
    options = [word for option in OPTIONS for word in ("-c", option)]
    where = [f"--git-dir={git_dir}"] if git_dir else []
    argv = [*limit, *dying_with_us(), *scrub, "git", *options, *where, *map(str, args)]
    with _input(stdin) as source, _process(argv, source, {**FIXED_ENV, **(env or {})}) as process:
        late = threading.Event()

        def end_it() -> None:
            late.set()
            _kill(process.pid)

        timer = threading.Timer(timeout_s, end_it)
        timer.daemon = True
        timer.start()
        try:
            answer = _communicate(process, on_progress)
        finally:
            timer.cancel()
    verb = next((str(a) for a in args if not str(a).startswith("-")), "git")
    if late.is_set():
        raise GitError(f"git {verb} did not end within {timeout_s:g} s", said=answer.stderr)
    if check and answer.code != 0:
        said = tail(redact(answer.stderr))
        raise GitError(f"git {verb} failed with exit status {answer.code}" + (f":\n{said}" if said else ""), said=said)
    return answer


def _lowest(file_bytes: int) -> int:
    """A limit of files that is no higher than ours already is: nobody may raise that."""
    own = [value for value in resource.getrlimit(resource.RLIMIT_FSIZE) if value != resource.RLIM_INFINITY]
    return min([file_bytes, *own])


def show_progress(line: str) -> None:
    """Shows git's progress beside the current step."""
    log.now(redact(line))


@contextlib.contextmanager
def _input(stdin: bytes | None) -> Iterator[IO[bytes] | None]:
    """git's stdin as a file, so that writing it can never deadlock with reading its output."""
    if stdin is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        yield file


@contextlib.contextmanager
def _process(argv: list[str], stdin: IO[bytes] | None, env: dict[str, str]) -> Iterator[Any]:
    """A running git in a session of its own (it cannot ask on the terminal), ended with its helpers on any way out."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # importing GitPython would run a git, and raise without one
    import git as gitpython

    started: Any = gitpython.cmd.Git().execute(
        argv,
        istream=cast("BinaryIO | None", stdin),
        as_process=True,
        env=env,
        start_new_session=True,
    )
    process: Any = started.proc
    if process is None:
        raise GitError("git could not be started")
    try:
        yield process
    finally:
        if process.poll() is None:
            _kill(process.pid)
            process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def _kill(pid: int) -> None:
    """Ends git and the helpers (ssh, git-remote-https) in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _communicate(process: Any, on_progress: Callable[[str], None] | None) -> Answer:
    """Reads both streams while the process runs, each bounded, and hands on progress (lines that end in CR)."""
    said = bytearray()
    reader = threading.Thread(target=log.attach(_read_stderr), args=(process.stderr, said, on_progress), daemon=True)
    reader.start()
    out = bytearray()
    while piece := process.stdout.read1(1 << 16):
        out += piece
        if len(out) > MAX_OUTPUT_BYTES:
            _kill(process.pid)
            raise GitError(f"git wrote more than {MAX_OUTPUT_BYTES >> 20} MiB; the repository is too large to handle")
    code = process.wait()
    reader.join(timeout=5)
    return Answer(code, bytes(out), said.decode(errors="replace"))


def _read_stderr(stream: IO[bytes], said: bytearray, on_progress: Callable[[str], None] | None) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed under us after a kill
        rest = b""
        while piece := stream.read1(1 << 14):  # type: ignore[attr-defined]
            *lines, rest = _LINE_END.split(rest + piece)
            rest = rest[-MAX_LINE_BYTES:]
            for line in lines:
                if on_progress and line.strip():
                    on_progress(line.decode(errors="replace").strip())
            kept = _OVERWRITTEN.sub(b"", piece)  # progress overwrites itself; messages stay
            said += kept
            del said[:-MAX_STDERR_BYTES]
