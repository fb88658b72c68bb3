"""Prepares the disk with the manifest for a machine that starts, so that its guest need not wait for ssh."""

from __future__ import annotations

import contextlib

from kimbox.drivers import registry
from kimbox.errors import KimboxError
from kimbox.guest import deliverydisk
from kimbox.guest.delivery import parcels_of, write_disk
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.guest.events import Event
from kimbox.lock.lockfile import read_lock
from kimbox.log import log
from kimbox.machine import delivered_locks
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.state import last_manifest_event, sent_manifest
from kimbox.project.plan import Plan
from kimbox.spec.model import BootMode


def prepare(machine: Machine, plan: Plan, choice: Choice) -> DeliveryDisk | None:
    """Writes `Machine.delivery` with the manifest and the commits that the guest lacks. None if no disk is needed.

    An open box needs none if it has reported this manifest. A sealed box gets one at each start: ssh does not reach it,
    and what is on its own disk may have been changed by a job. A box in maintain mode gets no manifest. `choice`: the
    boot mode of the command line. The machine does not run.
    """
    last = last_manifest_event(machine.boot_events())
    if not _is_needed(machine, plan, choice, last):
        deliverydisk.discard(machine.delivery)  # left by a kimbox that was killed before the start
        return None
    with log.step("preparing the manifest and its commits"):
        has = _keys_in_guest(machine, plan, last)
        delivered_locks.keep(machine, plan.delivered)
        return write_disk(plan.payload, has, machine.delivery)


def _is_needed(machine: Machine, plan: Plan, choice: Choice, last: Event | None) -> bool:
    """Whether the guest has to get a disk. `last`: the last event that names a manifest."""
    if not registry.of(machine).features.delivery_disk:
        return False
    if machine.unseal_mark.exists() or (choice.mode or plan.box.boot) is BootMode.MAINTAIN:
        return False
    if last is None or machine.record().sealed:
        return True
    return not _was_taken(last, plan.digest) and last.text("mode") != BootMode.MAINTAIN


def _was_taken(last: Event, digest: str) -> bool:
    """Whether the last event that names a manifest shows that the guest has taken this one, with its commits."""
    return sent_manifest(last) == digest and not _is_refusal(last)


def _is_refusal(event: Event) -> bool:
    """Whether the guest may not have taken the manifest that it names: it could not, or its start failed before."""
    return event.name == "failed" and event.text("kind") in ("receive", "start")


def _keys_in_guest(machine: Machine, plan: Plan, last: Event | None) -> set[tuple[str, str]]:
    """Name of a repository and key of each parcel that the guest took with a manifest that it has reported.

    Empty if it could not take the last one: then it gets every parcel.
    """
    if last is None or _is_refusal(last):
        return set()
    keys: set[tuple[str, str]] = set()
    for digest in {last.text("manifest"), sent_manifest(last)}:
        with contextlib.suppress(KimboxError, OSError):
            lock = read_lock(delivered_locks.lock_file(machine, digest))
            keys |= {(parcel.name, key) for parcel in parcels_of(plan.box, lock) for key in parcel.keys}
    return keys
