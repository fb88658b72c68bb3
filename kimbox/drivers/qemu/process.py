"""The process of the provider `qemu`: one QEMU a machine. Builds its command line, starts it, looks at it, ends it.

The process holds the machine's run lock from birth to death, so that whether it lives is a fact of the kernel's and
never a file's claim. It outlives kimbox; QMP is how a later kimbox talks to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path

import attrs

from kimbox.drivers.accelerator import Accelerator
from kimbox.drivers.qemu import qmp
from kimbox.errors import GuestError, KimboxError
from kimbox.files import read_bounded, sync_file
from kimbox.machine.folder import Machine, Record, read_end
from kimbox.run import describe_status, detach, require, run, tail
from kimbox.spec.model import Scratch

#: QEMU's user network (docs: -netdev user): the guest's address, the gateway, the name server.
GUEST_ADDRESS = "10.0.2.15/24"
GATEWAY = "10.0.2.2"
NAMESERVER = "10.0.2.3"

#: Ports from the guest to the host; the names that the guest's scripts know.
EVENT_PORT = "org.kimbox.0"
LOG_PORT = "org.kimbox.log"
AUDIT_PORT = "org.kimbox.audit"

#: Serial number of the scratch space's disk, by which the guest finds it.
SCRATCH_SERIAL = "kimbox-scratch"

#: Name of the saved state in the disks of a suspended machine.
SUSPENDED_TAG = "kimbox-suspend"

#: Marks processes as kimbox's own, in their command line.
PROCESS_NAME = "kimbox"

START_TIMEOUT_S = 60.0

#: `status` of another kimbox holds the run lock for no longer than it takes to ask for it.
LOCK_WAIT_S = 1.0

#: Saving the memory of a guest to its disk.
SAVE_TIMEOUT_S = 600.0

#: A press of the power button that had no effect is repeated after this time.
BUTTON_AGAIN_S = 3.0

#: So much of what QEMU said is read where it did not start.
SAID_BYTES = 16 << 10

#: How often facts are looked at while something is waited for.
LOOK_S = 0.05


#: QEMU's words when it cannot listen on a port of the host.
NO_FORWARD = "Could not set up host forwarding rule"


class PortTakenError(GuestError):
    """A port of the host was free when it was chosen, and is not any more."""


@attrs.frozen
class Invocation:
    """Everything a QEMU command line is made from."""

    machine: Machine
    record: Record
    cpus: int
    memory_bytes: int
    accelerator: Accelerator
    scratch: Scratch | None = None
    #: Start from a saved state instead of booting, and from which.
    resume: bool = False
    tag: str = SUSPENDED_TAG


def command(invocation: Invocation) -> list[str]:
    """The command line. Holds no secret: the one key in it is public.

    Logs are appended to, because a box that resumes goes on in those of the boot that was suspended.
    """
    machine, record = invocation.machine, invocation.record
    forwards = {22: record.ssh_port} | record.forwards
    network = ",".join(
        ["user,id=net0", *(f"hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in forwards.items())]
    )
    arguments = [
        "qemu-system-x86_64",
        "-name", f"{PROCESS_NAME}-{record.name},process={PROCESS_NAME}-{record.name}",
        "-uuid", record.uuid,
        "-machine", "q35,sata=off,smbus=off,vmport=off",
        *invocation.accelerator.arguments(),
        "-smp", str(invocation.cpus),
        "-m", f"{invocation.memory_bytes >> 20}M",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-rtc", "base=utc,clock=host",
        "-drive", f"if=none,id=disk0,format=qcow2,file={_value(machine.disk)},discard=unmap",
        "-device", "virtio-blk-pci,drive=disk0,bootindex=0",
        "-netdev", network,
        "-device", f"virtio-net-pci,netdev=net0,mac={record.mac},romfile=",
        "-device", "pvpanic", "-action", "panic=none",  # the kernel restarts the box; the event is QMP's
        "-device", "virtio-serial-pci",
        "-chardev", f"file,id=serial0,path={_value(machine.serial_log)},append=on",
        "-serial", "chardev:serial0",
        "-chardev", f"file,id=events,path={_value(machine.events_file)},append=on",
        "-device", f"virtserialport,chardev=events,name={EVENT_PORT}",
        "-chardev", f"file,id=log,path={_value(machine.provision_log)},append=on",
        "-device", f"virtserialport,chardev=log,name={LOG_PORT}",
        "-chardev", f"file,id=audit,path={_value(machine.audit_log)},append=on",
        "-device", f"virtserialport,chardev=audit,name={AUDIT_PORT}",
        "-chardev", f"socket,id=qmp,path={machine.qmp_socket.name},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-pidfile", str(machine.pid_file),
    ]  # fmt: skip
    for name, text in credentials(invocation).items():
        arguments += ["-smbios", f"type=11,value=io.systemd.credential:kimbox.{name}={_value(text)}"]
    for name, path in secrets(machine).items():
        arguments += ["-fw_cfg", f"name=opt/io.systemd.credentials/kimbox.{name},file={_value(path)}"]
    if invocation.scratch:
        # The last of the disks, so that the first one keeps its name. A guest's flush costs nothing here: there is no
        # file in it that must outlive the host.
        drive = f"if=none,id=scratch0,format=qcow2,file={_value(machine.scratch)},discard=unmap,cache=unsafe"
        arguments += ["-drive", drive, "-device", f"virtio-blk-pci,drive=scratch0,serial={SCRATCH_SERIAL}"]
    if invocation.resume:
        arguments += ["-loadvm", invocation.tag]
    return arguments


def credentials(invocation: Invocation) -> dict[str, str]:
    """What the host tells the guest about itself (systemd.exec(5): credentials by SMBIOS type 11 strings)."""
    file = invocation.machine.key.with_suffix(".pub")
    try:
        public = read_bounded(file, limit_bytes=4096).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"`kimbox destroy {invocation.record.name}` and `kimbox up {invocation.record.name}` make the box anew"
        raise GuestError(f"the key of {invocation.record.name} cannot be read: {error}", hint=hint) from None
    told = {
        "hostname": invocation.record.name,
        "network": f"{GUEST_ADDRESS} {GATEWAY} {NAMESERVER}",
        "authorized_key": public,
    }
    if invocation.scratch:
        told["scratch"] = invocation.scratch.mount
    if invocation.machine.unseal_mark.exists():
        told["unseal"] = "yes"
    elif invocation.record.sealed:  # should /persistent have lost all trace of it
        told["sealed"] = "yes"
    return told


def secrets(machine: Machine) -> dict[str, Path]:
    """What the host tells a sealed guest, and no command line may show: files that QEMU hands on (systemd.exec(5))."""
    files = {"data_key": machine.data_key, "rotate": machine.rotate_file}
    return {name: path for name, path in files.items() if path.exists()}


def _value(text: str | Path) -> str:
    """A value in QEMU's option syntax, where a comma is written twice."""
    return str(text).replace(",", ",,")


