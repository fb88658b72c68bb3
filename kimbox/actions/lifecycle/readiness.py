"""Brings a running machine to ready: waits for the guest, and sends the manifest if the guest has another one.

At a start the guest gets the manifest with a disk (handover.py). ssh is for a box that runs already, for a driver
without that disk, and for an image that does not know the disk.
"""

from __future__ import annotations

from collections.abc import Callable

from kimbox.actions.lifecycle import adoption
from kimbox.actions.observe import observe
from kimbox.actions.watch import Watch, error_of_failure, error_of_fallback, longest_step_s, provisioning_limit_s
from kimbox.drivers import registry
from kimbox.errors import GuestError, KimboxError
from kimbox.guest import deliverydisk, shared
from kimbox.guest.delivery import Part, deliver, give_secrets
from kimbox.guest.events import Event
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.machine import bootmode, delivered_locks, secretvalues
from kimbox.machine.console import SNAPSHOT_FULL
from kimbox.machine.folder import Machine
from kimbox.machine.state import DONE, last_manifest_event, sent_manifest
from kimbox.project.plan import Plan

#: A guest takes at least this many bytes of a delivery disk per second: also one that is emulated on a busy host.
TAKEN_BYTES_S = 1 << 20


def check_root(machine: Machine) -> None:
    """Raises GuestError if a running box has lost its root, because it cannot answer any request then."""
    if observe(machine).snapshot_full:
        raise GuestError(
            f"{machine.name}: {SNAPSHOT_FULL.message}",
            code="snapshot-full",
            hint=SNAPSHOT_FULL.hint,
            fields={"name": machine.name},
        )


def bring_to_ready(
    machine: Machine,
    plan: Plan,
    *,
    timeout_s: float,
    must_send: bool,
    part: Part | None = None,
    may_send: bool = True,
    connects: bool = True,
) -> None:
    """Waits for the guest, sends the manifest if the guest has another one, and waits until the guest is ready with it.

    Nothing is sent to a box in maintain mode or to a sealed box. `must_send`: the manifest is sent even if the guest
    has it already, or has fallen back from it. `part`: the guest runs only this part of the manifest. `may_send`: False
    only waits for the boot. `connects`: opens the shared connection of ssh for the commands that will follow. Raises
    GuestError if the guest fails, or does not answer within `timeout_s`.
    """
    box, digest = plan.box, plan.digest
    if machine.delivery.exists():
        timeout_s += machine.delivery.stat().st_size / TAKEN_BYTES_S
    watch = Watch(machine, timeout_s, longest_step_s(box), total_timeout_s=provisioning_limit_s(box), digest=digest)
    if any(event.name in (*DONE, "failed") for event in machine.boot_events()):
        watch.catch_up()  # so that events and output of an earlier command are not shown again
    watch.show_fallback(not (must_send and may_send))  # what is sent replaces the manifest that failed
    # PAM sets the variables of `env` at a login, and the guest has them from its manifest: not as soon as sshd runs.
    is_early = connects and not box.variables
    with log.step(f"booting {machine.name}"):
        if adoption.is_needed(machine):
            adoption.adopt(machine, box, watch, timeout_s)
        watch.wait_until("waiting for the guest", _connecting(machine, _has_settled) if is_early else _has_settled)
    deliverydisk.discard(machine.delivery)  # the guest has taken it, or cannot
    if machine.record().sealed and not machine.unseal_mark.exists():
        _wait_until_sealed(machine, watch, digest if may_send else None)
        return
    if bootmode.is_maintained(machine):  # the effects of a manifest would become part of the base
        _wait_until_maintained(machine, watch)
        return
    if not may_send:
        return
    last = last_manifest_event(watch.events)
    if last and last.name in DONE and last.text("manifest") == digest == sent_manifest(last) and not must_send:
        return
    with log.step(f"provisioning {box.name}"):
        has_manifest = last is not None and sent_manifest(last) == digest
        has_failed = last is not None and last.name == "failed" and "wanted" not in last.fields
        if must_send or has_failed or not has_manifest:
            _send(machine, plan, watch, part)
        try:
            watch.wait_until("provisioning", lambda w: _answer(w, digest) is not None)
        finally:
            shared.retire(machine.folder)  # the groups of the user may have changed: only a new login has the new ones
        if connects:
            _connect(machine)
    answer = _answer(watch, digest)
    if answer and sent_manifest(answer) != answer.text("manifest"):
        raise error_of_fallback(machine, answer, watch.last_event("fallback"))
    if answer and answer.name == "failed":
        raise error_of_failure(machine, answer)


