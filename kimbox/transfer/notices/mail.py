"""Sends a notification as a mail: to an SMTP server, or with the program sendmail of this host."""

from __future__ import annotations

import email.utils
import getpass
import ipaddress
import smtplib
import ssl
from email.message import EmailMessage
from urllib.parse import urlsplit

from kimbox import run, utctime
from kimbox.errors import KimboxError
from kimbox.spec.occasions import Notify
from kimbox.transfer import address
from kimbox.transfer.notices import base
from kimbox.transfer.notices.base import TIMEOUT_S, Message

#: Ports of the schemes (RFC 5321, RFC 8314).
_PORTS = {"smtp": 25, "smtps": 465}


def send(target: Notify, message: Message) -> None:
    """Sends a mail. Raises KimboxError (`notification-failed`)."""
    mail = compose(target, message)
    if target.server is None:
        _sendmail(mail)
    else:
        _smtp(target.server, mail)


def compose(target: Notify, message: Message) -> EmailMessage:
    """Returns the mail of a notification. Its id is that of the notification, so that a second one is recognized."""
    mail = EmailMessage()
    mail["To"] = target.mail
    mail["From"] = target.sender or f"{getpass.getuser()}@{message['host']}"
    mail["Subject"] = f"[kimbox] {' '.join(message['text'].split())[:150]}"
    mail["Date"] = email.utils.formatdate(utctime.seconds(message["at"]))
    mail["Message-ID"] = f"<{message['id']}@kimbox.invalid>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answer
    mail.set_content(base.body(message))
    return mail


def _sendmail(mail: EmailMessage) -> None:
    hint = "install a program that has /usr/sbin/sendmail, or name a mail server: `server: smtp://HOST`"
    if run.which("sendmail") is None:
        raise base.failed("sendmail", "the program is not installed", hint)
    try:
        run.run(["sendmail", "-i", "--", str(mail["To"])], input=mail.as_string(), timeout_s=TIMEOUT_S)
    except KimboxError as error:
        raise base.failed("sendmail", error.message) from None


def _smtp(url: str, mail: EmailMessage) -> None:
    """Sends a mail to a server. A password of ~/.netrc goes over TLS alone, or to this host."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    where, context = f"{host}:{port}", ssl.create_default_context()
    try:
        login = address.netrc_entry(host)
        if parts.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
        with server:
            server.ehlo()
            is_private = parts.scheme == "smtps" or _is_this_host(host)  # which has no certificate of its name
            if not is_private and server.has_extn("starttls"):
                server.starttls(context=context)
                is_private = True
            if login and not is_private:
                raise base.failed(where, "the server has no TLS, and ~/.netrc has a password for it", "use smtps://")
            if login and server.has_extn("auth"):
                server.login(*login)
            server.send_message(mail)
    except (OSError, smtplib.SMTPException, ssl.SSLError, UnicodeError) as error:
        raise base.failed(where, str(error) or type(error).__name__) from None


def _is_this_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