def create_disk(disk: Path, image: Path, image_format: str, size_bytes: int) -> None:
    """Makes an overlay of `size_bytes` on an image."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", image_format, disk, str(size_bytes)])


def _empty_scratch(invocation: Invocation) -> None:
    """A new scratch space in place of the last run's, if there is to be one. qcow2, as suspending saves every disk."""
    machine = invocation.machine
    if invocation.scratch is None:
        drop_scratch(machine)
        return
    new = machine.scratch.with_name(f"{machine.scratch.name}.new")
    run(["qemu-img", "create", "-q", "-f", "qcow2", new, str(invocation.scratch.size_bytes)])
    new.replace(machine.scratch)


def drop_scratch(machine: Machine) -> None:
    """Removes the scratch space of a machine that does not run, and with it all that was in it."""
    machine.scratch.unlink(missing_ok=True)


def start(invocation: Invocation) -> None:
    """Starts the process; returns once QEMU has set the machine up.

    Raises GuestError with QEMU's own words: PortTakenError where another program has a port of the host by now.
    """
    machine = invocation.machine
    require("qemu-system-x86_64", "it runs the box")
    arguments = command(invocation)
    handle = os.open(machine.run_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, machine)
        for log in (machine.serial_log, machine.events_file, machine.provision_log, machine.audit_log):
            if log.exists() and not invocation.resume:
                log.replace(log.with_name(log.name + ".1"))
            log.touch()
        sweep(machine)
        if not invocation.resume:
            _empty_scratch(invocation)
        exit_code = detach(arguments, log=machine.qemu_log, pass_fds=[handle], cwd=machine.folder)
    finally:
        os.close(handle)
    deadline = time.monotonic() + START_TIMEOUT_S
    while status(machine) is None:
        code = exit_code()
        if code is not None:
            said = tail(read_end(machine.qemu_log, SAID_BYTES).decode("utf-8", "replace"))
            kind = PortTakenError if NO_FORWARD in said else GuestError
            raise kind(f"QEMU did not start {machine.name}: it {describe_status(code)}\n{said}".rstrip())
        if time.monotonic() > deadline:
            kill(machine)
            raise GuestError(f"QEMU did not set up {machine.name} within {START_TIMEOUT_S:.0f} s")
        time.sleep(LOOK_S)


def _take(handle: int, machine: Machine) -> None:
    """Locks the run lock. Raises GuestError if a QEMU process has it; another kimbox that looks has it for a moment."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise GuestError(f"a QEMU process of {machine.name} is running already") from None
            time.sleep(LOOK_S)
        else:
            return


def pid(machine: Machine) -> int | None:
    """The process that runs the machine: what its pid file says, believed only if the kernel agrees."""
    if not machine.running:
        return None
    with contextlib.suppress(OSError, ValueError, KimboxError):
        number = int(read_bounded(machine.pid_file, limit_bytes=32))
        if str(machine.pid_file).encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
            return number
    return None


def status(machine: Machine) -> str | None:
    """QMP's word for what the vCPUs do (`running`, `paused`, ...), or None if QEMU does not answer."""
    try:
        return str(qmp.execute(machine.qmp_socket, "query-status", timeout_s=2.0)["status"])
    except KimboxError:
        return None