def _connecting(machine: Machine, is_done: Callable[[Watch], bool]) -> Callable[[Watch], bool]:
    """Returns the condition `is_done`, which also starts to open the shared connection when the guest's sshd runs.

    The login goes on while the rest of the guest starts, so that the first command after `up` need not wait for it.
    """
    is_waiting = not machine.record().sealed

    def check(watch: Watch) -> bool:
        nonlocal is_waiting
        if is_waiting and watch.last_event("sshd"):
            is_waiting = False
            _connect(machine)
        return is_done(watch)

    return check


def _connect(machine: Machine) -> None:
    """Starts to open the shared connection to an open box, if the box has reported its host key."""
    if machine.known_hosts.exists():
        try:
            shared.open_early(machine.endpoint(machine.record()))
        except (KimboxError, OSError) as error:  # the first command opens it, or reports why it cannot
            log.detail(f"no connection to {machine.name} is opened in advance: {error}")


def _send(machine: Machine, plan: Plan, watch: Watch, part: Part | None) -> None:
    """Sends the manifest as soon as the guest's sshd runs, and removes the events of an earlier one from `watch`."""
    watch.wait_until("waiting for sshd", lambda w: w.last_event("sshd") is not None)
    delivered_locks.keep(machine, plan.delivered)
    with Guest(machine.endpoint(machine.record())) as guest:
        if registry.of(machine).features.secrets_by_ssh and (text := secretvalues.text_of(plan.box)):
            give_secrets(guest, text)
        deliver(guest, plan.payload, machine.folder, part)
    watch.show_fallback(True)
    watch.events = [event for event in watch.events if event.name in ("booting", "hostkey", "sshd")]


def _wait_until_sealed(machine: Machine, watch: Watch, digest: str | None) -> None:
    """Waits for a box that has its role. It provisions and seals itself without the host.

    `digest`: the manifest that it has been given; None if it may have any. Raises GuestError if the box fails, or if it
    is sealed with its last good manifest because the new one has failed.
    """
    with log.step(f"sealing {machine.name}"):
        watch.wait_until("sealing", lambda w: w.last_event("failed") is not None or w.last_event("sealed") is not None)
    answer = next(event for event in reversed(watch.events) if event.name in ("failed", "sealed"))
    if answer.name == "failed":
        raise error_of_failure(machine, answer)
    if digest is None:
        return
    if sent_manifest(answer) != digest:
        log.warn(
            f"{machine.name} is sealed and keeps the manifest that it was sealed with: its image was built by an older "
            f"kimbox. Only `kimbox destroy {machine.name}` and `kimbox up` bring the present spec and lock"
        )
    elif answer.text("manifest") != digest:
        raise error_of_fallback(machine, answer, watch.last_event("fallback"))


def _wait_until_maintained(machine: Machine, watch: Watch) -> None:
    """Waits for a box in maintain mode, which runs no manifest. Raises GuestError if it fails."""
    names = ("ready", "failed", "waiting")
    watch.wait_until("waiting for the guest", lambda w: any(w.last_event(name) for name in names))
    if failed := watch.last_event("failed"):
        raise error_of_failure(machine, failed)


def _has_settled(watch: Watch) -> bool:
    """Whether the guest has reported which manifest it has, or that it has none."""
    return any(watch.last_event(name) for name in ("waiting", "provisioning", *DONE, "failed"))


def _answer(watch: Watch, digest: str) -> Event | None:
    """Returns the last event with the result of a manifest, if there is one.

    It is `ready`, `sealed` or `failed`, also for the manifest to which the guest has fallen back.
    """
    for event in reversed(watch.events):
        if event.name in (*DONE, "failed") and sent_manifest(event) == digest:
            return event
    return None
