"""The life of a machine: what each verb does, from any state, so that doing it again is safe."""

from __future__ import annotations

import time
import uuid

import attrs

from kimbox.actions.observe import check_owner, endpoint, is_open_still, observe, reach, refuse_sealed, state
from kimbox.actions.stop import HALT_TIMEOUT_S, destroy, halt, suspend
from kimbox.actions.watch import BOOT_TIMEOUT_S, Watch, failure, fallen_back, longest_step, provisioning_limit
from kimbox.drivers import registry
from kimbox.drivers.base import Driver, Launch, host_ports
from kimbox.errors import GuestError, KimboxError, StateError, UsageError
from kimbox.files import remove_tree, write_json
from kimbox.guest import shared
from kimbox.guest.delivery import Part, deliver
from kimbox.guest.events import Event
from kimbox.guest.ssh import Guest
from kimbox.image import obtain
from kimbox.image.store.images import Image
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock
from kimbox.log import log
from kimbox.machine import bootmode, keys, ports, ran
from kimbox.machine.bootmode import Choice
from kimbox.machine.console import SNAPSHOT_FULL
from kimbox.machine.folder import Machine, Record, Sealed
from kimbox.machine.state import DONE, State, last_word, require, wanted_by
from kimbox.project.pins import lock_for
from kimbox.project.unpinned import Instead, unpinned
from kimbox.render.manifest import Manifest, manifest_digest, render_manifest
from kimbox.spec.model import SETUP, Box
from kimbox.spec.urls import why_not_followed

__all__ = [
    "HALT_TIMEOUT_S", "Up", "destroy", "endpoint", "halt", "observe", "provision", "reach", "resume", "state",
    "suspend", "up",
]  # fmt: skip

#: First three bytes of MAC addresses that QEMU uses for virtual machines.
MAC_PREFIX = "52:54:00"


@attrs.frozen
class Up:
    """What `up` is asked for."""

    box: Box
    #: Name of the shipped box, if it is one.
    shipped: str | None = None
    provision: bool = True
    timeout_s: float = BOOT_TIMEOUT_S
    boot: Choice = attrs.field(factory=Choice)
    #: The lock is used as it stands: a missing one is an error, and so is one that disagrees in anything.
    locked: bool = False
    #: No server is asked: what mirrors, image store and caches lack is an error.
    offline: bool = False
    #: Name of the driver of a new machine; None: the default. A machine that exists keeps its own.
    driver: str | None = None
    #: `provision` alone: what runs in place of locked repositories, and the part of the manifest that is run.
    instead: tuple[Instead, ...] = ()
    part: Part | None = None
    #: Name of the machine, where it is not that of the box.
    name: str | None = None


def following(box: Box) -> Box:
    """A box that follows the branch of its setup repository, as if its spec said so. Raises UsageError if it cannot."""
    setup = box.repository(SETUP)
    if setup is None:
        raise UsageError(f"the box {box.name} has no setup repository to follow")
    if why := why_not_followed(SETUP, setup.url, setup.ref, is_verified=bool(setup.keys)):
        raise UsageError(f"{box.name} cannot follow {setup.url[:200]}: {why}")
    others = (attrs.evolve(r, follow=True) if r.name == SETUP else r for r in box.repositories)
    return attrs.evolve(box, repositories=tuple(others))


