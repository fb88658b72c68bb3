"""QMP, the control channel of QEMU, through the library qemu.qmp: short conversations, each with a time limit."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kimbox.errors import KimboxError

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

#: QEMU answers at once, unless the host is very busy.
TIMEOUT_S = 10.0

T = TypeVar("T")


class QmpError(KimboxError):
    """QEMU does not answer, or refused a command."""


def talk(socket: Path, conversation: Callable[[QMPClient], Awaitable[T]], *, timeout_s: float = TIMEOUT_S) -> T:
    """Connects, holds the conversation, disconnects. Raises QmpError for all that can go wrong."""
    import asyncio
    import logging

    from qemu.qmp import ExecuteError, QMPClient, QMPError

    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

    async def whole() -> T:
        client = QMPClient("kimbox")
        folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # through the open folder: a socket's path may have no more than 107 bytes (unix(7))
            await client.connect(f"/proc/self/fd/{folder}/{socket.name}")
        finally:
            os.close(folder)
        try:
            return await conversation(client)
        finally:
            await client.disconnect()

    async def bounded() -> T:
        return await asyncio.wait_for(whole(), timeout_s)

    try:
        return asyncio.run(bounded())
    except ExecuteError as error:
        raise QmpError(f"QEMU refused: {error}") from None
    except TimeoutError:  # an OSError too
        raise QmpError(f"QEMU did not answer within {timeout_s:g} s on {socket}") from None
    except (QMPError, OSError, EOFError) as error:
        raise QmpError(f"QEMU does not answer on {socket}: {error}") from None


def execute(
    socket: Path, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
) -> Any:
    """One QMP command; returns what QEMU returns."""

    async def one(client: QMPClient) -> Any:
        return await client.execute(command, arguments)

    return talk(socket, one, timeout_s=timeout_s)


def run_job(socket: Path, command: str, arguments: dict[str, Any], *, timeout_s: float) -> None:
    """A QMP command that starts a job (snapshot-save, ...); waits for its end. Raises QmpError if the job fails."""
    job = str(arguments["job-id"])

    def concerns(event: Any) -> bool:
        return bool(event["data"]["id"] == job)

    async def whole(client: QMPClient) -> None:
        with client.listener(("JOB_STATUS_CHANGE",), concerns) as listener:
            await client.execute(command, arguments)
            async for event in listener:
                data: Any = event["data"]
                if data["status"] == "concluded":
                    break
        jobs: Any = await client.execute("query-jobs")
        await client.execute("job-dismiss", {"id": job})
        errors = [entry["error"] for entry in jobs if entry["id"] == job and "error" in entry]
        if errors:
            raise QmpError(f"{command} failed: {errors[0]}")

    talk(socket, whole, timeout_s=timeout_s)
