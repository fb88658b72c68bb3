"""Conversations over QMP with a server that ends too early."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kimbox.drivers.qemu import qmp

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


def greet_and_end(connection: socket.socket) -> None:
    connection.sendall(json.dumps(GREETING).encode() + b"\r\n")


def negotiate_and_end(connection: socket.socket) -> None:
    """Ends just after the handshake, as QEMU does when the guest powers off at that moment."""
    greet_and_end(connection)
    assert json.loads(connection.recv(4096))["execute"] == "qmp_capabilities"
    connection.sendall(b'{"return": {}}\r\n')


@pytest.mark.parametrize("serve", [lambda connection: None, greet_and_end, negotiate_and_end])
def test_a_connection_that_ends_is_an_error(tmp_path: Path, serve: Callable[[socket.socket], None]) -> None:
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(qmp.QmpError) as caught:
            qmp.execute(path, "query-status")
        thread.join()
    assert (caught.value.code, str(caught.value).endswith(": ")) == ("qemu-unreachable", False)


def serve_answers(server: socket.socket, clients: int) -> None:
    """Serves one client after the other, as QEMU does."""
    for _ in range(clients):
        connection, _ = server.accept()
        with connection:
            negotiate_and_end(connection)
            request = json.loads(connection.recv(4096))
            answer = {"return": {"status": "running"}, "id": request["id"]}
            connection.sendall(json.dumps(answer).encode() + b"\r\n")
            connection.recv(1)  # the client ends the connection


def test_many_clients_at_once(tmp_path: Path) -> None:
    """QEMU's socket has a queue of one: the others wait for their turn."""
    path, clients = tmp_path / "qmp.sock", 12
    with socket.socket(socket.AF_UNIX) as server, concurrent.futures.ThreadPoolExecutor(clients + 1) as pool:
        server.bind(str(path))
        server.listen(1)
        server.settimeout(10)
        serving = pool.submit(serve_answers, server, clients)
        answers = list(pool.map(lambda _: qmp.execute(path, "query-status"), range(clients)))
        serving.result(timeout=30)
    assert answers == [{"status": "running"}] * clients


def test_a_full_queue_is_a_timeout(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as stack:
        server.bind(str(path))
        server.listen(1)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        with pytest.raises(qmp.QmpError) as caught:
            qmp.execute(path, "query-status", timeout_s=0.1)
    assert caught.value.code == "timeout"