def up(wanted: Up) -> State:
    """Brings a box to ready from any state, doing only what is missing. Returns the state before.

    A box that boots into maintain mode is ready when it says so: it is neither brought a manifest nor provisioned.
    Raises whatever stops it: ImageError, GuestError, StateError (another spec owns the name), SpecError (the lock).
    """
    box = wanted.box
    machine = Machine(wanted.name or box.name)
    with machine.locked():
        check_owner(machine, box.source, wanted.shipped)
        _check_driver(machine, wanted.driver)
        shipped = wanted.shipped is not None
        lock, mirrors = lock_for(box, shipped=shipped, frozen=wanted.locked, offline=wanted.offline)
        manifest = render_manifest(box, lock, _image_of(machine, box, lock))
        before = state(machine)
        bootmode.check(machine, before, wanted.boot)
        if before is State.ABSENT:
            _create(machine, wanted, lock)
        else:
            _mend_record(machine, before)
            _warn_of_changes(machine, box, lock, before)
        if is_open_still(machine, before):
            hint = f"`kimbox secure {machine.name}` restarts it"
            raise StateError(f"{machine.name} has taken its role, and is open until it restarts", hint=hint)
        told = last_word(machine.boot_events())
        is_part = told is not None and "part" in told.fields
        is_done = told is not None and told.text("manifest") == manifest_digest(manifest) == wanted_by(told)
        if before is State.SEALED or (
            before is State.READY and ((is_done and not is_part) or bootmode.is_maintained(machine))
        ):
            return before
        if before in (State.PAUSED, State.SUSPENDED):
            _wake(machine, before, box)
        elif not before.running:
            registry.of(machine).choose_boot(box.boot, wanted.boot)
            _start(machine, box)
        else:
            _check_root(machine)
        again = is_part or (before is State.FAILED and told is not None and "wanted" not in told.fields)
        _provision_until_ready(machine, wanted, lock, mirrors, manifest, again=again)
        return before


def provision(wanted: Up) -> None:
    """Sends the manifest anew to a running box and waits until it is ready. Raises StateError if it does not run."""
    box = wanted.box
    machine = Machine(box.name)
    shipped = wanted.shipped is not None
    refuse_sealed(machine, "provision")
    if wanted.part:
        wanted.part.check(box)
    with machine.locked():
        check_owner(machine, box.source, wanted.shipped)
        before = state(machine)
        require("provision", box.name, before)
        bootmode.refuse_to_provision(machine)
        _check_root(machine)
        _mend_record(machine, before)
        if wanted.instead:
            lock, mirrors = unpinned(box, wanted.instead, shipped=shipped)
        else:
            lock, mirrors = lock_for(box, shipped=shipped)
        manifest = render_manifest(box, lock, _image_of(machine, box, lock))
        _provision_until_ready(machine, wanted, lock, mirrors, manifest, again=True)


def _check_driver(machine: Machine, name: str | None) -> None:
    """Raises StateError if another driver than `name` runs the machine, UsageError if there is none of that name."""
    if name is None:
        return
    registry.named(name, machine)
    now = registry.of(machine).name
    if machine.exists and name != now:
        hint = f"`kimbox destroy {machine.name}` and `kimbox up --provider {name}` make it anew"
        raise StateError(f"{machine.name} is run by {now}, not by {name}", hint=hint)


def _image_of(machine: Machine, box: Box, lock: Lock) -> str:
    """Key of the image that a machine was made from, or will be."""
    return machine.record().image if machine.exists else obtain.key_of(box, lock.packages)


def _check_root(machine: Machine) -> None:
    """Raises GuestError if the root of a running box is lost: asking it for anything would be in vain."""
    if observe(machine).snapshot_full:
        raise GuestError(f"{machine.name}: {SNAPSHOT_FULL.message}", hint=SNAPSHOT_FULL.hint)


def _mend_record(machine: Machine, before: State) -> None:
    """A kimbox that died left the record as it was before the process started, or before the guest took its role."""
    record = machine.record()
    mended = attrs.evolve(record, ended=None) if before.running else record
    told = next((event for event in reversed(machine.boot_events()) if event.name == "sealed"), None)
    if told and not record.sealed and not machine.unseal_mark.exists():
        mended = attrs.evolve(mended, sealed=Sealed(told.text("role")[:100], told.text("site")[:300]))
    if mended != record:
        machine.write_record(mended)


def _warn_of_changes(machine: Machine, box: Box, lock: Lock, before: State) -> None:
    """What the spec says now, and the box will have only later or never."""
    record = machine.record()
    if before.running and record.scratch != box.scratch:
        log.warn(f"the spec of {box.name} asks for another scratch space: `kimbox reload {box.name}` makes it")
    if record.image != lock.image:
        log.warn(
            f"the spec of {box.name} now describes another image than the one this box was made from; "
            f"`kimbox destroy {box.name}` and `kimbox up` make it anew"
        )


