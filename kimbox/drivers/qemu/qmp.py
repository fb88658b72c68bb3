"""QMP, the control protocol of QEMU, with the library qemu.qmp: short conversations, each with a timeout."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kimbox.errors import KimboxError
from kimbox.sockets import short_path

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

#: Default timeout of a conversation. QEMU answers in milliseconds, unless the host is very busy.
TIMEOUT_S = 10.0

#: Interval of attempts to connect while other clients wait for QEMU, in seconds.
QUEUE_INTERVAL_S = 0.01

T = TypeVar("T")


class QmpError(KimboxError):
    """QEMU does not answer, or rejected a command."""


def talk(path: Path, conversation: Callable[[QMPClient], Awaitable[T]], *, timeout_s: float = TIMEOUT_S) -> T:
    """Connects, awaits `conversation`, disconnects, and returns its result.

    Raises QmpError for each failure: `qemu-failed` if QEMU rejected a command, `timeout`, or `qemu-unreachable`.
    """
    import asyncio
    import logging

    from qemu.qmp import ExecuteError, QMPClient, QMPError

    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

    async def connect_and_talk() -> T:
        client = QMPClient("kimbox")
        await _connect(client, path)
        try:
            return await conversation(client)
        finally:
            await client.disconnect()

    async def bounded() -> T:
        return await asyncio.wait_for(connect_and_talk(), timeout_s)

    try:
        return asyncio.run(bounded())
    except ExecuteError as error:
        raise QmpError(f"QEMU rejected a command: {error}", code="qemu-failed") from None
    except TimeoutError:  # before OSError, its base class
        message = f"QEMU did not answer within {timeout_s:g} s on {path}"
        raise QmpError(message, code="timeout", fields={"path": str(path)}) from None
    except (QMPError, OSError, EOFError) as error:
        message = f"QEMU does not answer on {path}: {str(error) or 'it closed the connection'}"
        raise QmpError(message, code="qemu-unreachable", fields={"path": str(path)}) from None


async def _connect(client: QMPClient, path: Path) -> None:
    """Connects. Raises EOFError, and the errors of the library, if QEMU closes the connection meanwhile."""
    connection = await _connected(path)
    try:
        await client.connect(connection)
    except AssertionError:
        # The library asserts after the handshake that the connection is open. QEMU may have ended at that moment.
        await client.disconnect()  # ends the tasks of the session, and raises the reason
        raise EOFError from None


async def _connected(path: Path) -> socket.socket:
    """Returns a connection to a socket of QEMU. Raises OSError.

    QEMU talks to one client at a time, and one more can wait in the queue of the socket. Then connect(2) fails with
    EAGAIN, which asyncio takes for a connection that is being made. So this waits for a place in the queue.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            with short_path(path) as address, contextlib.suppress(BlockingIOError):
                connection.connect(address)
                return connection
            await pause(QUEUE_INTERVAL_S)
    except BaseException:  # also when the conversation is cancelled by its timeout
        connection.close()
        raise


def execute(path: Path, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S) -> Any:
    """Runs one QMP command and returns its result. Raises QmpError as `talk` does."""

    async def run_command(client: QMPClient) -> Any:
        return await client.execute(command, arguments)

    return talk(path, run_command, timeout_s=timeout_s)


async def pause(duration_s: float) -> None:
    """Waits in a conversation, for example until the next query."""
    import asyncio

    await asyncio.sleep(duration_s)


async def send_file(client: QMPClient, handle: int, name: str) -> None:
    """Passes an open file to QEMU, which then knows it by `name`. The caller may close it afterwards."""
    client.send_fd_scm(handle)
    await client.execute("getfd", {"fdname": name})


def run_job(path: Path, command: str, arguments: dict[str, Any], *, timeout_s: float) -> None:
    """Runs a QMP command that starts a job (snapshot-save, ...), and waits for its end. Raises QmpError if it fails."""
    job = str(arguments["job-id"])

    def is_of_job(event: Any) -> bool:
        return bool(event["data"]["id"] == job)

    async def run_until_concluded(client: QMPClient) -> None:
        with client.listener(("JOB_STATUS_CHANGE",), is_of_job) as listener:
            await client.execute(command, arguments)
            async for event in listener:
                data: Any = event["data"]
                if data["status"] == "concluded":
                    break
        jobs: Any = await client.execute("query-jobs")
        await client.execute("job-dismiss", {"id": job})
        errors = [entry["error"] for entry in jobs if entry["id"] == job and "error" in entry]
        if errors:
            raise QmpError(f"QEMU's {command} failed: {errors[0]}", code="qemu-failed")

    talk(path, run_until_concluded, timeout_s=timeout_s)
