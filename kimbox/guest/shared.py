"""ssh(1) on the user's terminal. What goes to one box shares a connection, so that only the first pays the handshake.

The connection is a ControlMaster of ssh_config(5). It lies in the folder of the box's key, which is its user's alone,
and ends when nobody has used it for `PERSIST_S` seconds, or with the box. ssh runs in that folder and names the socket
from there: the path of a socket must be short.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kimbox.errors import KimboxError
from kimbox.guest.endpoint import Endpoint, ssh_command
from kimbox.run import attached, run

#: Where the shared connection listens, in the folder of the box's key.
SOCKET = "ssh.sock"

#: How long it stays when nobody uses it.
PERSIST_S = 600

#: It answers at once, or not at all.
_ANSWER_S = 5.0


def on_terminal(
    endpoint: Endpoint, *, command: str | None = None, words: Sequence[str] = (), terminal: bool = False
) -> int:
    """Runs ssh on kimbox's own stdin, stdout and stderr; returns its exit status.

    That is a shell, `command` (shell text), or what `words` says: options of ssh, a command of its own. With options
    it has a connection to itself: a forwarded port, say, ends with it.
    """
    if words and words[0].startswith("-"):
        return attached(ssh_command(endpoint, options=words))
    with _sharing(endpoint.key_path.parent) as settings:
        argv = ssh_command(endpoint, command=command, options=words, terminal=terminal, settings=settings)
        return attached(argv, cwd=endpoint.key_path.parent)


@contextlib.contextmanager
def _sharing(folder: Path) -> Iterator[dict[str, str]]:
    """What ssh must be told to use the shared connection.

    Of all that run at a time one may become it, the others find it there or do without: two that tried to become it
    would complain.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        first = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            first = False
        yield {"ControlPath": SOCKET, "ControlMaster": "auto" if first else "no", "ControlPersist": str(PERSIST_S)}
    finally:
        os.close(handle)


def close(folder: Path) -> None:
    """Ends the shared connection, and all that uses it. It is safe to close one that is not there."""
    _tell(folder, "exit")


def retire(folder: Path) -> None:
    """Takes nobody any more into the shared connection; it ends with the last that uses it."""
    _tell(folder, "stop")


def _tell(folder: Path, word: str) -> None:
    if not (folder / SOCKET).is_socket():
        return
    with contextlib.suppress(KimboxError):
        argv = ["ssh", "-F", "none", f"-oControlPath={SOCKET}", "-O", word, "box"]
        run(argv, check=False, cwd=folder, timeout_s=_ANSWER_S)
    (folder / SOCKET).unlink(missing_ok=True)