def _create(machine: Machine, wanted: Up, lock: Lock) -> None:
    """Makes the folder of a machine: complete, or not there. `prune` keeps the image until the record refers to it."""
    remove_tree(machine.unfinished)
    driver = registry.named(wanted.driver or registry.DEFAULT, machine)
    with obtain.leased(wanted.box, lock.packages, offline=wanted.offline) as image:
        driver.prepare(wanted.box, image)
        try:
            with log.step("making the machine"):
                machine.unfinished.mkdir(mode=0o700)
                _fill(machine, wanted, image, driver)
        except BaseException:
            remove_tree(machine.unfinished)
            raise


def _fill(machine: Machine, wanted: Up, image: Image, driver: Driver) -> None:
    """Key, disk, ports and record of a new machine; the record makes it one, so it comes last."""
    box, temporary = wanted.box, machine.unfinished
    keys.make_pair(temporary / machine.key.name, machine.name)
    driver.create(temporary, box, image)
    if machine.folder.exists():  # without machine.json it is no machine: an interrupted destroy left it
        remove_tree(machine.folder)
    identity = uuid.uuid4()
    with ports.allotting():  # until the record has the ports, where other processes see them
        chosen = ports.choose(machine, host_ports(box), {})
        record = Record(
            name=machine.name,
            source=str(box.source),
            shipped=wanted.shipped,
            spec_digest=box.digest,
            image=image.key,
            uuid=str(identity),
            mac=":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in identity.bytes[:3])]),
            ssh_port=chosen.pop(22),
            forwards=chosen,
        )
        write_json(temporary / machine.record_file.name, record.as_json())
        temporary.rename(machine.folder)


def _start(machine: Machine, box: Box | None, *, resume: bool = False) -> None:
    """Starts the process with what the spec says now; a saved state wakes with the shape it was saved in.

    Without a spec the record alone tells what to start. That it runs is recorded only then: a start that fails leaves
    a suspended box suspended.
    """
    shared.close(machine.folder)  # to a guest that crashed
    record = machine.record()
    cpus, memory_bytes = (box.cpus, box.memory_bytes) if box else (None, None)
    scratch = box.scratch if box and not resume else record.scratch
    if resume:
        cpus, memory_bytes = record.cpus or cpus, record.memory_bytes or memory_bytes
    if cpus is None or memory_bytes is None:
        raise StateError(f"the record of {machine.name} does not say what it ran with", hint=_drop_hint(machine))
    if box:
        record = attrs.evolve(record, spec_digest=box.digest, source=str(box.source))
    record = attrs.evolve(record, cpus=cpus, memory_bytes=memory_bytes, scratch=scratch)
    record = registry.of(machine).start(Launch(record, box, cpus, memory_bytes, resume=resume))
    machine.write_record(attrs.evolve(record, ended=None))


