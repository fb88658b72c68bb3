"""The end of the shared ssh connection of a box. `ssh -O exit` answers before the connection has ended."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kimbox.guest import shared
from kimbox.run import Completed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a box whose shared connection accepts clients."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(shared.SOCKET)
        listener.listen()
        yield tmp_path


def replace_ssh(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Replaces ssh by an action that is followed by the answer of `ssh -O exit`."""

    def run(*_: Any, **__: Any) -> Completed:
        action()
        return Completed(0, "", "Exit request sent.\n")

    monkeypatch.setattr(shared, "run", run)


@pytest.mark.parametrize("end", [shared.close, shared.retire])
def test_its_socket_is_removed_when_it_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Path], None]
) -> None:
    """The next client must not connect to a connection that is about to end."""
    ending = threading.Timer(0.3, (folder / shared.SOCKET).unlink)
    replace_ssh(monkeypatch, ending.start)
    end(folder)
    assert not (folder / shared.SOCKET).exists()


def test_a_new_connection_is_not_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that another client has made in the meantime stays open."""
    with socket.socket(socket.AF_UNIX) as later:

        def replace() -> None:
            later.bind("later")
            later.listen()
            (folder / "later").rename(folder / shared.SOCKET)

        replace_ssh(monkeypatch, replace)
        monkeypatch.setattr(shared, "_ANSWER_S", 3600.0)  # a wait would not end
        shared.close(folder)
        with socket.socket(socket.AF_UNIX) as probe:
            assert 0 == probe.connect_ex(shared.SOCKET)


def test_the_wait_for_the_end_has_a_timeout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the timeout the socket stays, because the connection still accepts clients."""
    monkeypatch.setattr(shared, "_ANSWER_S", 0.2)
    replace_ssh(monkeypatch, lambda: None)
    shared.close(folder)
    assert (folder / shared.SOCKET).exists()
