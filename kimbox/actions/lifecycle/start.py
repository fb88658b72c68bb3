"""Starts the process of a machine, or wakes it, and keeps its record up to date."""

from __future__ import annotations

import time

import attrs

from kimbox import utctime
from kimbox.actions import mounts
from kimbox.actions.lifecycle import disksize
from kimbox.drivers import registry
from kimbox.drivers.base import JobStart, Launch, TemplateDriver
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import remove_tree
from kimbox.guest import seed, shared
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.machine import foreign, secretvalues
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.mounts import check_folders
from kimbox.machine.record import Known, Purpose, PutBack, Record, Sealed
from kimbox.machine.state import State, last_manifest_event
from kimbox.spec.model import Box, Display, Network

#: Maximum number of manifests that a sealed box may use: the delivered one, and those of which one was last ready.
MAX_MANIFESTS = 4


def start(
    machine: Machine,
    box: Box | None,
    *,
    boot: Choice | None = None,
    resume: bool = False,
    delivery: DeliveryDisk | None = None,
    job: JobStart | None = None,
) -> None:
    """Starts the process of a machine, with the processors, memory and scratch space of the spec.

    The disk of a sealed box is first put back to its image, then the boot mode is set: `boot` is the mode of the
    command line. `delivery`: the disk in `Machine.delivery`, for a guest that boots. `job`: the job on
    `Machine.job_disk`, which the guest runs when it is ready.

    With `resume`, the values of the record are used, because a saved state needs those that it was saved with. A start
    without a spec requires `resume`. The record is changed after the start, so that a suspended box stays suspended if
    the start fails. Raises StateError if processors or memory are not known, or if a sealed box would resume, and the
    errors of the driver.
    """
    shared.close(machine.folder)  # a connection that is left may be to a guest that crashed
    record = machine.record()
    _need_data_key(machine, record)
    cpus, memory_bytes = (box.cpus, box.memory_bytes) if box else (None, None)
    scratch = box.scratch if box and not resume else record.scratch
    if resume:
        cpus, memory_bytes = record.cpus or cpus, record.memory_bytes or memory_bytes
    if cpus is None or memory_bytes is None:
        raise StateError(
            f"the record of {machine.name} has no number of processors or no size of the memory",
            code="wrong-state",
            fields={"name": machine.name},
            hint=_discard_hint(machine),
        )
    if box:
        record = attrs.evolve(record, spec_digest=box.digest, source=str(box.source), settings=box.settings)
    has_disk = record.delivery_disk if resume else delivery is not None
    record = attrs.evolve(record, cpus=cpus, memory_bytes=memory_bytes, scratch=scratch, delivery_disk=has_disk)
    if box and not resume:
        record = _with_devices(machine, record, box, is_job=job is not None)
    check_folders(machine.name, record.mounts)
    if not resume:
        record = _leave_template(machine, record)
    if record.seed and not resume:
        record = _seeded(machine, record, box, boot or Choice())
    if box and not resume:
        record = disksize.grow(machine, record, box)
    if record.sealed:
        known = _known(machine, record, delivery)
        record = attrs.evolve(record, known=known, put_back=_put_back(machine, record, resume=resume))
    if box and not resume:
        _choose_boot(machine, box, record, boot or Choice(), delivery)
    secrets = _secrets(machine, box) if box and not resume else b""
    record = attrs.evolve(record, secrets=secretvalues.names(box) if secrets and box else ())

    def write(started: Record) -> None:
        machine.write_record(attrs.evolve(started, ended=None))

    launch = Launch(record, box, cpus, memory_bytes, resume=resume, loaded=write, delivery=delivery, job=job)
    write(registry.of(machine).start(attrs.evolve(launch, secrets=secrets)))


def _choose_boot(machine: Machine, box: Box, record: Record, choice: Choice, delivery: DeliveryDisk | None) -> None:
    """Sets the boot mode, and the manifest whose root the guest may put back."""
    if delivery and machine.boot_events():  # not at the first start: nothing is kept yet
        choice = attrs.evolve(choice, manifest=delivery.digest)
    registry.of(machine).choose_boot(box.boot_mode(is_sealed=record.sealed is not None), choice)


