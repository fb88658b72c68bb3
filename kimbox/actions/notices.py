"""Notifies of what happened to a machine. The notification goes into the spool, and is sent later: nothing waits."""

from __future__ import annotations

import time
from typing import Any

from kimbox.errors import KimboxError
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.life import read_life
from kimbox.spec.occasions import Occasion
from kimbox.transfer.notices import spool


def notify(machine: Machine, occasion: Occasion, text: str, **details: Any) -> None:
    """Puts a notification into the spool for each target of the machine that gets this event. Never raises an error.

    `text`: one sentence for a person. `details`: values of JSON.
    """
    try:
        targets = [target for target in read_life(machine).notify if occasion in target.events]
        if targets:
            now_s = time.time()
            message = spool.make_message(occasion, machine.name, machine.record().box, text, details, now_s)
            for target in targets:
                spool.put(message, target, now_s)
    except (KimboxError, OSError) as error:
        log.warn(f"the notification `{text}` cannot be written: {error}")
