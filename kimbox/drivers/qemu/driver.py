"""The driver `qemu`: one QEMU process for each machine, without root and without a daemon, with user networking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kimbox.drivers import accelerator, hostcheck
from kimbox.drivers.accelerator import EMULATED, Accelerator
from kimbox.drivers.base import Features, Launch, allot_ports, choose_ports, observe_folder
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.qemu import disk, process, templates, virtiofs
from kimbox.drivers.qemu.command import Invocation, fixed, portable
from kimbox.errors import KimboxError
from kimbox.guest import deliverydisk, seed
from kimbox.guest.endpoint import Endpoint
from kimbox.landlock import limits_ports
from kimbox.log import log
from kimbox.machine import keys, ports
from kimbox.machine.folder import USER, Machine
from kimbox.machine.record import Record
from kimbox.machine.state import Observation, State
from kimbox.run import which
from kimbox.spec.model import BootMode, Box

if TYPE_CHECKING:
    from kimbox.image.store.images import Image
    from kimbox.machine.bootmode import Choice

#: Run states of QMP in which an error has stopped the vCPUs: of the host's disk, and of KVM. QEMU cannot continue after
#: the second.
IO_ERROR, INTERNAL_ERROR = "io-error", "internal-error"

#: Run states of QMP in which the vCPUs are stopped until a command continues them.
PAUSED_STATES = frozenset({"paused", "prelaunch", "suspended", "postmigrate", "save-vm", IO_ERROR})

#: The port of name servers (RFC 1035). Long answers come by TCP.
DNS_PORT = 53

#: Maximum number of attempts to start QEMU, if another program takes a port of the host before QEMU listens on it.
START_ATTEMPTS = 3


@attrs.frozen
class Qemu:
    """The driver `qemu` of one machine."""

    machine: Machine
    name = "qemu"
    features = Features(
        own_disk=True,
        sealing=True,
        suspend=True,
        memory_snapshots=True,
        jobs=True,
        delivery_disk=True,
        secrets=True,
        templates=True,
        own_process=True,
        portable=True,
        seed=True,
        mounts=True,
        networks=True,
        display=True,
    )

    @staticmethod
    def check_host() -> list[HostCheck]:
        checks = [hostcheck.program("qemu-system-x86_64", "runs boxes")]
        if which("qemu-system-x86_64"):
            checks.append(hostcheck.attempt("acceleration", _check_acceleration))
        return [*checks, _check_network(), _check_mounts()]

    @staticmethod
    def remains() -> dict[Path, str]:
        return {}  # all files of this driver are in the folders of machines

    @staticmethod
    def remove_remains(path: Path) -> bool:
        return not path.exists()

    def prepare(self, box: Box, image: Image) -> None:
        """Does nothing: the disk is an overlay on the image itself."""

    def create(self, folder: Path, box: Box, image: Image) -> None:
        size_bytes = max(box.disk.size_bytes, image.virtual_bytes)
        disk.create(folder / self.machine.disk.name, image.disk, image.format, size_bytes)

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        from kimbox.machine import bootmode

        bootmode.choose(self.machine, mode, choice)

    def grow(self, size_bytes: int) -> None:
        disk.grow(self.machine, size_bytes)

    def disk_size(self) -> int:
        return disk.size_bytes(self.machine.disk)

    def put_back(self, record: Record) -> tuple[str, ...]:
        return disk.put_back(self.machine, record.image)

    def start(self, launch: Launch) -> Record:
        return self._start(launch, disk.SUSPENDED_TAG if launch.resume else None)

    def _start(self, launch: Launch, saved_state: str | None) -> Record:
        """Resumes from the saved state with that tag in the disk; boots if it is None."""
        best = accelerator.find()
        if best.name != "kvm":
            log.detail(f"no KVM ({best.why}): the guest runs under emulation, about ten times slower")
        record = (launch if saved_state else _with_halt_port(launch)).record
        if record.seed and not saved_state:
            public_key = keys.public_key(self.machine)
            seed.write(self.machine.seed, self.machine.name, record.seed, USER, public_key)
        if launch.freezing:
            templates.create_ram(self.machine, launch.memory_bytes)
        for attempts_left in reversed(range(START_ATTEMPTS)):
            record = allot_ports(self.machine, record, launch.box)
            try:
                process.start(invocation(self.machine, attrs.evolve(launch, record=record), best, saved_state))
                break
            except process.PortTakenError:
                if not attempts_left:
                    raise
                log.detail("another program took a port before QEMU: kimbox chooses other ports")
        if saved_state:  # the guest waits until the record says that it runs: a killed kimbox must not load it twice
            launch.loaded(record)
            process.unpause(self.machine)
        return record

    def portable_command(self, launch: Launch) -> list[str]:
        return portable(invocation(self.machine, launch, EMULATED))

    def template_facts(self, launch: Launch) -> list[str]:
        best = accelerator.find()
        return [*fixed(invocation(self.machine, _with_halt_port(launch), best)), *templates.host_facts(best)]

    def freeze(self, units: tuple[str, ...], target: Path, final: Path) -> None:
        templates.freeze(self.machine, units, target, final)

    def wake(
        self, launch: Launch, template: Path, identity: Callable[[], bytes], wait_until_awake: Callable[[], None]
    ) -> Record:
        best, launch = accelerator.find(), _with_halt_port(launch)
        disk.on_template(self.machine, template)
        ram = templates.open_ram(template, launch.memory_bytes)
        try:
            with ports.allotting():  # until QEMU listens on the ports, because no record has them yet
                record = choose_ports(self.machine, launch.record, launch.box)
                called = invocation(self.machine, attrs.evolve(launch, record=record), best)
                process.start(attrs.evolve(called, template_ram=ram))
            templates.load(self.machine, template, identity, wait_until_awake)
        finally:
            os.close(ram)
        return record

    def leave_template(self, record: Record) -> bool:
        return disk.leave_template(self.machine, record.image)

    def unpause(self) -> None:
        process.unpause(self.machine)

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        if before is State.UNRESPONSIVE and not force:
            log.warn(f"QEMU of {self.machine.name} does not answer: kimbox ends its process")
        if force or before is State.UNRESPONSIVE or not self._shut_down(before, timeout_s):
            process.kill(self.machine)

    def _shut_down(self, before: State, timeout_s: float) -> bool:
        """Requests a shutdown of the guest; True if the process ends within the timeout."""
        name = self.machine.name
        try:
            if before is State.PAUSED:
                process.unpause(self.machine)
            if process.power_off(self.machine, timeout_s):
                return True
            log.warn(f"{name} did not shut down within {timeout_s:.0f} s: kimbox ends its process")
        except KimboxError as error:
            log.warn(f"the request to shut down {name} failed ({error}): kimbox ends its process")
        return False

    def suspend(self, written: Callable[[], None]) -> None:
        disk.suspend(self.machine)
        written()  # before the process ends: if kimbox is killed now, the record must have the saved state
        process.kill(self.machine)
        process.sweep(self.machine)

    def plug_mounts(self, record: Record) -> None:
        virtiofs.plug(self.machine, record.mounts)

    def unplug_mounts(self, record: Record) -> None:
        virtiofs.unplug(self.machine, record.mounts)

    def forget_suspended(self) -> None:
        disk.forget_suspended(self.machine)

    def drop_suspended(self) -> None:
        disk.drop_suspended(self.machine)

    def tidy(self) -> None:
        process.sweep(self.machine)
        disk.remove_scratch(self.machine)
        deliverydisk.discard(self.machine.delivery)
        self.machine.rotate_file.unlink(missing_ok=True)  # an interrupted `secure --rotate` leaves it

    def destroy(self) -> None:
        if self.machine.running:
            process.kill(self.machine)
        process.remove(self.machine)

    def wait_until_gone(self, timeout_s: float) -> bool:
        return process.wait_until_gone(self.machine, timeout_s)

    def readable_disk(self, image: Image, work: Path) -> Path:
        return self.machine.disk

    def endpoint(self, record: Record) -> Endpoint:
        return self.machine.endpoint(record)

    def observe(self, record: Record) -> Observation:
        running = self.machine.running
        run_state = process.status(self.machine) if running else None
        return observe_folder(
            self.machine,
            record,
            running=running,
            paused=run_state in PAUSED_STATES,
            unresponsive=run_state == INTERNAL_ERROR
            or (running and run_state is None and process.is_unresponsive(self.machine)),
        )

    def listen(self) -> bool:
        """Copies nothing: QEMU writes to the machine's folder by itself."""
        return self.machine.running

    def stopped_by(self) -> str:
        run_state = process.status(self.machine) if self.machine.running else None
        if run_state == IO_ERROR:
            return "QEMU cannot write its files: the disk of this host may be full"
        if run_state == INTERNAL_ERROR:
            accelerator.reject()
            return "KVM cannot run this guest (internal error of QEMU); the next start uses emulation"
        return ""

    def pid(self) -> int | None:
        return process.pid(self.machine)

    def save_snapshot(self, name: str) -> None:
        disk.save_snapshot(self.machine, name)

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        if self.machine.running:
            process.kill(self.machine)
        self.tidy()
        if launch.record.ended is None:
            return self._start(launch, disk.snapshot_tag(name))
        disk.revert(self.machine, name)
        return launch.record

    def delete_snapshot(self, name: str) -> None:
        disk.delete_snapshot(self.machine, name)

    def disk_snapshots(self) -> list[str]:
        return disk.snapshots(self.machine)


