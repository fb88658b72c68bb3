"""Freezes a guest under QEMU to a template, and continues the template as another machine.

Memory and disk of a template are of the same moment, because QEMU stops the guest before both are saved: no file system
needs to be frozen. QEMU writes the memory to its file while the guest runs. With `x-ignore-shared` the migration stream
holds only the state of the devices.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimbox.drivers.accelerator import Accelerator
from kimbox.drivers.qemu import disk, process, qmp
from kimbox.drivers.qemu.qmp import QmpError, send_file
from kimbox.errors import GuestError
from kimbox.files import read_bounded, read_end, sync_file
from kimbox.guest.events import Tail
from kimbox.machine.folder import Machine
from kimbox.machine.templates import DISK, OVERLAY, RAM, SCRATCH, STATE
from kimbox.run import require, run, tail
from kimbox.sockets import short_path

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

#: Timeout until a guest has frozen itself, in seconds. Before that it waits until its system has started completely.
FREEZE_TIMEOUT_S = 300.0

#: Timeout until QEMU has saved or loaded the state of the devices, in seconds.
STATE_TIMEOUT_S = 60.0

#: Intervals between two checks: of the guest's events, and of QEMU's progress, in seconds.
EVENT_POLL_S = 0.02
STATE_POLL_S = 0.002

#: The capability with which a migration stream has no memory that lies in a shared file.
IGNORE_SHARED = "x-ignore-shared"

#: Fields of /proc/cpuinfo that name the features of a processor.
CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")

#: The text that ends before a clone gets it, and the size of /proc/cpuinfo that is read, in bytes.
CPUINFO_BYTES = 1 << 20


def host_facts(accelerator: Accelerator) -> list[str]:
    """Returns the build of QEMU and, with KVM, the processor. A saved state is only loaded where these are equal."""
    program = Path(require("qemu-system-x86_64", "it runs the box")).resolve()
    info = program.stat()
    facts = [f"qemu {program} {info.st_size} {info.st_mtime_ns} {info.st_ino}"]
    if accelerator.name == "kvm":
        lines = read_bounded(Path("/proc/cpuinfo"), limit_bytes=CPUINFO_BYTES).decode(errors="replace").split("\n\n")[0]
        values = (line.partition(":") for line in lines.splitlines())
        facts += [f"{key.strip()} {value.strip()}" for key, _, value in values if key.strip() in CPU_FIELDS]
    return facts


def create_ram(machine: Machine, size_bytes: int) -> None:
    """Creates the file that is the memory of a guest which becomes a template. Only this user may read it."""
    handle = os.open(machine.ram, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, size_bytes)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _port(machine: Machine) -> Iterator[socket.socket]:
    """A connection to the port on which the guest waits for a line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(STATE_TIMEOUT_S)
        try:
            with short_path(machine.freeze_socket) as path:
                connection.connect(path)
        except OSError as error:
            message = f"QEMU does not answer on {machine.freeze_socket}: {error}"
            fields = {"path": str(machine.freeze_socket)}
            raise QmpError(message, code="qemu-unreachable", fields=fields) from None
        yield connection