def _with_devices(machine: Machine, record: Record, box: Box, *, is_job: bool) -> Record:
    """Returns the record of a boot with the watchdog, the folders of the host, its networks, forwards and screen.

    Raises the errors of `mounts.of_start`, and StateError if the driver has no such devices.
    """
    if box.auto_forwards:
        registry.need_auto_forwards(machine)
    return attrs.evolve(
        record,
        watchdog_s=None if is_job else box.watchdog_s,
        mounts=mounts.of_start(machine, record, box, is_job=is_job),
        networks=_networks(machine, record, box),
        auto_forwards=box.auto_forwards,
        display=_display(machine, record, box, is_job=is_job),
    )


def _networks(machine: Machine, record: Record, box: Box) -> tuple[Network, ...]:
    """Returns the networks of a machine: those of its box, but not for a clone, a job or a maintenance of the box.

    Raises StateError if the driver has none.
    """
    if not box.networks or record.purpose is not Purpose.BOX:
        return ()
    registry.need_networks(machine)
    return box.networks


def _display(machine: Machine, record: Record, box: Box, *, is_job: bool) -> Display | None:
    """Returns the screen of a machine; None for a sealed box and a job. Raises StateError if the driver has none."""
    if box.display is None or record.sealed or is_job:
        return None
    registry.need_display(machine)
    return box.display


def _secrets(machine: Machine, box: Box) -> bytes:
    """Returns the secret variables of a box. Raises StateError if a file cannot be read, or the driver has none."""
    if secretvalues.names(box):
        registry.need_secrets(machine)
    return secretvalues.text_of(box)


def _seeded(machine: Machine, record: Record, box: Box | None, boot: Choice) -> Record:
    """Returns the record for the boot of a machine whose image kimbox did not build. Checks what it is asked for.

    Until kimbox has installed its programs, each boot is a new instance: cloud-init begins again, and writes the new
    host keys to the console. Raises StateError (`unsupported-by-image`).
    """
    if box:
        foreign.check_spec(box, {box.boot_mode(is_sealed=False), boot.mode or box.boot})
    if record.guest is not None:
        return record
    machine.known_hosts.unlink(missing_ok=True)
    return attrs.evolve(record, seed=seed.new_instance())


def _leave_template(machine: Machine, record: Record) -> Record:
    """Makes the disk of a clone that boots independent of its template. Returns the record, without the template.

    A clone that ended before its ssh host key was on its disk, as the event `stored` says, makes another one. Its old
    one is forgotten here, and the one that it reports next is pinned.
    """
    if record.woken and not any(event.name == "stored" for event in machine.boot_events()):
        machine.known_hosts.unlink(missing_ok=True)
    record = attrs.evolve(record, woken=False)
    driver = registry.of(machine)
    if record.template and isinstance(driver, TemplateDriver) and driver.leave_template(record):
        return attrs.evolve(record, template=None)
    return record


def _known(machine: Machine, record: Record, delivery: DeliveryDisk | None) -> Known | None:
    """Returns what this host knows of /persistent of a sealed machine after a start with a delivery.

    Its manifest is the first one. The one that was last ready stays, because the box goes back to it if the new one
    fails. The guest reports which one that is, and can only choose among those that the host has sent.
    """
    if record.known is None or delivery is None:
        return record.known
    last = last_manifest_event(machine.boot_events())
    ready = [digest for digest in record.known.manifests if last and digest == last.text("manifest")]
    manifests = dict.fromkeys((delivery.digest, *(ready or record.known.manifests)))
    return attrs.evolve(record.known, manifests=tuple(manifests)[:MAX_MANIFESTS])


