"""A small client of beanstalkd: its protocol over a socket; each answer has a time limit and a bound on its size."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from types import TracebackType

#: Time limit for an answer, without the time for which `reserve` waits, in seconds.
ANSWER_S = 30.0

#: Longest line and longest body of an answer, in bytes.
LINE_LIMIT, BODY_LIMIT = 1024, 65536


class QueueError(Exception):
    """The queue sent an unexpected answer: it is full, another program, or another version."""


@dataclass(frozen=True)
class Reserved:
    """A job that this connection has reserved. The reservation ends with the connection or with the time to run."""

    id: int
    body: bytes


class Queue:
    """A connection to beanstalkd, for one tube. After it is lost, every method raises OSError."""

    def __init__(self, address: tuple[str, int], tube: str, *, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._end = 0.0
        self._unread = b""
        self._socket = socket.create_connection(address, timeout=answer_s)
        try:
            self._ask(f"use {tube}", "USING")
            self._ask(f"watch {tube}", "WATCHING")
            if tube != "default":
                self._ask("ignore default", "WATCHING")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Its reserved jobs become ready for others at once."""
        self._socket.close()

    def put(self, body: bytes, *, ttr_s: int) -> int:
        """Puts a job into the queue, with a time to run of `ttr_s` seconds for a reservation. Returns its id."""
        words = self._ask(f"put 1024 0 {ttr_s} {len(body)}", "INSERTED", body=body)
        return _number(words[1])

    def reserve(self, wait_s: int) -> Reserved | None:
        """The next job, or None if there is none within that time."""
        asked = f"reserve-with-timeout {wait_s}"
        words = self._ask(asked, "RESERVED", "TIMED_OUT", "DEADLINE_SOON", wait_s=wait_s)
        return Reserved(_number(words[1]), self._body(words)) if words[0] == "RESERVED" else None

    def touch(self, job: int) -> bool:
        """Restarts the time to run of a reserved job. Returns False if it is no longer reserved here."""
        return self._ask(f"touch {job}", "TOUCHED", "NOT_FOUND")[0] == "TOUCHED"

    def delete(self, job: int) -> bool:
        """Removes a job that is reserved here or not at all. Returns False if there is none."""
        return self._ask(f"delete {job}", "DELETED", "NOT_FOUND")[0] == "DELETED"

    def release(self, job: int, *, delay_s: int) -> bool:
        """Releases a reserved job to others after that delay. Returns False if it is no longer reserved here."""
        # BURIED: there was no memory to release it. The director finds it there.
        return self._ask(f"release {job} 1024 {delay_s}", "RELEASED", "BURIED", "NOT_FOUND")[0] != "NOT_FOUND"

    def bury(self, job: int) -> bool:
        """Buries a reserved job: no worker gets it any more. Returns False if it is no longer reserved here."""
        return self._ask(f"bury {job} 1024", "BURIED", "NOT_FOUND")[0] == "BURIED"

    def peek(self, job: int) -> bytes | None:
        """The text of a job, reserved or not; None if there is none with that id."""
        words = self._ask(f"peek {job}", "FOUND", "NOT_FOUND")
        return self._body(words) if words[0] == "FOUND" else None

    def counts(self, job: int) -> dict[str, int]:
        """How often a job was reserved (`reserves`), released (`releases`) and so on; empty where there is none.

        `time-left` is how many seconds who holds it has left; below 0 it should have been taken from them. Of a
        job that is delayed it is how long that lasts.
        """
        found = re.findall(r"^([a-z-]+): (-?\d{1,18})$", self._stats(job), re.MULTILINE)
        return {name: int(count) for name, count in found}

    def state(self, job: int) -> str:
        """`ready`, `reserved`, `delayed` or `buried`; empty if there is no job with that id."""
        found = re.search(r"^state: ([a-z]{1,20})$", self._stats(job), re.MULTILINE)
        return found[1] if found else ""

    def _stats(self, job: int) -> str:
        words = self._ask(f"stats-job {job}", "OK", "NOT_FOUND")
        if words[0] != "OK":
            return ""
        return self._body([*words[:1], "0", *words[1:]]).decode("ascii", "replace")

    def _ask(self, command: str, *expected: str, body: bytes | None = None, wait_s: float = 0.0) -> list[str]:
        """The words of the answer's first line, the first of which is one of `expected`."""
        self._socket.settimeout(self._answer_s)
        self._socket.sendall(command.encode("ascii") + b"\r\n" + (b"" if body is None else body + b"\r\n"))
        self._end = time.monotonic() + wait_s + self._answer_s
        line = self._line()
        words = line.split(" ")
        if words[0] not in expected or len(words) > 3:
            raise QueueError(f"the queue answers {line!r:.80} to {command!r}")
        return words if len(words) > 1 else [*words, ""]

    def _line(self) -> str:
        while b"\r\n" not in self._unread:
            if len(self._unread) > LINE_LIMIT:
                raise QueueError("the queue answers without an end of line")
            self._receive()
        line, self._unread = self._unread.split(b"\r\n", 1)
        return line.decode("ascii", "replace")

    def _body(self, words: list[str]) -> bytes:
        """What follows a line `WORD ID BYTES`."""
        size = _number(words[2] if len(words) == 3 else "")
        if size > BODY_LIMIT:
            raise QueueError(f"the queue answers with {size} bytes, and at most {BODY_LIMIT} are taken")
        while len(self._unread) < size + 2:
            self._receive()
        body, end, self._unread = self._unread[:size], self._unread[size : size + 2], self._unread[size + 2 :]
        if end != b"\r\n":
            raise QueueError("the queue answers with more than it announced")
        return body

    def _receive(self) -> None:
        self._socket.settimeout(max(0.001, self._end - time.monotonic()))
        if not (got := self._socket.recv(65536)):
            raise ConnectionResetError("the queue closed the connection")
        self._unread += got


def _number(word: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", word):
        raise QueueError(f"the queue says {word!r:.80} where a number belongs")
    return int(word)