def freeze(machine: Machine, units: tuple[str, ...], target: Path, final: Path) -> None:
    """Freezes the guest and moves disk, memory and state to `target`. Its process has ended afterwards.

    `final`: the folder of the template later.

    Raises GuestError (`template-failed`) if the guest reports that it cannot freeze, and `timeout`; the errors of QMP.
    """
    tail_of_events = Tail(machine.events_file)
    with _port(machine) as connection:
        connection.sendall(" ".join(["freeze", *units]).encode() + b"\n")
        _wait_until_frozen(machine, tail_of_events)
        handle = os.open(target / STATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            qmp.talk(machine.qmp_socket, lambda client: _save(client, handle), timeout_s=STATE_TIMEOUT_S)
            os.fsync(handle)
        finally:
            os.close(handle)
    process.kill(machine)
    run(["fallocate", "--dig-holes", machine.ram])  # the pages that the guest has never written, or has cleared
    sources = {machine.ram: RAM, machine.disk: DISK, machine.scratch: SCRATCH}
    for source, name in sources.items():
        if source.exists():
            sync_file(source)
            source.chmod(0o600)
            source.rename(target / name)
    disk.overlay(target / OVERLAY, target / DISK, at=final / DISK)
    (target / OVERLAY).chmod(0o600)


def _wait_until_frozen(machine: Machine, events: Tail) -> None:
    deadline = time.monotonic() + FREEZE_TIMEOUT_S
    while True:
        for event in events.read():
            if event.name == "frozen":
                return
            if event.name == "failed":
                reason = f"{event.text('kind')} {event.text('name')}: {event.text('reason')}"[:500]
                raise GuestError(
                    f"the template of {machine.name} was not made: {reason}",
                    code="template-failed",
                    fields={"name": machine.name, "reason": reason},
                )
        is_running = machine.running
        if not is_running or time.monotonic() > deadline:
            ended = f"did not freeze within {FREEZE_TIMEOUT_S:.0f} s" if is_running else "ended before it froze"
            raise GuestError(
                f"the template of {machine.name} was not made: its guest {ended}",
                code="template-failed",
                hint="run the same command again; the last lines of its console:\n" + _console(machine),
                fields={"name": machine.name},
            )
        time.sleep(EVENT_POLL_S)


def _console(machine: Machine) -> str:
    return tail(read_end(machine.serial_log, 4096).decode("utf-8", "replace"))


async def _save(client: QMPClient, handle: int) -> None:
    """Stops the guest and writes the state of its devices to an open file."""
    await client.execute("stop")  # writes QEMU's caches to the disks, too
    await _ignore_shared(client, True)
    await client.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    await send_file(client, handle, "state")
    await client.execute("migrate", {"uri": "fd:state"})
    while True:
        status: Any = await client.execute("query-migrate")
        if status.get("status") == "completed":
            return
        if status.get("status") in ("failed", "cancelled"):
            raise QmpError(f"QEMU did not save the state: {status.get('error-desc', '')}", code="qemu-failed")
        await qmp.pause(STATE_POLL_S)


async def _run_state(client: QMPClient) -> str:
    answer: Any = await client.execute("query-status")
    return str(answer["status"])


async def _ignore_shared(client: QMPClient, is_on: bool) -> None:
    capabilities = [{"capability": IGNORE_SHARED, "state": is_on}]
    await client.execute("migrate-set-capabilities", {"capabilities": capabilities})


def open_ram(template: Path, size_bytes: int) -> int:
    """Opens the memory of a template; returns the file descriptor. QEMU maps it privately, and writes nothing to it.

    Raises GuestError (`template-unusable`) if the file is missing or has another size.
    """
    try:  # QEMU opens it for writing, also for a private mapping
        handle = os.open(template / RAM, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _unusable(template, f"its memory cannot be opened: {error.strerror}") from None
    if (found_bytes := os.fstat(handle).st_size) != size_bytes:
        os.close(handle)
        raise _unusable(template, f"its memory has {found_bytes} bytes in place of {size_bytes}")
    return handle


def _unusable(template: Path, why: str) -> GuestError:
    return GuestError(
        f"the template {template.name[:12]} is damaged: {why}",
        code="template-unusable",
        hint="destroy its clones; then `kimbox prune` removes it, and the next `kimbox clone` makes a new one",
        fields={"template": template.name, "path": str(template)},
    )


def load(machine: Machine, template: Path, identity: Callable[[], bytes], wait_until_awake: Callable[[], None]) -> None:
    """Loads the state of a template into a QEMU that waits for it, and lets the guest continue with an identity.

    The connection on which the guest gets the identity stays open until `wait_until_awake` returns: when it ends, QEMU
    drops what it has not read. Raises GuestError (`template-unusable`) if QEMU does not load the state, and the errors
    of `wait_until_awake`.
    """
    with contextlib.ExitStack() as open_until_awake:
        with _failures_of_qemu(machine, template):
            connection = open_until_awake.enter_context(_port(machine))
            _load_state(machine, template, lambda: connection.sendall(identity()))
        wait_until_awake()


@contextlib.contextmanager
def _failures_of_qemu(machine: Machine, template: Path) -> Iterator[None]:
    """Raises a QmpError as a GuestError that says that the template is damaged."""
    try:
        yield
    except QmpError as error:
        output = tail(read_end(machine.qemu_log, process.LOG_END_BYTES).decode("utf-8", "replace"))
        raise _unusable(template, f"QEMU does not load it: {error}\n{output}".rstrip()) from None


def _load_state(machine: Machine, template: Path, send_identity: Callable[[], None]) -> None:
    try:
        handle = os.open(template / STATE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(template, f"its state cannot be opened: {error.strerror}") from None
    try:
        qmp.talk(
            machine.qmp_socket,
            lambda client: _continue(client, handle, send_identity),
            timeout_s=STATE_TIMEOUT_S,
        )
    finally:
        os.close(handle)


async def _continue(client: QMPClient, handle: int, send_identity: Callable[[], None]) -> None:
    """Loads the state from an open file, sends the identity, and continues the processors of the guest.

    The capability is on only while the state is loaded: a suspended clone must save all of its memory.
    """
    await _ignore_shared(client, True)
    await send_file(client, handle, "state")
    await client.execute("migrate-incoming", {"uri": "fd:state"})
    while (status := await _run_state(client)) == "inmigrate":
        await qmp.pause(STATE_POLL_S)
    if status not in ("paused", "prelaunch", "postmigrate"):
        raise QmpError(f"QEMU is {status} after loading the state", code="qemu-failed")
    send_identity()  # it has the present time: as late as possible
    await client.execute("cont")
    await _ignore_shared(client, False)
