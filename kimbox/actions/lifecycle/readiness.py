"""Brings a machine whose process runs to ready: waits for the guest, sends its manifest where it has another."""

from __future__ import annotations

from kimbox.actions.observe import observe
from kimbox.actions.watch import Watch, failure, fallen_back, longest_step, provisioning_limit
from kimbox.errors import GuestError
from kimbox.guest import shared
from kimbox.guest.delivery import Part, deliver
from kimbox.guest.events import Event
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.machine import bootmode, delivered_locks
from kimbox.machine.console import SNAPSHOT_FULL
from kimbox.machine.folder import Machine
from kimbox.machine.state import DONE, last_manifest_event, sent_manifest
from kimbox.project.plan import Plan


def check_root(machine: Machine) -> None:
    """Raises GuestError if the root of a running box is lost: it cannot answer any request then."""
    if observe(machine).snapshot_full:
        raise GuestError(f"{machine.name}: {SNAPSHOT_FULL.message}", hint=SNAPSHOT_FULL.hint)


def bring_to_ready(
    machine: Machine, plan: Plan, *, timeout_s: float, again: bool, part: Part | None = None, send: bool = True
) -> None:
    """Waits for the guest, sends it the manifest where it has another, and waits until the guest is ready with it.

    A box in maintain mode or a sealed box is never sent anything. `again`: the manifest is sent even where the guest
    has it, or has gone back from it. `part`: only this part of the manifest is run. `send`: False only waits for the
    boot. Raises GuestError if the guest fails, or does not answer within `timeout_s`.
    """
    box, digest = plan.box, plan.digest
    watch = Watch(machine, timeout_s, longest_step(box), total_timeout_s=provisioning_limit(box))
    if any(event.name in (*DONE, "failed") for event in machine.boot_events()):
        watch.catch_up()  # what was shown before, or is in the log, is not shown again
    with log.step(f"booting {machine.name}"):
        watch.until("waiting for the guest", _has_settled)
    if machine.record().sealed and not machine.unseal_mark.exists():
        _wait_until_sealed(machine, watch, digest)
        return
    if bootmode.is_maintained(machine):  # anything that is sent or run there would become part of the base
        watch.until("waiting for the guest", lambda w: any(w.seen(name) for name in ("ready", "failed", "waiting")))
        if failed := watch.seen("failed"):
            raise failure(machine, failed)
        return
    if not send:
        return
    last = last_manifest_event(watch.events)
    if last and last.name in DONE and last.text("manifest") == digest == sent_manifest(last) and not again:
        return
    with log.step(f"provisioning {box.name}"):
        has_manifest = last is not None and sent_manifest(last) == digest
        has_failed = last is not None and last.name == "failed" and "wanted" not in last.fields
        if again or has_failed or not has_manifest:
            _send(machine, plan, watch, part)
        try:
            watch.until("provisioning", lambda w: _answer(w, digest) is not None)
        finally:
            shared.retire(machine.folder)  # a new login may have other groups
    answer = _answer(watch, digest)
    if answer and sent_manifest(answer) != answer.text("manifest"):
        raise fallen_back(machine, answer, watch.seen("fallback"))
    if answer and answer.name == "failed":
        raise failure(machine, answer)


def _send(machine: Machine, plan: Plan, watch: Watch, part: Part | None) -> None:
    """Sends the manifest as soon as the guest's sshd runs; what the guest reported of an earlier one is forgotten."""
    watch.until("waiting for sshd", lambda w: w.seen("sshd") is not None)
    delivered_locks.keep(machine, plan.digest, plan.lock, plan.manifest["box.json"][0])
    with Guest(machine.endpoint(machine.record())) as guest:
        deliver(guest, plan.payload, machine.folder, part)
    watch.events = [event for event in watch.events if event.name in ("booting", "hostkey", "sshd")]


def _wait_until_sealed(machine: Machine, watch: Watch, digest: str) -> None:
    """Waits for a box that was secured; it provisions and closes itself without the host."""
    with log.step(f"sealing {machine.name}"):
        watch.until("sealing", lambda w: w.seen("failed") is not None or w.seen("sealed") is not None)
    answer = next(event for event in reversed(watch.events) if event.name in ("failed", "sealed"))
    if answer.name == "failed":
        raise failure(machine, answer)
    if sent_manifest(answer) != digest:
        log.warn(
            f"{machine.name} is sealed and keeps the manifest that it was sealed with: what spec and lock say now "
            f"reaches it only by `kimbox destroy {machine.name}`"
        )


def _has_settled(watch: Watch) -> bool:
    """Whether the guest has reported its manifest, or that it has none."""
    return any(watch.seen(name) for name in ("waiting", "provisioning", *DONE, "failed"))


def _answer(watch: Watch, digest: str) -> Event | None:
    """The last event that says how that manifest ended: ready, failed, or what the guest has gone back to."""
    for event in reversed(watch.events):
        if event.name in (*DONE, "failed") and sent_manifest(event) == digest:
            return event
    return None
