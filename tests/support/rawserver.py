"""A TCP server on 127.0.0.1 whose answers are bytes of the test, for servers that do not follow HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class Peer:
    """A connection of a client. `closing` is set when the test ends."""

    def __init__(self, connection: socket.socket, closing: threading.Event) -> None:
        self._connection, self.closing = connection, closing
        self.request = b""
        while b"\r\n\r\n" not in self.request and (piece := connection.recv(4096)):
            self.request += piece
        #: Number of bytes that the client's system took.
        self.sent_bytes = 0

    def send(self, data: bytes) -> bool:
        """Sends bytes. False if the client has closed the connection, or the test has ended."""
        try:
            self._connection.sendall(data)
        except OSError:
            return False
        self.sent_bytes += len(data)
        return not self.closing.is_set()

    def send_endlessly(self, data: bytes, pause_s: float = 0.0) -> None:
        """Sends the same bytes until the client closes the connection."""
        while self.send(data):
            if pause_s:
                self.closing.wait(pause_s)


@contextlib.contextmanager
def serving(answer: Callable[[Peer], None]) -> Iterator[tuple[str, list[Peer]]]:
    """Calls `answer` with each connection, in a thread of its own. Yields a URL and the connections so far."""
    closing, peers, threads = threading.Event(), [], []
    listener = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            peer = Peer(connection, closing)
            peers.append(peer)
            answer(peer)

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while not closing.is_set():
                thread = threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True)
                thread.start()
                threads.append(thread)

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/box.img", peers
    finally:
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join(20)
