"""A web server with the files of a folder, for guests and for programs of this host."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A request handler that writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def serving(folder: Path) -> contextlib.AbstractContextManager[int]:
    """Serves a folder on 127.0.0.1. Yields the port."""
    return answering(functools.partial(Quiet, directory=str(folder)))


@contextlib.contextmanager
def answering(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """Runs a web server with this handler on 127.0.0.1. Yields the port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
