"""A sealed guest cannot fill the disk of its host: a program beside QEMU limits its output."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bootsector
import pytest
from waiting import until

from kimbox.drivers.qemu import process, recorder
from kimbox.machine.record import Sealed
from kimbox.run import detach

LIMIT_BYTES = 100_000


class Recording:
    """The program, with a pipe for each file."""

    def __init__(self, folder: Path, *names: str) -> None:
        pipes = {name: os.pipe() for name in names}
        self.write = {name: end for name, (_, end) in pipes.items()}
        sources = {name: source for name, (source, _) in pipes.items()}
        self._log = folder / "messages"
        self._exit_code = detach(
            [sys.executable, "-I", "-S", recorder.__file__, str(LIMIT_BYTES), *(f"{sources[n]}:{n}" for n in names)],
            log=self._log,
            pass_fds=sources.values(),
            cwd=folder,
        )
        for source in sources.values():
            os.close(source)

    def end(self) -> tuple[int | None, str]:
        """Closes the pipes, as the end of QEMU does; returns the exit code and the messages."""
        for end in self.write.values():
            os.close(end)
        until("the program has ended", lambda: self._exit_code() is not None)
        return self._exit_code(), self._log.read_text()


def test_it_copies_at_once_and_ends_with_qemu(tmp_path: Path) -> None:
    """A line is in its file while the pipe is open, after what the file had before."""
    (tmp_path / "events").write_bytes(b"before\n")
    recording = Recording(tmp_path, "events", "serial")
    os.write(recording.write["events"], b"ready\n")
    until("the line is in the file", lambda: b"before\nready\n" == (tmp_path / "events").read_bytes())
    os.write(recording.write["serial"], b"last")
    assert (0, "") == recording.end()
    assert b"last" == (tmp_path / "serial").read_bytes()
    assert 0o600 == (tmp_path / "serial").stat().st_mode & 0o777


def test_a_flood_stops_at_the_limit_and_the_other_port_goes_on(tmp_path: Path) -> None:
    """The guest never waits for the end of its output: what exceeds the limit is read and discarded."""
    (tmp_path / "serial").write_bytes(b"y" * 10)
    recording = Recording(tmp_path, "serial", "events")
    for _ in range(30):
        os.write(recording.write["serial"], b"x" * 10_000)
    os.write(recording.write["events"], b"ready\n")
    until("the event is in its file", lambda: b"ready\n" == (tmp_path / "events").read_bytes())
    assert (0, "") == recording.end()
    assert b"y" * 10 + b"x" * (LIMIT_BYTES - 10) == (tmp_path / "serial").read_bytes()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "events").symlink_to("target")
    code, errors = Recording(tmp_path, "events").end()
    assert code != 0
    assert "events" in errors
    assert b"" == (tmp_path / "target").read_bytes()


def test_a_full_disk_does_not_stop_the_guest(tmp_path: Path) -> None:
    """As with a file of QEMU, the output is lost, and the guest goes on."""
    recording = Recording(tmp_path, "/dev/full", "events")
    for _ in range(20):
        os.write(recording.write["/dev/full"], b"x" * 10_000)
    os.write(recording.write["events"], b"ready\n")
    assert (0, "") == recording.end()
    assert b"ready\n" == (tmp_path / "events").read_bytes()


def test_a_guest_that_floods_its_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU runs on, and the file has its maximum size. Nothing is left after its end."""
    monkeypatch.setattr(process, "OUTPUT_LIMIT_BYTES", LIMIT_BYTES)
    with bootsector.running(tmp_path, monkeypatch, bootsector.FLOOD, sealed=Sealed("worker", "site")) as machine:
        until("the log is full", lambda: machine.serial_log.stat().st_size == LIMIT_BYTES)
        assert "running" == process.status(machine)
        assert LIMIT_BYTES == machine.serial_log.stat().st_size
        process.kill(machine)
        assert not machine.running
