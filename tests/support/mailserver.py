"""A real SMTP server on this host, which keeps the mails that it gets."""

from __future__ import annotations

import contextlib
import email
import email.policy
import socket
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller


class Box:
    """The mails that arrived, in order."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.url = ""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 OK"

    @property
    def texts(self) -> list[str]:
        """The text of each mail, on one line."""
        return [" ".join(mail.get_content().split()) for mail in self.mails]

    @property
    def events(self) -> list[str]:
        """The events that the mails report."""
        return [text.partition(" event: ")[2].split()[0] for text in self.texts]


def _free_port() -> int:
    """A port that was free a moment ago. The controller of aiosmtpd cannot choose one."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(port: int = 0) -> Iterator[Box]:
    """Runs a server. `port`: 0 for a free one."""
    box, port = Box(), port or _free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        box.url = f"smtp://127.0.0.1:{port}"
        yield box
    finally:
        controller.stop()
