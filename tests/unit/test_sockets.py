"""Short paths of Unix sockets."""

from __future__ import annotations

import socket
from pathlib import Path

from kimbox.sockets import short_path


def test_a_socket_in_a_folder_with_a_long_path(tmp_path: Path) -> None:
    """It can be bound and reached, and no descriptor is left."""
    folder = tmp_path / ("a" * 200)
    folder.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with short_path(folder / "box.sock") as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    assert (folder / "box.sock").is_socket()
    assert before == len(list(Path("/proc/self/fd").iterdir()))
