"""Builds what a spec says about the life of a box: how long it is, and who is notified of its events."""

from __future__ import annotations

import re

from kimbox.spec import units, urls
from kimbox.spec.nodes import Fault, Node, shown
from kimbox.spec.occasions import Notify, Occasion
from kimbox.spec.reader import Reader

#: The longest lifetime that a spec can give a box, in seconds: a year.
MAX_LIFETIME_S = 366 * 86400

#: The shortest one, in seconds: a box has to boot, and to be saved.
MIN_LIFETIME_S = 60

#: Maximum length of a mail address (RFC 5321, 4.5.3.1.3, without the brackets).
MAX_ADDRESS_CHARACTERS = 254

_ADDRESS = re.compile(r"[A-Za-z0-9.!#%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def lifetime(text: str) -> int:
    """Returns the seconds of a lifetime. Raises Fault."""
    return units.duration(text, min_s=MIN_LIFETIME_S, max_s=MAX_LIFETIME_S)


def address(text: str) -> str:
    """A mail address, without a name and without quotes."""
    if len(text) > MAX_ADDRESS_CHARACTERS or not _ADDRESS.fullmatch(text) or text.startswith("-"):
        raise Fault(f"{shown(text)} is not a mail address", "for example someone@example.org", code="bad-value")
    return text


def notifier(text: str) -> str:
    """The name of a file in the folder `notifiers` of the user: no path, because a spec can come from somebody else."""
    if not _NAME.fullmatch(text):
        message = f"{shown(text)} is not the name of a notifier: use letters, digits, hyphens and underscores"
        hint = "put the program or the file into the folder notifiers of KIMBOX_HOME, and write its name here"
        raise Fault(message, hint, code="bad-name")
    return text


def read_notify(reader: Reader, node: Node | None) -> tuple[Notify, ...]:
    """Returns the notifications of a box. Reports a fault for each that names no target, or more than one."""
    found = []
    for item in node.items if node else ():
        targets = [key for key in ("mail", "command", "apprise") if item.get(key)]
        if len(targets) != 1:
            hint = "write `mail:`, `command:` or `apprise:`, and another entry for another one"
            reader.fault(item, "a notification has one target", hint, code="conflicting-settings")
            continue
        for key in ("server", "sender"):
            if (extra := item.get(key)) and targets != ["mail"]:
                reader.fault(extra, f"{key} is a setting of a mail", code="conflicting-settings")
        events = item.get("events")
        chosen = [(one, reader.text(one, _occasion, None)) for one in (events.items if events else ())]
        reader.refuse_duplicates([(one, str(value)) for one, value in chosen if value], "event")
        found.append(
            Notify(
                mail=reader.text(item.get("mail"), address, None),
                server=reader.text(item.get("server"), urls.mail_server, None),
                sender=reader.text(item.get("sender"), address, None),
                command=reader.text(item.get("command"), notifier, None),
                apprise=reader.text(item.get("apprise"), notifier, None),
                events=tuple(value for _, value in chosen if value) if events else tuple(Occasion),
            )
        )
    return tuple(found)


def _occasion(text: str) -> Occasion | None:
    return Occasion(text)