def _provision_until_ready(
    machine: Machine, wanted: Up, lock: Lock, mirrors: dict[str, Mirror], manifest: Manifest, *, again: bool
) -> None:
    """Waits for the guest; brings it the manifest where it has another; waits until it calls that one ready.

    What the guest has gone back from is brought again only where `again` says so.
    """
    box, digest = wanted.box, manifest_digest(manifest)
    watch = Watch(machine, wanted.timeout_s, longest_step(box), total_timeout_s=provisioning_limit(box))
    if any(event.name in (*DONE, "failed") for event in machine.boot_events()):
        watch.catch_up()  # what was shown before, or is in the log, is not shown again
    with log.step(f"booting {machine.name}"):
        watch.until("waiting for the guest", _settled)
    if machine.record().sealed and not machine.unseal_mark.exists():
        _until_sealed(machine, watch, digest)
        return
    if bootmode.is_maintained(machine):  # what is brought or run there would become part of the base
        watch.until("waiting for the guest", lambda w: any(w.seen(name) for name in ("ready", "failed", "waiting")))
        if failed := watch.seen("failed"):
            raise failure(machine, failed)
        return
    if not wanted.provision:
        return
    told = last_word(watch.events)
    if told and told.name in DONE and told.text("manifest") == digest == wanted_by(told) and not again:
        return
    with log.step(f"provisioning {box.name}"):
        has = told is not None and wanted_by(told) == digest
        has_failed = told is not None and told.name == "failed" and "wanted" not in told.fields
        if again or has_failed or not has:
            watch.until("waiting for sshd", lambda w: w.seen("sshd") is not None)
            ran.keep(machine, digest, lock, manifest["box.json"][0])
            with Guest(machine.endpoint(machine.record())) as guest:
                deliver(guest, box, lock, mirrors, machine.folder, _image_of(machine, box, lock), wanted.part)
            watch.events = [event for event in watch.events if event.name in ("booting", "hostkey", "sshd")]
        try:
            watch.until("provisioning", lambda w: _answer(w, digest) is not None)
        finally:
            shared.retire(machine.folder)  # a new login may have other groups
    answer = _answer(watch, digest)
    if answer and wanted_by(answer) != answer.text("manifest"):
        raise fallen_back(machine, answer, watch.seen("fallback"))
    if answer and answer.name == "failed":
        raise failure(machine, answer)


def _until_sealed(machine: Machine, watch: Watch, digest: str) -> None:
    """Waits for a box that was secured: it makes itself what it is, and nobody brings it anything."""
    with log.step(f"sealing {machine.name}"):
        watch.until("sealing", lambda w: w.seen("failed") is not None or w.seen("sealed") is not None)
    answer = next(event for event in reversed(watch.events) if event.name in ("failed", "sealed"))
    if answer.name == "failed":
        raise failure(machine, answer)
    if wanted_by(answer) != digest:
        log.warn(
            f"{machine.name} is sealed and keeps the manifest that it was sealed with: what spec and lock say now "
            f"reaches it only by `kimbox destroy {machine.name}`"
        )


def _settled(watch: Watch) -> bool:
    """The guest has told what it has: nothing yet, or which manifest it is at."""
    return any(watch.seen(name) for name in ("waiting", "provisioning", *DONE, "failed"))


def _answer(watch: Watch, digest: str) -> Event | None:
    """The guest's last word on that manifest, if it has spoken it: ready, failed, or what it has gone back to."""
    for event in reversed(watch.events):
        if event.name in (*DONE, "failed") and wanted_by(event) == digest:
            return event
    return None


def resume(machine: Machine) -> None:
    """Goes on from the saved state, with the clock set right. Raises StateError if there is none. Needs no spec."""
    with machine.locked():
        before = state(machine)
        require("resume", machine.name, before)
        _mend_record(machine, before)
        with log.step(f"resuming {machine.name}"):
            _wake(machine, before)


def _drop_hint(machine: Machine) -> str:
    return f"`kimbox halt --force {machine.name}` drops the saved state, then `kimbox up {machine.name}` boots"


def _wake(machine: Machine, before: State, box: Box | None = None) -> None:
    """Lets a paused or suspended guest go on where it stood; it does not tell its events again."""
    if before is State.PAUSED:
        registry.of(machine).unpause()
    else:
        try:
            _start(machine, box, resume=True)
        except GuestError as error:
            raise GuestError(error.message, hint=_drop_hint(machine)) from None
    try:
        if before is State.SUSPENDED:
            registry.of(machine).forget_suspended()
        if any(event.name == "sshd" for event in machine.boot_events()):
            set_clock(machine)
    except KimboxError as error:
        log.warn(f"{machine.name} goes on, but {error}")


def set_clock(machine: Machine) -> None:
    """Gives a guest that has stood still the time of the host. Raises GuestError if it does not take it."""
    with Guest(machine.endpoint(machine.record())) as guest:
        answer = guest.run(f"sudo -n date --utc --set=@{int(time.time())}", timeout_s=60)
        if answer.code != 0:
            raise GuestError(f"its clock cannot be set: {answer.stderr.strip()}")
