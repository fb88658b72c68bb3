"""The program that passes a connection of a guest on to a server, with a real server."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kimbox import run
from kimbox.drivers.qemu.relay import main, take_slot


@pytest.fixture
def server() -> Iterator[int]:
    """A server on 127.0.0.1 that answers with what it has read until the end, in capitals. Returns its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    data = b""
                    while part := connection.recv(1 << 16):
                        data += part
                    connection.sendall(data.upper())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def relayed(monkeypatch: pytest.MonkeyPatch, data: bytes, *words: str) -> bytes:
    """Sends data as a guest does, and returns what the guest reads."""
    guest, inside = socket.socketpair()
    with guest, inside:
        guest.settimeout(60)
        monkeypatch.setattr("os.dup", lambda _: inside.detach())
        thread = threading.Thread(target=main, args=words)
        thread.start()
        guest.sendall(data)
        guest.shutdown(socket.SHUT_WR)
        answer = b""
        while part := guest.recv(1 << 16):
            answer += part
        thread.join(60)
        assert not thread.is_alive()
    return answer


def test_both_directions(monkeypatch: pytest.MonkeyPatch, server: int, tmp_path: Path) -> None:
    """All bytes arrive, and the end of each direction is passed on."""
    data = b"a long text " * 50_000
    assert data.upper() == relayed(monkeypatch, data, "127.0.0.1", str(server), str(tmp_path / "lock"), "4")


def test_a_limited_number(tmp_path: Path) -> None:
    """Each connection holds a slot until its process ends."""
    file = tmp_path / "lock"
    code = (
        f"import time; from kimbox.drivers.qemu.relay import take_slot; print(take_slot({str(file)!r}, 2), flush=True)"
    )
    holding = f"{code}; time.sleep(600)"
    with ExitStack() as stack:
        for _ in range(2):
            process = stack.enter_context(run.background([sys.executable, "-c", holding]))
            while not process.output():
                assert process.code() is None
            assert "True" == process.output().strip()
        assert not take_slot(str(file), 2)
    assert take_slot(str(file), 2)


def test_nothing_is_written_to_the_guest_but_what_the_server_sends(server: int, tmp_path: Path) -> None:
    """The program ends without a message if no slot is free, or if the server cannot be reached."""
    program = Path(sys.modules[main.__module__].__file__ or "")
    for port, count in ((server, 0), (1, 1)):
        argv = [sys.executable, "-I", "-S", program, "127.0.0.1", port, tmp_path / "lock", count]
        done = run.run([str(word) for word in argv], check=False)
        assert (0, "", "") == (done.code, done.stdout, done.stderr)
