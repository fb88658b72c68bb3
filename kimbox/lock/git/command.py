"""Runs git through GitPython: with a cleaned environment, without prompts and hooks, with time limits.

The user's own git configuration (credential helpers, insteadOf, proxies) applies, because the host fetches as the user.
Variables that a shell, an outer git or an editor left in the environment do not apply.
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
from kimbox.lock.git.reasons import reason_of
from kimbox.log import log
from kimbox.run import die_with_parent_prefix, require
from kimbox.spec.urls import GIT_SCHEMES

#: Variables removed from git's environment, each with the effect that it would have.
SCRUBBED_ENV = {
    "GIT_DIR": "would send every command to the repository of an outer git (hooks set it)",
    "GIT_WORK_TREE": "would make git use the work tree of an outer git",
    "GIT_INDEX_FILE": "would overwrite the index of a commit in progress",
    "GIT_PREFIX": "is set in git aliases and shifts relative paths",
    "GIT_COMMON_DIR": "would take refs and objects from another repository",
    "GIT_OBJECT_DIRECTORY": "would store objects outside the mirror (set while a push is received)",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": "would make a mirror depend on objects that may be deleted",
    "GIT_QUARANTINE_PATH": "makes git refuse to update refs",
    "GIT_NAMESPACE": "would hide or rename refs",
    "GIT_REPLACE_REF_BASE": "would replace the requested objects with others",
    "GIT_GRAFT_FILE": "would change history",
    "GIT_SHALLOW_FILE": "would cut history",
    "GIT_CEILING_DIRECTORIES": "would change how repositories are found",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM": "would change how repositories are found",
    "GIT_CONFIG_PARAMETERS": "carries the -c options of an outer git",
    "GIT_DEFAULT_HASH": "would make mirrors in a format that few versions of git can read",
    "GIT_ATTR_SOURCE": "would take attributes from another tree",
    "GIT_EXTERNAL_DIFF": "would run a program",
    "GIT_PROXY_COMMAND": "would run a program",
    "GIT_ALLOW_PROTOCOL": "would override protocol.allow below",
    "GIT_PROTOCOL_FROM_USER": "would change which protocols are allowed",
    "GIT_TEMPLATE_DIR": "would put hooks into new mirrors",
    "GIT_LITERAL_PATHSPECS": "would change what paths mean",
    "GIT_GLOB_PATHSPECS": "would change what paths mean",
    "GIT_NOGLOB_PATHSPECS": "would change what paths mean",
    "GIT_ICASE_PATHSPECS": "would change what paths mean",
    "GIT_TRACE": "would mix trace lines into the output that kimbox parses",
    "GIT_TRACE_CURL": "would write credentials to stderr, which kimbox shows",
    "GIT_CURL_VERBOSE": "would write credentials to stderr, which kimbox shows",
}

#: Set for every git process: never prompt on the terminal, never take optional locks.
FIXED_ENV = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}

#: Configuration of every git process, passed as `-c`.
OPTIONS = (
    "protocol.allow=never",
    *(f"protocol.{name}.allow=always" for name in GIT_SCHEMES),
    "core.hooksPath=/dev/null",  # a hook is a program written by somebody else
    "core.fsmonitor=false",  # this setting also runs such a program
    "core.logAllRefUpdates=false",
    "gc.auto=0",  # a background gc would run after kimbox ends, and delete commits that a lock still names
    "maintenance.auto=false",
    "transfer.fsckObjects=true",
    # Old, harmless faults of well-known repositories. Large hosting services accept them too.
    "fetch.fsck.zeroPaddedFilemode=ignore",
    "fetch.fsck.badTimezone=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.unpackLimit=1",  # one pack, renamed when complete: after SIGKILL no commit lacks its tree
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "submodule.recurse=false",
    "http.lowSpeedLimit=1000",  # bytes/s; a transfer slower than this for http.lowSpeedTime seconds fails
    "http.lowSpeedTime=60",
    "advice.detachedHead=false",
    "init.defaultBranch=main",
)

#: Timeout of a command that uses no network, in seconds. Transfers have their own timeouts.
LOCAL_TIMEOUT_S = 120

#: Maximum size of git's stdout, in bytes. It is kept in memory.
MAX_OUTPUT_BYTES = 64 << 20

#: Maximum length of a line of stderr, in bytes. Of a longer line, only the end is kept.
MAX_LINE_BYTES = 4096

#: Maximum size of the stderr that is kept for error messages, in bytes.
MAX_STDERR_BYTES = 64 << 10

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_LINE_END = re.compile(rb"[\r\n]")
_OVERWRITTEN = re.compile(rb"^[^\n]*\r(?!\n)", re.MULTILINE)


class GitError(KimboxError):
    """git failed, or a repository lacks what the spec or the lock names. `stderr` is git's, without credentials."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        hint: str | None = None,
        fields: Mapping[str, str] | None = None,
        stderr: str = "",
    ) -> None:
        super().__init__(message, code=code, hint=hint, fields=fields)
        self.stderr = stderr


class GoneError(GitError):
    """The server answers, but no longer has the commit or the ref."""


class SignatureError(GitError):
    """A commit is not signed by a key that the spec names."""


