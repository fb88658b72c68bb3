"""Paths of Unix sockets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_path(socket: Path) -> Iterator[str]:
    """Yields a short path of a socket, through its open folder: the path of a socket has at most 107 bytes (unix(7)).

    It is valid in this process during the block. The socket need not exist. Raises OSError without the folder.
    """
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)
