"""The events of a box of which somebody can be notified, and the targets of notifications."""

from __future__ import annotations

from enum import StrEnum

import attrs


class Occasion(StrEnum):
    """An event of the life of a box on its host, of which somebody can be notified."""

    READY = "ready"  #: a start has ended: the box is ready
    SAVED = "saved"  #: a save is complete and verified
    SAVE_FAILED = "save-failed"  #: a save failed; the disk is as it was
    EXPIRING = "expiring"  #: the lifetime ends in an hour or less
    EXPIRED = "expired"  #: the lifetime has ended
    CRASHED = "crashed"  #: the box does not run, and was not halted


@attrs.frozen
class Notify:
    """One target of notifications. One of `mail`, `command` and `apprise` is not None."""

    #: A mail address.
    mail: str | None = None
    #: URL of the SMTP server: smtp: or smtps:. None: the program sendmail of this host.
    server: str | None = None
    #: Address of the sender. None: user and name of this host.
    sender: str | None = None
    #: Name of a program in the user's folder of notifiers. It gets JSON on stdin.
    command: str | None = None
    #: Name of a configuration of apprise in that folder, without its suffix `.yaml`.
    apprise: str | None = None
    events: tuple[Occasion, ...] = tuple(Occasion)
