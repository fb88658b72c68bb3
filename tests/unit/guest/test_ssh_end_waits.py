"""The end of the connection that all ssh of a box shares: ssh says yes before it is over."""

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
    """The folder of a box whose shared connection listens."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(shared.SOCKET)
        listener.listen()
        yield tmp_path


def ssh(monkeypatch: pytest.MonkeyPatch, does: Callable[[], None]) -> None:
    """Stands for ssh: it does something, and says yes."""

    def run(*_: Any, **__: Any) -> Completed:
        does()
        return Completed(0, "", "Exit request sent.\n")

    monkeypatch.setattr(shared, "run", run)


@pytest.mark.parametrize("end", [shared.close, shared.retire])
def test_its_socket_is_removed_when_it_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Path], None]
) -> None:
    """Who comes next must not be taken in by one that is about to end."""
    ending = threading.Timer(0.3, (folder / shared.SOCKET).unlink)
    ssh(monkeypatch, ending.start)
    end(folder)
    assert not (folder / shared.SOCKET).exists()


def test_one_that_comes_after_it_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody connected anew between: that is not the one which was to end."""
    with socket.socket(socket.AF_UNIX) as later:

        def replace() -> None:
            later.bind("later")
            later.listen()
            (folder / "later").rename(folder / shared.SOCKET)

        ssh(monkeypatch, replace)
        monkeypatch.setattr(shared, "_ANSWER_S", 3600.0)  # a wait would not end
        shared.close(folder)
        with socket.socket(socket.AF_UNIX) as probe:
            assert 0 == probe.connect_ex(shared.SOCKET)


def test_one_that_does_not_end_is_not_waited_for_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket stays, as it still listens."""
    monkeypatch.setattr(shared, "_ANSWER_S", 0.2)
    ssh(monkeypatch, lambda: None)
    shared.close(folder)
    assert (folder / shared.SOCKET).exists()
