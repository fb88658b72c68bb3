"""What a notification says, and where programs and files for it are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kimbox import paths
from kimbox.errors import KimboxError

#: Time that the sending of one notification may take, in seconds.
TIMEOUT_S = 30.0

#: A notification: format, id, event, at, name, box, host, text and details.
Message = dict[str, Any]


def folder() -> Path:
    """The folder of the user's programs and apprise files. A spec names a file in it, and no path."""
    return paths.home() / "notifiers"


def failed(what: str, why: str, hint: str | None = None) -> KimboxError:
    """The error of a notification that was not sent (`notification-failed`)."""
    return KimboxError(f"a notification was not sent by {what}: {why[:500]}", code="notification-failed", hint=hint)


def body(message: Message) -> str:
    """Returns the text of a notification for a person."""
    details = {key: value for key, value in message["details"].items() if value is not None}
    lines = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in details.items()]
    facts = [
        f"box: {message['name']}",
        f"event: {message['event']}",
        f"time: {message['at']}",
        f"host: {message['host']}",
    ]
    return "\n".join([message["text"], "", *facts, *lines]) + "\n"