def _with_halt_port(launch: Launch) -> Launch:
    """Returns the parameters of a start whose guest gets a port for the shutdown, unless it resumes without one."""
    return attrs.evolve(launch, record=attrs.evolve(launch.record, halt_port=True))


def invocation(
    machine: Machine, launch: Launch, accelerator: Accelerator, saved_state: str | None = None
) -> Invocation:
    """Returns the parameters of QEMU's command line. `saved_state` is the tag to resume from; None: boot."""
    record = launch.record
    return Invocation(
        machine,
        record,
        launch.cpus,
        launch.memory_bytes,
        accelerator,
        record.scratch,
        saved_state=saved_state,
        delivery=launch.delivery,
        freezing=launch.freezing,
        connects_to=_connects_to(machine, launch),
        job=launch.job,
        secrets=launch.secrets,
    )


def _connects_to(machine: Machine, launch: Launch) -> frozenset[int] | None:
    """Returns the TCP ports to which a guest may connect: of a sealed box those of its role in the spec. None: all.

    QEMU's user network passes a connection to GATEWAY on to 127.0.0.1 of this host, where root of the guest would
    reach every service. The firewall of the guest does not stop root.
    """
    record = launch.record
    if record.sealed is None or launch.box is None or machine.unseal_mark.exists() or not limits_ports():
        return None
    secure = launch.box.secure
    role = secure.role(record.sealed.role) if secure else None
    if secure is None or role is None:
        log.warn(f"the spec has no role {record.sealed.role}, so {machine.name} may connect to nothing")
        return frozenset()
    subnets = [IPv4Network(network.subnet) for network in record.networks]  # QEMU does not connect to these
    ports = {out.port for out in role.outbound if out.protocol == "tcp" and not _is_in(out.host, subnets)}
    gateway = {role.gateway.port} if role.gateway and not role.gateway.is_on_network else set()
    return frozenset(ports | gateway | ({DNS_PORT} if secure.dns else set()))


def _is_in(host: str, subnets: list[IPv4Network]) -> bool:
    """Whether a host is an address in one of the subnets, and not a name."""
    with contextlib.suppress(ValueError):
        return any(ip_address(host) in subnet for subnet in subnets)
    return False


def _check_network() -> HostCheck:
    if limits_ports():
        return HostCheck("sealed boxes", Outcome.GOOD, "connect only to TCP ports that their spec names")
    why = "this kernel cannot limit ports: root in a sealed box reaches every TCP service on 127.0.0.1 of this host"
    return HostCheck("sealed boxes", Outcome.SLOW, why, "start a kernel of Linux 6.7 or newer with Landlock")


def _check_acceleration() -> HostCheck:
    best = accelerator.renew()
    if best.name == "kvm":
        return HostCheck("acceleration", Outcome.GOOD, best.why)
    why = f"boxes run under emulation, about ten times slower: {best.why}"
    return HostCheck("acceleration", Outcome.SLOW, why, best.repair)


def _check_mounts() -> HostCheck:
    found = hostcheck.attempt("mounts", virtiofs.check)
    return found if found.outcome is Outcome.GOOD else attrs.evolve(found, outcome=Outcome.SLOW)
