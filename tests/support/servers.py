"""Starts and stops server programs on ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from waiting import until

from kimbox.run import detach

#: Timeout until a server accepts connections, in seconds.
START_TIMEOUT_S = 60.0

#: The ports of the tests. Linux takes the ports of outgoing connections from 32768 on, and kimbox those of machines
#: from 20022 on.
PORTS = range(10_000, 20_000)

#: Processes of a run of pytest that have ports of their own.
MAX_PROCESSES = 8


def _ports() -> Iterator[int]:
    """Yields the ports of this process in random order. Other processes of the same run have other ports."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = list(PORTS[process % MAX_PROCESSES :: MAX_PROCESSES])
    random.shuffle(ports)
    return itertools.cycle(ports)


_PORTS = _ports()


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 on which no program listens. It stays free until the caller uses it.

    A port that the kernel chooses would not: until a server listens on it, the kernel gives it to other programs.
    """
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def writing_its_id(argv: list[str], pid_file: Path) -> list[str]:
    """Returns the command of a server that does not write its process id: a shell does, and becomes the server."""
    return ["sh", "-c", 'echo $$ >"$1"; shift; exec "$@"', "sh", str(pid_file), *argv]


@contextlib.contextmanager
def listening(argv: list[str], port: int, pid_file: Path, log: Path) -> Iterator[None]:
    """Runs a server, from the moment that it accepts connections.

    The server writes its process id to `pid_file`; this process is stopped, because the daemon of git is a child of the
    program that was started. The output goes to the file `log`.
    """
    exit_code = detach(argv, log=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert exit_code() is None, log.read_text()
            assert time.monotonic() < deadline, f"{argv[0]} does not listen: {log.read_text()}"
            time.sleep(0.02)
        yield
    finally:
        if pid_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)
        until(f"{argv[0]} exits", lambda: exit_code() is not None)
