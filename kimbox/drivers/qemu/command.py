"""QEMU's command line, and what the host hands to a guest with it."""

from __future__ import annotations

from pathlib import Path

import attrs

from kimbox.drivers.accelerator import Accelerator
from kimbox.errors import GuestError
from kimbox.files import read_bounded
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.spec.model import Scratch

#: QEMU's user network (docs: -netdev user): the guest's address, the gateway, the name server.
GUEST_ADDRESS = "10.0.2.15/24"
GATEWAY = "10.0.2.2"
NAMESERVER = "10.0.2.3"

#: Virtio-serial ports from the guest to the host. The guest's scripts know these names.
EVENT_PORT = "org.kimbox.0"
LOG_PORT = "org.kimbox.log"
AUDIT_PORT = "org.kimbox.audit"

#: Serial number of the scratch space's disk, by which the guest finds it.
SCRATCH_SERIAL = "kimbox-scratch"

#: Marks processes as kimbox's own, in their command line.
PROCESS_NAME = "kimbox"


@attrs.frozen
class Invocation:
    """Everything that QEMU's command line is made from."""

    machine: Machine
    record: Record
    cpus: int
    memory_bytes: int
    accelerator: Accelerator
    scratch: Scratch | None = None
    #: Tag of the saved state in the disks from which the guest resumes; None: it boots.
    saved_state: str | None = None


def command(invocation: Invocation) -> list[str]:
    """The command line. It holds no secret: the one key in it is public.

    Logs are appended to, because a machine that resumes continues those of the boot that was suspended.
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
        "-drive", f"if=none,id=disk0,format=qcow2,file={_escaped(machine.disk)},discard=unmap",
        "-device", "virtio-blk-pci,drive=disk0,bootindex=0",
        "-netdev", network,
        "-device", f"virtio-net-pci,netdev=net0,mac={record.mac},romfile=",
        "-device", "pvpanic", "-action", "panic=none",  # the kernel restarts the guest; QMP has an event of the panic
        "-device", "virtio-serial-pci",
        "-chardev", f"file,id=serial0,path={_escaped(machine.serial_log)},append=on",
        "-serial", "chardev:serial0",
        "-chardev", f"file,id=events,path={_escaped(machine.events_file)},append=on",
        "-device", f"virtserialport,chardev=events,name={EVENT_PORT}",
        "-chardev", f"file,id=log,path={_escaped(machine.provision_log)},append=on",
        "-device", f"virtserialport,chardev=log,name={LOG_PORT}",
        "-chardev", f"file,id=audit,path={_escaped(machine.audit_log)},append=on",
        "-device", f"virtserialport,chardev=audit,name={AUDIT_PORT}",
        "-chardev", f"socket,id=qmp,path={machine.qmp_socket.name},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-pidfile", str(machine.pid_file),
    ]  # fmt: skip
    for name, text in credentials(invocation).items():
        arguments += ["-smbios", f"type=11,value=io.systemd.credential:kimbox.{name}={_escaped(text)}"]
    for name, path in secret_files(machine).items():
        arguments += ["-fw_cfg", f"name=opt/io.systemd.credentials/kimbox.{name},file={_escaped(path)}"]
    if invocation.scratch:
        # The last of the disks, so that the first one keeps its name. Without a cache flush, as nothing in it must
        # survive a crash of the host.
        drive = f"if=none,id=scratch0,format=qcow2,file={_escaped(machine.scratch)},discard=unmap,cache=unsafe"
        arguments += ["-drive", drive, "-device", f"virtio-blk-pci,drive=scratch0,serial={SCRATCH_SERIAL}"]
    if invocation.saved_state is not None:
        arguments += ["-loadvm", invocation.saved_state]
    return arguments


def credentials(invocation: Invocation) -> dict[str, str]:
    """Name -> value of the credentials that the guest gets as SMBIOS type 11 strings (systemd.exec(5)); none is secret.

    Raises GuestError if the machine's public key cannot be read.
    """
    file = invocation.machine.key.with_suffix(".pub")
    name = invocation.record.name
    try:
        public = read_bounded(file, limit_bytes=4096).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"`kimbox destroy {name}` and `kimbox up {name}` make the box anew"
        raise GuestError(f"the key of {name} cannot be read: {error}", hint=hint) from None
    values = {"hostname": name, "network": f"{GUEST_ADDRESS} {GATEWAY} {NAMESERVER}", "authorized_key": public}
    if invocation.scratch:
        values["scratch"] = invocation.scratch.mount
    if invocation.machine.unseal_mark.exists():
        values["unseal"] = "yes"
    elif invocation.record.sealed:  # so that the guest seals itself even if /persistent has lost its own mark
        values["sealed"] = "yes"
    return values


def secret_files(machine: Machine) -> dict[str, Path]:
    """Name -> file of the credentials of a sealed guest that no command line may show: QEMU reads them itself."""
    files = {"data_key": machine.data_key, "rotate": machine.rotate_file}
    return {name: path for name, path in files.items() if path.exists()}


def _escaped(value: str | Path) -> str:
    """A value in QEMU's option syntax, where a comma is written twice."""
    return str(value).replace(",", ",,")
