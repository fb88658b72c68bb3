"""Sends a notification to services of apprise, whose URLs are in a file of the user."""

from __future__ import annotations

from kimbox.transfer.notices import base
from kimbox.transfer.notices.base import Message


def send(name: str, message: Message) -> None:
    """Sends a notification to each service of a file. Raises KimboxError (`notification-failed`)."""
    path = base.folder() / f"{name}.yaml"
    try:
        import apprise
    except ImportError:
        raise base.failed("apprise", "it is not installed", "pip install 'kimbox[notify]'") from None
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise base.failed("apprise", f"{path}: {error.strerror}") from None
    if mode & 0o077:
        raise base.failed("apprise", f"{path} contains secrets, and other users may read it", f"chmod 600 {path}")
    config = apprise.AppriseConfig()
    if not config.add(str(path)):
        raise base.failed("apprise", f"{path} cannot be read")
    services = apprise.Apprise()
    services.add(config)
    if not services.notify(title=f"[kimbox] {message['text'][:150]}", body=base.body(message)):
        raise base.failed("apprise", f"{path}: a service did not accept it, or the file names none")
