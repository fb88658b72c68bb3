"""What git writes to stderr, some of which its server chose: messages are kept, progress passed on, all bounded."""

from __future__ import annotations

import io

from kimbox.lock.git import command


def read(written: bytes) -> tuple[bytes, list[str]]:
    """What is kept of these bytes, and what was passed on as progress."""
    kept, progress = bytearray(), list[str]()
    command._read_stderr(io.BytesIO(written), kept, progress.append)
    return bytes(kept), progress


def test_progress_is_passed_on_and_messages_are_kept() -> None:
    """Of a line that overwrote itself the last state stays; CRLF is no overwriting."""
    kept, progress = read(b"remote: 1%\rremote: 2%\rremote: done\nfatal: no\r\nx\n")
    assert b"remote: done\nfatal: no\r\nx\n" == kept
    assert ["remote: 1%", "remote: 2%", "remote: done", "fatal: no", "x"] == progress


def test_a_line_without_an_end_is_bounded() -> None:
    """A server that sends megabytes without a line end takes neither memory nor the square of their number in time."""
    kept, progress = read(b"a" * (4 << 20) + b"\nend\n")
    assert kept.endswith(b"aaa\nend\n")
    assert command.MAX_STDERR_BYTES == len(kept)
    assert "end" == progress[-1]
    assert len(progress[0]) <= command.MAX_LINE_BYTES + (1 << 14)
