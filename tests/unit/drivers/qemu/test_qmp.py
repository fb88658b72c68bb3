"""Conversations over QMP with a server that ends too early."""

from __future__ import annotations

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
