"""A real SMTP server on this host, which keeps the mails that it gets."""

from __future__ import annotations

import contextlib
import email
import email.policy
import ssl
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from servers import free_port


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


def _accepts(login: tuple[str, str]) -> Callable[..., AuthResult]:
    """The check of a login (a user and a password) in the form that aiosmtpd wants."""
    expected = LoginPassword(*(word.encode() for word in login))
    return lambda _server, _session, _envelope, _mechanism, given: AuthResult(success=given == expected, handled=False)


@contextlib.contextmanager
def running(
    port: int = 0, *, context: ssl.SSLContext | None = None, login: tuple[str, str] | None = None
) -> Iterator[Box]:
    """Runs a server. `port`: 0 for a free one. `context`: with TLS. `login`: the only user who may send."""
    box, port = Box(), port or free_port()
    options: dict[str, Any] = {"ssl_context": context} if context else {}
    if login:
        options |= {"authenticator": _accepts(login), "auth_required": True, "auth_require_tls": False}
    controller = Controller(box, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        box.url = f"{'smtps' if context else 'smtp'}://127.0.0.1:{port}"
        yield box
    finally:
        controller.stop()