@attrs.frozen
class Answer:
    """Exit status and output of a git command."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """stdout without surrounding white space."""
        return self.stdout.decode(errors="replace").strip()


def redact(text: str) -> str:
    """Removes user names and passwords from a URL, or from every URL in a text."""
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
    unset: Sequence[str] = (),
) -> Answer:
    """Runs one git command and waits for its end.

    Raises GitError (`timeout`) if it takes longer than `timeout_s` seconds, and, with `check`, GitError (`git-failed`)
    if its exit status is not 0. With `file_bytes`, neither git nor its child processes can write a larger file. `unset`
    names further variables that are removed.
    """
    require("git", "kimbox fetches repositories with it")
    limit = []
    if file_bytes:  # SIGXFSZ is ignored, so that the process that writes reports the error
        limit_bytes = _lowest_file_limit(file_bytes)
        limit = [require("prlimit", "kimbox limits git with it"), f"--fsize={limit_bytes}", "env"]
        limit.append("--ignore-signal=XFSZ")
    removed = [word for name in (*SCRUBBED_ENV, *unset) if name in os.environ for word in ("-u", name)]
    scrub = ["env", *removed] if removed else []  # GitPython can add variables to the environment, but not remove them
    options = [word for option in OPTIONS for word in ("-c", option)]
    where = [f"--git-dir={git_dir}"] if git_dir else []
    argv = [*limit, *die_with_parent_prefix(), *scrub, "git", *options, *where, *map(str, args)]
    with _input(stdin) as source, _process(argv, source, {**FIXED_ENV, **(env or {})}) as process:
        timed_out = threading.Event()

        def kill_late() -> None:
            timed_out.set()
            _kill(process.pid)

        timer = threading.Timer(timeout_s, kill_late)
        timer.daemon = True
        timer.start()
        try:
            answer = _communicate(process, on_progress)
        finally:
            timer.cancel()
    verb = next((str(a) for a in args if not str(a).startswith("-")), "git")
    if timed_out.is_set():
        raise GitError(f"git {verb} did not end within {timeout_s:g} s", code="timeout", stderr=redact(answer.stderr))
    if check and answer.code != 0:
        stderr = redact(answer.stderr)
        reason = reason_of(stderr)
        message = f"git {verb} failed with exit status {answer.code}" + (f":\n{reason}" if reason else "")
        raise GitError(message, code="git-failed", stderr=stderr)
    return answer


def _lowest_file_limit(file_bytes: int) -> int:
    """`file_bytes`, or this process's own RLIMIT_FSIZE if that is lower: a process cannot raise its limit."""
    own = [value for value in resource.getrlimit(resource.RLIMIT_FSIZE) if value != resource.RLIM_INFINITY]
    return min([file_bytes, *own])


def show_progress(line: str) -> None:
    """Shows a line of git's progress at the current step."""
    log.now(redact(line))


@contextlib.contextmanager
def _input(stdin: bytes | None) -> Iterator[IO[bytes] | None]:
    """git's stdin as a file: writing to a pipe could deadlock with reading the output."""
    if stdin is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        yield file


@contextlib.contextmanager
def _process(argv: list[str], stdin: IO[bytes] | None, env: dict[str, str]) -> Iterator[Any]:
    """A running git process in its own session, so that it cannot prompt on the terminal.

    At the end of the block, git and its child processes are killed if they still run.
    """
    os.environ.setdefault(
        "GIT_PYTHON_REFRESH", "quiet"
    )  # else importing GitPython runs git, and raises if it is missing
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
        raise GitError("git could not be started", code="git-failed")
    try:
        yield process
    finally:
        if process.poll() is None:
            _kill(process.pid)
            process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def _kill(pid: int) -> None:
    """Kills git and its child processes (ssh, git-remote-https), which share its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _communicate(process: Any, on_progress: Callable[[str], None] | None) -> Answer:
    """Reads stdout and stderr while the process runs, each up to its limit. Passes progress lines to `on_progress`."""
    stderr = bytearray()
    reader = threading.Thread(target=log.attach(_read_stderr), args=(process.stderr, stderr, on_progress), daemon=True)
    reader.start()
    out = bytearray()
    while piece := process.stdout.read1(1 << 16):
        out += piece
        if len(out) > MAX_OUTPUT_BYTES:
            _kill(process.pid)
            raise GitError(
                f"git wrote more than {MAX_OUTPUT_BYTES >> 20} MiB; the repository has too many files or refs",
                code="repository-too-large",
            )
    code = process.wait()
    reader.join(timeout=5)
    return Answer(code, bytes(out), stderr.decode(errors="replace"))


def _read_stderr(stream: IO[bytes], kept: bytearray, on_progress: Callable[[str], None] | None) -> None:
    """Reads git's stderr to its end: messages are appended to `kept`, every line is passed to `on_progress`."""
    with contextlib.suppress(ValueError, OSError):  # `_process` may close the stream after a kill
        rest = b""
        while piece := stream.read1(1 << 14):  # type: ignore[attr-defined]
            *lines, rest = _LINE_END.split(rest + piece)
            rest = rest[-MAX_LINE_BYTES:]
            for line in lines:
                if on_progress and line.strip():
                    on_progress(line.decode(errors="replace").strip())
            kept += _OVERWRITTEN.sub(b"", piece)  # a progress line ends in CR, and the next one overwrites it
            del kept[:-MAX_STDERR_BYTES]
