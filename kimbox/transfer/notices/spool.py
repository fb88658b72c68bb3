"""The spool: notifications on disk that wait to be sent. A failure is attempted again, and hurts nothing else.

A notification is removed after it was sent. If kimbox is killed between the two, it is sent again, with the same id.
"""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths, utctime
from kimbox.errors import KimboxError
from kimbox.files import private_dir, read_json, write_json
from kimbox.log import log
from kimbox.spec.occasions import Notify, Occasion
from kimbox.transfer.notices import mail, program, services
from kimbox.transfer.notices.base import Message

#: Version of a notification and of its file.
FORMAT = 1

#: Maximum number of notifications that wait.
MAX_WAITING = 1000

#: Maximum size of the file of a notification, in bytes.
MAX_FILE_BYTES = 64 << 10

#: Time until the next attempt after the first, second, ... failure, in seconds. The last one is repeated.
DELAYS_S = (60, 300, 900, 3600, 6 * 3600)

#: Age after which a notification that cannot be sent is dropped, in seconds.
MAX_AGE_S = 7 * 86400


@attrs.frozen
class Waiting:
    """A notification in the spool."""

    path: Path
    message: Message
    target: Notify
    attempts: int
    next_at_s: float

    def write(self, reason: str | None = None) -> None:
        """Writes its file. `reason`: why the last attempt failed."""
        value = {"format": FORMAT, "message": self.message, "target": attrs.asdict(self.target), "reason": reason}
        write_json(self.path, value | {"attempts": self.attempts, "next_at_s": self.next_at_s}, mode=0o600)


@attrs.frozen
class Delivery:
    """The result of an attempt: `reason` is None if the notification was sent."""

    message: Message
    reason: str | None = None


def folder() -> Path:
    """The folder of the notifications that wait."""
    return paths.home() / "spool"


def make_message(
    occasion: Occasion, name: str, box: str, text: str, details: Mapping[str, Any], at_s: float
) -> Message:
    """Returns a notification about a box. `details` are values of JSON."""
    return {
        "format": FORMAT,
        "id": str(uuid.uuid4()),
        "event": str(occasion),
        "at": utctime.text(at_s),
        "name": name,
        "box": box,
        "host": socket.gethostname(),
        "text": text,
        "details": dict(details),
    }


def put(message: Message, target: Notify, now_s: float) -> None:
    """Puts a notification into the spool. If it is full, that is a warning."""
    place = private_dir(folder())
    if len(_files()) >= MAX_WAITING:
        log.warn(f"{place} has {MAX_WAITING} notifications that cannot be sent: another one is dropped")
        return
    name = f"{int(now_s * 1000):015}-{message['id']}-{uuid.uuid4().hex[:8]}.json"
    Waiting(place / name, message, target, 0, now_s).write()


def _files() -> list[Path]:
    """The files of the spool, oldest first."""
    with contextlib.suppress(OSError):
        return sorted(path for path in folder().iterdir() if path.suffix == ".json")
    return []


def waiting(*, removes: bool = False) -> Iterator[Waiting]:
    """Yields the notifications in the spool, oldest first. `removes`: a damaged file is removed, with a warning.

    The file of a newer version of kimbox stays for that one.
    """
    for path in _files():
        try:
            value = read_json(path, limit_bytes=MAX_FILE_BYTES)
            if int(value["format"]) > FORMAT:
                continue
            events = tuple(map(Occasion, value["target"]["events"]))
            target = Notify(**value["target"] | {"events": events})
            utctime.seconds(value["message"]["at"])
            yield Waiting(path, value["message"], target, int(value["attempts"]), float(value["next_at_s"]))
        except FileNotFoundError:
            continue
        except (KimboxError, KeyError, TypeError, ValueError) as error:
            if removes:
                log.warn(f"a notification is damaged, and is removed: {path}: {error}")
                path.unlink(missing_ok=True)


def has_due(now_s: float) -> bool:
    """Whether a notification has to be sent now."""
    return any(one.next_at_s <= now_s for one in waiting())


def send(target: Notify, message: Message) -> None:
    """Sends a notification to its target. Raises KimboxError."""
    if target.mail:
        mail.send(target, message)
    elif target.command:
        program.send(target.command, message)
    elif target.apprise:
        services.send(target.apprise, message)


def deliver(now_s: float, sender: Callable[[Notify, Message], None] = send) -> list[Delivery]:
    """Attempts to send each notification that is due. One that fails waits longer each time, and is dropped at last.

    The others to a target that failed wait, too, without an attempt: a notifier that hangs costs its timeout once.
    """
    done: list[Delivery] = []
    broken: dict[Notify, str] = {}
    for one in waiting(removes=True):
        if one.next_at_s > now_s:
            continue
        reason = broken.get(one.target)
        if reason is None:
            reason = _attempt(one, sender)
        if reason is None:
            one.path.unlink(missing_ok=True)
        else:
            broken[one.target] = reason
            _postpone(one, reason, now_s)
        done.append(Delivery(one.message, reason))
    return done


def _attempt(one: Waiting, sender: Callable[[Notify, Message], None]) -> str | None:
    """Sends a notification. Returns why that failed; None if it did not."""
    try:
        sender(one.target, one.message)
    except KimboxError as error:
        return error.message + (f" ({error.hint})" if error.hint else "")
    except Exception as error:  # of a library that sends it: nothing else may suffer from it
        return repr(error)[:500]
    return None


def _postpone(one: Waiting, reason: str, now_s: float) -> None:
    if now_s - utctime.seconds(one.message["at"]) > MAX_AGE_S:
        log.warn(f"a notification of {one.message['at']} about {one.message['name']} is dropped: {reason}")
        one.path.unlink(missing_ok=True)
        return
    delay_s = DELAYS_S[min(one.attempts, len(DELAYS_S) - 1)]
    attrs.evolve(one, attempts=one.attempts + 1, next_at_s=now_s + delay_s).write(reason)