def wait_until_gone(machine: Machine, timeout_s: float) -> bool:
    """Waits for the process to end; True if it did."""
    deadline = time.monotonic() + timeout_s
    while machine.running:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def power_off(machine: Machine, timeout_s: float) -> bool:
    """Asks the guest to shut down (ACPI's power button) and waits; True if it did.

    A guest that has just started does not hear the button yet, so it is pressed again.
    """
    deadline = time.monotonic() + timeout_s
    while machine.running and time.monotonic() < deadline:
        with contextlib.suppress(KimboxError):  # it may just be going
            qmp.execute(machine.qmp_socket, "system_powerdown")
        if wait_until_gone(machine, min(BUTTON_AGAIN_S, deadline - time.monotonic())):
            return True
    return not machine.running


def unpause(machine: Machine) -> None:
    """Lets the vCPUs go on."""
    qmp.execute(machine.qmp_socket, "cont")


def kill(machine: Machine) -> None:
    """Ends the process, by QMP, else by signal. Raises GuestError if it will not go."""
    with contextlib.suppress(KimboxError):
        qmp.execute(machine.qmp_socket, "quit")
    if wait_until_gone(machine, 5):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = pid(machine)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        if wait_until_gone(machine, 10):
            return
    raise GuestError(f"the QEMU process of {machine.name} does not end", hint=f"its lock is {machine.run_lock}")


def suspend(machine: Machine) -> None:
    """Saves the whole state into the disks; the guest stands still from then on."""
    forget_suspended(machine)  # two states of one name cannot be
    _save(machine, SUSPENDED_TAG)


def _save(machine: Machine, tag: str) -> None:
    """Saves the whole state into the disks of a running machine, which stands still then, unless that failed."""
    nodes = _disk_nodes(machine)
    arguments = {"job-id": "save", "tag": tag, "vmstate": nodes[0], "devices": nodes}
    try:
        qmp.execute(machine.qmp_socket, "stop", timeout_s=SAVE_TIMEOUT_S)  # it writes what it has in its cache first
        qmp.run_job(machine.qmp_socket, "snapshot-save", arguments, timeout_s=SAVE_TIMEOUT_S)
    except KimboxError:
        with contextlib.suppress(KimboxError):
            qmp.execute(machine.qmp_socket, "cont")
        raise
    if machine.scratch.exists():  # QEMU leaves it to the host when to write this one (cache=unsafe)
        sync_file(machine.scratch)


def forget_suspended(machine: Machine) -> None:
    """Removes the saved state, if there is one, from the disks of a running machine."""
    _forget(machine, SUSPENDED_TAG)


def _forget(machine: Machine, tag: str) -> None:
    arguments = {"job-id": "forget", "tag": tag, "devices": _disk_nodes(machine)}
    qmp.run_job(machine.qmp_socket, "snapshot-delete", arguments, timeout_s=SAVE_TIMEOUT_S)


def snapshot_tag(name: str) -> str:
    """What a snapshot of that name is called in the disk."""
    return f"kimbox-snapshot-{name}"


def save_snapshot(machine: Machine, name: str) -> None:
    """Keeps the disk as it is now, and the memory with it where the machine runs; it goes on."""
    if not machine.running:
        run(["qemu-img", "snapshot", "-c", snapshot_tag(name), machine.disk])
        return
    _save(machine, snapshot_tag(name))
    unpause(machine)


def revert(machine: Machine, name: str) -> None:
    """Makes the disk of a machine that does not run what it was in a snapshot."""
    run(["qemu-img", "snapshot", "-a", snapshot_tag(name), machine.disk])


def delete_snapshot(machine: Machine, name: str) -> None:
    """Removes a snapshot from the disk, if it is there."""
    if machine.running:
        _forget(machine, snapshot_tag(name))
    else:
        run(["qemu-img", "snapshot", "-d", snapshot_tag(name), machine.disk], check=False)


def drop_suspended(machine: Machine) -> None:
    """Removes the saved state, if there is one, of a machine that does not run, and the scratch space with it."""
    run(["qemu-img", "snapshot", "-d", SUSPENDED_TAG, machine.disk], check=False)
    drop_scratch(machine)


def _disk_nodes(machine: Machine) -> list[str]:
    """QEMU's names for the disk of a running machine, and then for its scratch space, if it has one."""
    blocks = {block.get("device"): block for block in qmp.execute(machine.qmp_socket, "query-block")}
    if "disk0" not in blocks:
        raise GuestError(f"QEMU knows no disk of {machine.name}")
    return [str(blocks[name]["inserted"]["node-name"]) for name in ("disk0", "scratch0") if name in blocks]


def sweep(machine: Machine) -> None:
    """Removes what only a running machine needs, and what an interrupted `shrink` left."""
    for path in (machine.qmp_socket, machine.pid_file, machine.new_disk):
        path.unlink(missing_ok=True)


def remove(machine: Machine) -> None:
    """Removes the folder of a machine that does not run; what an interruption leaves is no machine any more."""
    sweep(machine)
    machine.record_file.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(machine.folder)