def _put_back(machine: Machine, record: Record, *, resume: bool) -> PutBack:
    """Puts the disk of a sealed machine that does not run back to its image. Returns when, and what was changed.

    Snapshots of the disk are gone with it. The disk before the first start as a sealed box has the changes of its
    owner, which are not reported. Raises StateError (`box-sealed`) for a resume, and the errors of the driver.
    """
    if resume:
        raise StateError(
            f"{machine.name} is sealed, and cannot resume: a sealed box starts on a disk that is put back to its image",
            code="box-sealed",
            hint=_discard_hint(machine),
            fields={"name": machine.name, "verb": "resume"},
        )
    with log.step(f"putting the disk of {machine.name} back to its image"):
        changed = registry.of(machine).put_back(record)
        remove_tree(machine.snapshots)
    if record.put_back is None:
        changed = ()
    elif changed:
        log.warn(
            f"root in {machine.name} had changed its disk outside /persistent: {', '.join(changed)}. This is undone"
        )
    if record.known is None and not machine.unseal_mark.exists():
        log.warn(
            f"this host does not know the manifest and the rules of {machine.name}, so the box uses those on its "
            f"/persistent: an older kimbox sealed it, or `kimbox secure` was interrupted. `kimbox secure --unseal "
            f"{machine.name}`, then `kimbox reload` and `kimbox secure`, seal it anew"
        )
    return PutBack(utctime.text(), changed)


def _need_data_key(machine: Machine, record: Record) -> None:
    """Raises StateError if a sealed box has lost its data key, as in a copy of the disk on another host."""
    if record.sealed and not machine.unseal_mark.exists() and not machine.data_key.exists():
        name = machine.name
        raise StateError(
            f"cannot start {name}: it is sealed, and this host does not have the key of its credentials",
            code="data-key-missing",
            hint=f"copy {machine.data_key} from the host that sealed it; or make a new box: `kimbox destroy {name}`, "
            f"`kimbox up {name}` and `kimbox secure {name}`",
            fields={"name": name, "path": str(machine.data_key)},
        )


def wake(machine: Machine, before: State, box: Box | None = None) -> None:
    """Continues a paused or suspended guest, which does not send its events again. Sets its clock.

    Raises GuestError if a suspended guest does not start. A clock that cannot be set is a warning.
    """
    if before is State.PAUSED:
        registry.of(machine).unpause()
    else:
        try:
            start(machine, box, resume=True)
        except GuestError as error:
            raise GuestError(error.message, code=error.code, fields=error.fields, hint=_discard_hint(machine)) from None
    try:
        if before is State.SUSPENDED:
            registry.of(machine).forget_suspended()
        if any(event.name == "sshd" for event in machine.boot_events()):
            set_clock(machine)
            if before is State.SUSPENDED:
                mounts.renew(machine)
    except KimboxError as error:
        log.warn(f"{machine.name} runs, but its clock may be wrong: {error}")


def set_clock(machine: Machine) -> None:
    """Sets the clock of a guest to the time of the host. Raises GuestError if the guest refuses or ssh fails."""
    with Guest(machine.endpoint(machine.record())) as guest:
        answer = guest.run(f"sudo -n date --utc --set=@{int(time.time())}", timeout_s=60)
        if answer.code != 0:
            raise GuestError(
                f"the clock of {machine.name} cannot be set: {answer.stderr.strip()}",
                code="clock-not-set",
                fields={"name": machine.name},
            )


def repair_record(machine: Machine, before: State) -> None:
    """Corrects the record of a guest that runs, or that has taken its role.

    `before`: the state of the machine. The record is out of date if kimbox was killed before it wrote the record.
    """
    record = machine.record()
    repaired = attrs.evolve(record, ended=None) if before.running else record
    sealed = next((event for event in reversed(machine.boot_events()) if event.name == "sealed"), None)
    if sealed and not record.sealed and not machine.unseal_mark.exists():
        repaired = attrs.evolve(repaired, sealed=Sealed(sealed.text("role")[:100], sealed.text("site")[:300]))
    if repaired != record:
        machine.write_record(repaired)


def _discard_hint(machine: Machine) -> str:
    """Returns the hint for a saved state that cannot be resumed."""
    return f"`kimbox halt --force {machine.name}` discards the saved state; then `kimbox up {machine.name}` boots"
