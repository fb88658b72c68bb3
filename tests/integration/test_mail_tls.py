"""Notifications by a real mail server with TLS from the first byte (smtps:, RFC 8314), which wants a login."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import mailserver
import makeserver
import pytest
from mailserver import Box

from kimbox.errors import KimboxError
from kimbox.spec.occasions import Notify
from kimbox.transfer.notices import mail
from kimbox.transfer.notices.base import Message

MESSAGE: Message = {
    "format": 1,
    "id": "0123",
    "event": "saved",
    "at": "2026-01-02T03:04:05Z",
    "name": "study",
    "box": "study",
    "host": "example.org",
    "text": "study was saved",
    "details": {},
}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return makeserver.certificate(tmp_path)


@pytest.fixture
def server(certificate: tuple[Path, Path]) -> Iterator[Box]:
    """A server that accepts mails of the user `me` with his password only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with mailserver.running(context=context, login=("me", "pass word")) as box:
        yield box


def send(server: Box) -> None:
    mail.send(Notify(mail="someone@example.org", server=server.url, sender="kimbox@example.org"), MESSAGE)


@pytest.fixture
def trusted(certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user trusts the certificate. Returns the home folder."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_mail_with_a_login(server: Box, trusted: Path) -> None:
    """The password is that of ~/.netrc. Without it, and with a wrong one, the server refuses, as the error says."""
    with pytest.raises(KimboxError, match="Authentication required") as refused:
        send(server)
    assert "notification-failed" == refused.value.code
    netrc = trusted / ".netrc"
    netrc.touch(0o600)
    netrc.write_text("machine 127.0.0.1 login me password wrong\n")
    with pytest.raises(KimboxError, match="Authentication credentials invalid") as wrong:
        send(server)
    assert "wrong" not in wrong.value.message
    assert [] == server.mails
    netrc.write_text('machine 127.0.0.1 login me password "pass word"\n')
    send(server)
    assert ["saved"] == server.events
    assert "[kimbox] study was saved" == server.mails[0]["Subject"]


def test_a_certificate_that_is_not_trusted(server: Box) -> None:
    with pytest.raises(KimboxError, match="CERTIFICATE_VERIFY_FAILED"):
        send(server)
    assert [] == server.mails
