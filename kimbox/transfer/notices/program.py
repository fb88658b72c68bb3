"""Gives a notification to a program of the user, as JSON on stdin."""

from __future__ import annotations

import json
import os

from kimbox import run
from kimbox.errors import KimboxError
from kimbox.transfer.notices import base
from kimbox.transfer.notices.base import TIMEOUT_S, Message


def send(name: str, message: Message) -> None:
    """Runs a program of the folder of notifiers. Raises KimboxError (`notification-failed`), also if it hangs."""
    path = base.folder() / name
    if not path.is_file() or not os.access(path, os.X_OK):
        raise base.failed(name, f"{path} is not an executable file", f"put the program there, and run chmod +x {path}")
    try:
        run.run([path], input=json.dumps(message) + "\n", timeout_s=TIMEOUT_S)
    except (KimboxError, OSError) as error:  # OSError: no format of a program
        raise base.failed(name, str(error)) from None
