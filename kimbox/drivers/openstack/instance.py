"""The instance of a machine and what belongs to it in the cloud: key, address, snapshots.

The journal names a thing before it is created. So `remove` finds everything, also after kimbox was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import attrs

from kimbox.drivers.base import Launch
from kimbox.drivers.openstack.check import Place
from kimbox.drivers.openstack.cloud import Action, Address, Cloud, CloudImage, Server, ServerOrder, Status
from kimbox.drivers.openstack.journal import ADDRESS, KEY, SERVER, SNAPSHOT, Journal
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import read_bounded
from kimbox.log import log
from kimbox.machine.folder import Machine

#: Interval between two questions to the cloud, in seconds.
POLL_S = 2.0

#: Maximum time in which a cloud does what a killed process has requested, in seconds.
ANSWER_S = 30.0

Answer = TypeVar("Answer")

#: First words of user data that the guest takes (provisioners/base, `cloud`).
HEADING = "#kimbox-manifest"

#: Maximum size of user data before it is encoded in base64, in bytes: Nova takes 65535 characters.
MAX_USER_DATA = 65535 // 4 * 3

#: State of an instance, and the wanted one -> the action that leads to it. Without one, the cloud is on the way.
ACTIONS: dict[tuple[str, str], Action] = {
    (Status.SHUTOFF, Status.ACTIVE): Action.START,
    (Status.SUSPENDED, Status.ACTIVE): Action.RESUME,
    (Status.PAUSED, Status.ACTIVE): Action.UNPAUSE,
    (Status.ACTIVE, Status.SHUTOFF): Action.STOP,
    (Status.PAUSED, Status.SHUTOFF): Action.STOP,
    (Status.ERROR, Status.SHUTOFF): Action.STOP,
    (Status.ACTIVE, Status.SUSPENDED): Action.SUSPEND,
}


@attrs.frozen
class Waits:
    """Waits for the cloud of the machine `name`, each with the same limit."""

    name: str
    timeout_s: float

    def until(self, what: str, done: Callable[[], bool]) -> None:
        """Waits until `done` returns true. `what` is a noun. Raises GuestError (`instance-failed`) at the timeout."""
        log.now(f"waiting for {what}")
        deadline = time.monotonic() + self.timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise GuestError(
                    f"{self.name} did not show {what} within {self.timeout_s:.0f} s",
                    code="instance-failed",
                    hint=f"`kimbox logs --serial {self.name}` shows its console. A rule of the cloud (security group) "
                    "may forbid ssh. `openstack: {timeout: 30m}` in the spec allows more time from the next start on",
                    fields={"name": self.name, "what": what},
                )
            time.sleep(POLL_S)


def find(cloud: Cloud, journal: Journal) -> Server | None:
    """Returns the instance; None if the cloud has none."""
    return next(iter(cloud.servers(journal.name)), None) if SERVER in journal.made else None


def _need(cloud: Cloud, journal: Journal) -> Server:
    """Returns the instance. Raises StateError (`cloud-not-found`) if the cloud has none."""
    server = find(cloud, journal)
    if server is None:
        raise StateError(
            f"the instance {journal.name} is no longer in the cloud",
            code="cloud-not-found",
            hint="`kimbox up` creates another one, on a new disk",
            fields={"server": journal.name},
        )
    return server


def order(machine: Machine, journal: Journal, launch: Launch, place: Place, image: str) -> ServerOrder:
    """Returns what the instance is made of. The manifest goes with it if it is small enough; else ssh brings it."""
    metadata = {"kimbox_hostname": machine.name}
    if launch.record.scratch:
        metadata["kimbox_scratch"] = launch.record.scratch.mount
    user_data = b""
    if launch.delivery and launch.delivery.size_bytes < MAX_USER_DATA:
        archive = read_bounded(machine.delivery, limit_bytes=MAX_USER_DATA)
        user_data = f"{HEADING} {launch.delivery.credential()}\n".encode() + archive
        user_data = user_data if len(user_data) <= MAX_USER_DATA else b""
    name = journal.name
    return ServerOrder(name, image, place.flavor.id, place.network, name, metadata, user_data)


def create(cloud: Cloud, journal: Journal, order: ServerOrder, public_key: str, place: Place, waits: Waits) -> None:
    """Creates the instance with key and address, and waits until it is active.

    Raises GuestError (`instance-failed`) with the reason of the cloud, and the errors of `Cloud`.
    """
    journal = attrs.evolve(journal, outside=place.outside)
    journal, _ = _ask(journal, KEY, lambda: cloud.import_key(order.key, public_key))
    journal, _ = _ask(journal, SERVER, lambda: cloud.create_server(order))
    bring_to(cloud, journal, Status.ACTIVE, waits)
    if place.outside is not None:
        _attach_address(cloud, journal, place.outside)


def _ask(journal: Journal, kind: str, request: Callable[[], Answer]) -> tuple[Journal, Answer]:
    """Requests something of a kind. The journal names it before, and afterwards that the cloud has answered."""
    journal = journal.adding(kind, is_asked=True)
    try:
        answer = request()
    except KimboxError as error:
        if error.fields.get("status"):  # refused. Without a status, the cloud may have received it, and work on it
            journal.answered()
        raise
    return journal.answered(), answer


def _await_answer(cloud: Cloud, journal: Journal) -> Journal:
    """Waits for what was requested last, if kimbox was killed before the answer: the cloud may still be making it."""
    exists: dict[str, Callable[[], bool]] = {
        KEY: lambda: journal.name in set(cloud.keys()),
        SERVER: lambda: bool(cloud.servers(journal.name)),
        ADDRESS: lambda: bool(_own(cloud, journal)),
    }
    if journal.asked not in exists:
        return journal
    requested = journal.file.stat().st_mtime
    while not exists[journal.asked]() and 0 <= time.time() - requested < ANSWER_S:
        time.sleep(POLL_S)
    return journal.answered()


def _attach_address(cloud: Cloud, journal: Journal, outside: str) -> None:
    """Attaches a free address of the project, or else a new one, which is released with the machine."""
    server = _need(cloud, journal)
    free = next((address for address in cloud.addresses(outside) if address.is_free), None)
    if free is None:
        journal, made = _ask(journal, ADDRESS, lambda: cloud.allocate(outside, journal.name))
        free = made
    attrs.evolve(journal, address=free.id).write()
    cloud.attach(free.id, server.id)


def address(cloud: Cloud, journal: Journal) -> str:
    """Returns the address at which this host reaches the instance. Raises GuestError (`no-address`)."""
    if journal.outside is not None:
        found = [item.ip for item in cloud.addresses(journal.outside) if item.id == journal.address]
    else:
        found = list(_need(cloud, journal).addresses)
    if not found:
        raise GuestError(
            f"the instance {journal.name} has no address",
            code="no-address",
            hint="`openstack: {network: NAME}` in the spec must be a network with IPv4; `address: NAME` adds a "
            "floating address",
            fields={"server": journal.name},
        )
    return found[0]


def bring_to(cloud: Cloud, journal: Journal, wanted: Status, waits: Waits) -> None:
    """Brings the instance to a state by the action that leads to it, and waits for it.

    Raises GuestError (`instance-failed`) if it is in the state ERROR.
    """
    asked_in = ""  # the state in which the last action was requested: it is requested once

    def is_there() -> bool:
        nonlocal asked_in
        server = _need(cloud, journal)
        if server.status == Status.ERROR and wanted is not Status.SHUTOFF:
            raise GuestError(
                f"the instance {journal.name} failed: {server.fault or 'the cloud gives no reason'}",
                code="instance-failed",
                fields={"server": journal.name, "reason": server.fault},
            )
        asked_in = asked_in if server.status == asked_in else ""
        action = ACTIONS.get((server.status, wanted))
        if action and not asked_in and not server.is_busy:
            cloud.act(server.id, action)
            asked_in = server.status
        return server.status == wanted and not server.is_busy

    waits.until(f"the state {wanted} of its instance", is_there)


def remove(cloud: Cloud, journal: Journal, waits: Waits, *, snapshots: bool) -> None:
    """Removes the instance with key and address, and the snapshots if requested.

    A floating address that was free before stays with the project.
    """
    journal = _await_answer(cloud, journal)
    if SERVER in journal.made:

        def is_gone() -> bool:
            found = cloud.servers(journal.name)
            for server in found:
                cloud.delete_server(server.id)
            return not found

        waits.until("the end of its instance", is_gone)
        journal = journal.without(SERVER)
    if ADDRESS in journal.made:
        for item in _own(cloud, journal):
            cloud.release(item.id)
        journal = attrs.evolve(journal, address=None).without(ADDRESS)
    if KEY in journal.made:
        cloud.delete_key(journal.name)
        journal = journal.without(KEY)
    for name in journal.snapshots if snapshots else ():
        delete_snapshot(cloud, journal, name)
        journal = journal.without(f"{SNAPSHOT}{name}")


def _own(cloud: Cloud, journal: Journal) -> list[Address]:
    """The addresses that were allocated for the machine."""
    if journal.outside is None:
        return []
    return [item for item in cloud.addresses(journal.outside) if item.description == journal.name]


# ---- snapshots


def _idle(cloud: Cloud, journal: Journal, waits: Waits) -> Server:
    """Returns the instance when the cloud does not work on it, for example on the image of the last snapshot."""
    waits.until("the end of the cloud's work on its instance", lambda: not _need(cloud, journal).is_busy)
    return _need(cloud, journal)


def _images(cloud: Cloud, journal: Journal, name: str) -> list[CloudImage]:
    return cloud.images(name=f"{journal.name}-{name}")


def save(cloud: Cloud, journal: Journal, name: str, waits: Waits) -> None:
    """Makes an image of the instance, and waits until it is complete. If that fails, no part of it is left."""
    try:
        cloud.snapshot(_idle(cloud, journal, waits).id, f"{journal.name}-{name}")
        waits.until("the image of its snapshot", lambda: _is_complete(cloud, journal, name))
    except BaseException:
        try:
            delete_snapshot(cloud, journal, name)
        except KimboxError as error:  # the first error is the one to report
            log.detail(f"an incomplete snapshot stays in the cloud: {error}")
        raise


def _is_complete(cloud: Cloud, journal: Journal, name: str) -> bool:
    """Whether the image of a snapshot is complete. Raises GuestError if the cloud has given it up."""
    found = _images(cloud, journal, name)
    if not found:
        raise GuestError(
            f"the cloud made no image of {journal.name}", code="instance-failed", fields={"server": journal.name}
        )
    return found[0].status == Status.ACTIVE


def restore(cloud: Cloud, journal: Journal, name: str, waits: Waits) -> None:
    """Replaces the disk of the instance by a snapshot. Raises StateError if the image is no longer in the cloud."""
    found = _images(cloud, journal, name)
    if not found:
        raise StateError(
            f"the snapshot {name} is no longer in the cloud",
            code="snapshot-not-found",
            fields={"snapshot": name},
        )
    cloud.rebuild(_idle(cloud, journal, waits).id, found[0].id)

    def is_restored() -> bool:
        server = _need(cloud, journal)
        is_done = server.status in (Status.ACTIVE, Status.SHUTOFF) and not server.is_busy
        return is_done or server.status == Status.ERROR

    waits.until("the restored disk", is_restored)


def delete_snapshot(cloud: Cloud, journal: Journal, name: str) -> None:
    """Removes the image of a snapshot."""
    for image in _images(cloud, journal, name):
        cloud.delete_image(image.id)
    journal.without(f"{SNAPSHOT}{name}")
