"""The command line of QEMU, and the credentials that the guest gets with it."""

from __future__ import annotations

import functools
import itertools
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from kimbox.drivers.accelerator import CODE_MIB, Accelerator
from kimbox.drivers.base import JobStart
from kimbox.drivers.qemu import port, relay, virtiofs
from kimbox.guest.deliverydisk import SECTOR_BYTES, SERIAL, DeliveryDisk
from kimbox.image.disk.ext2.geometry import MAX_BYTES as MAX_JOB_BYTES
from kimbox.machine import display, keys
from kimbox.machine.folder import Machine
from kimbox.machine.networks import socket_name
from kimbox.machine.record import Record
from kimbox.spec.model import HOST_ADDRESS, Display, Network, Scratch

#: Addresses in QEMU's user network (option -netdev user): of the guest, the gateway and the name server.
GUEST_ADDRESS = "10.0.2.15/24"
GATEWAY = HOST_ADDRESS
NAMESERVER = "10.0.2.3"

#: Virtio-serial ports from the guest to the host. The guest's scripts have the same names.
EVENT_PORT = "org.kimbox.0"
LOG_PORT = "org.kimbox.log"
AUDIT_PORT = "org.kimbox.audit"
JOB_PORT = "org.kimbox.job"

#: Virtio-serial port from the host to the guest, which shuts down when it reads HALT_WORD. The guest's unit has both.
HALT_PORT = "org.kimbox.halt"
HALT_WORD = "poweroff"
#: The port in the other direction, which only templates and their clones have: a clone gets its identity from it.
FREEZE_PORT = "org.kimbox.freeze"

#: Id of the guest's memory. It is the one that QEMU gives to the machine q35, so that a suspended clone resumes without
#: the file of the template.
RAM_ID = "pc.ram"

#: Maximum size of the code that TCG has translated of a clone, in MiB. Each clone needs that memory, and many run at
#: once. Start and first login of a clone need 83 MiB. If the limit is lower, QEMU translates that code again.
CLONE_CODE_MIB = 96

#: Option of the network card of a clone: it sends no announcement when it wakes. Its network has no other machine.
SILENT = ",guest_announce=off"

#: Options of the command line whose values a saved memory depends on.
FIXED_OPTIONS = frozenset({"-machine", "-accel", "-cpu", "-smp", "-m", "-device", "-action", "-rtc"})

#: Serial number of the disk with the scratch space. The guest finds the disk by it.
SCRATCH_SERIAL = "kimbox-scratch"

#: Serial number of the disk with a job. The guest finds the disk by it.
JOB_SERIAL = "kimbox-job"

#: Address of the disk with a delivery on the PCI bus, far above those that QEMU allots: a saved state resumes only with
#: each device at its address, and most starts have no such disk.
DELIVERY_ADDRESS = "0x1e"

#: Address of the watchdog, for the same reason.
WATCHDOG_ADDRESS = "0x1d"

#: Serial number and address of the disk that cloud-init reads.
SEED_SERIAL, SEED_ADDRESS = "kimbox-seed", "0x1c"

#: Addresses of the network cards of the networks of a spec, for the same reason: as many as the schema allows.
NETWORK_ADDRESSES = ("0x18", "0x19", "0x1a", "0x1b")

#: Addresses of the screen and its pointer, for the same reason.
DISPLAY_ADDRESSES = ("0x17", "0x16")

#: The program that connects a guest to a network of its spec.
PORT = Path(port.__file__)

#: The program that passes a connection on to a server that a job may reach; the file in the machine's folder that
#: limits the number of its processes; and that number.
RELAY, RELAY_LOCK, RELAYS = Path(relay.__file__), "relay.lock", 64

#: Prefix of the process name, which marks the processes of kimbox.
PROCESS_NAME = "kimbox"


@attrs.frozen
class Invocation:
    """The parameters of QEMU's command line."""

    machine: Machine
    record: Record
    cpus: int
    memory_bytes: int
    accelerator: Accelerator
    scratch: Scratch | None = None
    #: Tag of the saved state in the disks from which the guest resumes; None: it boots.
    saved_state: str | None = None
    #: The disk in `Machine.delivery`; None: there is none.
    delivery: DeliveryDisk | None = None
    #: The memory is the file `Machine.ram`, which becomes that of a template.
    freezing: bool = False
    #: File descriptor of the memory of a template, which this machine continues; None: it does not.
    template_ram: int | None = None
    #: TCP ports to which a sealed guest, through QEMU, may connect; None: all.
    connects_to: frozenset[int] | None = None
    #: Name of a log in the machine's folder -> descriptor of a pipe to which QEMU writes instead (recorder.py).
    pipes: Mapping[str, int] = {}
    #: For each network of the record: the descriptor of the socket that takes and gives the frames of the guest.
    network_sockets: tuple[int, ...] = ()
    #: The job on the disk in `Machine.job_disk`; None: there is none.
    job: JobStart | None = None
    #: Secret variables of the guest, and the descriptor from which QEMU reads them.
    secrets: bytes = attrs.field(default=b"", repr=False)
    secrets_file: int | None = None
    #: Descriptors of the connections for the folders of the host, in the order of the record.
    mounts: tuple[int, ...] = ()


def command(invocation: Invocation) -> list[str]:
    """Returns the command line. It has no secret: the one key in it is public."""
    machine = invocation.machine
    arguments = hardware(invocation)
    for name, text in credentials(invocation).items():
        arguments += ["-smbios", f"type=11,value=io.systemd.credential:kimbox.{name}={_escaped(text)}"]
    for name, path in files_of(machine).items():
        arguments += ["-fw_cfg", f"name=opt/io.systemd.credentials/kimbox.{name},file={_escaped(path)}"]
    if invocation.secrets_file is not None:
        source = f"/proc/self/fd/{invocation.secrets_file}"
        arguments += ["-fw_cfg", f"name=opt/io.systemd.credentials/kimbox.environment,file={source}"]
    if invocation.saved_state is not None:
        arguments += ["-loadvm", invocation.saved_state, "-S"]
    if invocation.template_ram is not None:
        arguments += ["-incoming", "defer"]
    return arguments


def portable(invocation: Invocation) -> list[str]:
    """Returns the command line for another host, without the program and the accelerator, which that host adds.

    QEMU runs in the folder with the files, whose names are those of the machine's folder.
    """
    words = command(invocation)
    accelerator = len(invocation.accelerator.arguments())
    at = words.index("-accel")
    prefix = f"{_escaped(invocation.machine.folder)}/"
    return [word.replace(prefix, "") for word in words[1:at] + words[at + accelerator :]]


def fixed(invocation: Invocation) -> list[str]:
    """Returns the part of the command line that a saved memory depends on, each as `OPTION VALUE`."""
    arguments = hardware(invocation)
    return [f"{option} {value}" for option, value in itertools.pairwise(arguments) if option in FIXED_OPTIONS]


def hardware(invocation: Invocation) -> list[str]:
    """Returns the program and the options for the devices of the machine. Reads no file of the machine's content.

    QEMU appends to the logs, because a machine that resumes continues the logs of the boot that was suspended.
    """
    machine, record = invocation.machine, invocation.record
    forwards = ({22: record.ssh_port} if record.ssh_port else {}) | record.forwards
    is_isolated = invocation.job is not None and not invocation.job.has_network
    # A relay starts with setsid(2), which both `deny` and `children` of privileges forbid. The filter itself sets
    # no_new_privs, so that no program gains privileges.
    may_spawn = "allow" if invocation.job and invocation.job.reach else "deny"
    network = ",".join(
        [
            "user,id=net0",
            *(["restrict=on"] if is_isolated else []),
            *(_relays(machine, invocation.job) if invocation.job else []),
            *(f"hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in forwards.items()),
        ]
    )
    arguments = [
        "qemu-system-x86_64",
        "-name", f"{PROCESS_NAME}-{record.name},process={PROCESS_NAME}-{record.name}",
        "-uuid", record.uuid,
        "-machine", "q35,sata=off,smbus=off,vmport=off,dump-guest-core=off" + _memory_option(invocation),
        *invocation.accelerator.arguments(CLONE_CODE_MIB if record.woken and not invocation.freezing else CODE_MIB),
        "-smp", str(invocation.cpus),
        "-m", f"{invocation.memory_bytes >> 20}M",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-sandbox", f"on,obsolete=deny,elevateprivileges={may_spawn},spawn={may_spawn},resourcecontrol=deny",
        "-rtc", "base=utc,clock=host",
        "-drive", f"if=none,id=disk0,format=qcow2,file={_escaped(machine.disk)},discard=unmap",
        "-device", "virtio-blk-pci,drive=disk0,bootindex=0",
        "-netdev", network,
        "-device", f"virtio-net-pci,netdev=net0,mac={record.mac},romfile={SILENT if record.woken else ''}",
        # After a panic the kernel restarts the guest. A job does not continue, so QEMU ends: that is seen at once.
        "-device", "pvpanic", "-action", "panic=shutdown" if invocation.job else "panic=none",
        "-device", "virtio-serial-pci",
        "-chardev", _output("serial0", machine.serial_log, invocation),
        "-serial", "chardev:serial0",
        "-chardev", _output("events", machine.events_file, invocation),
        "-device", f"virtserialport,chardev=events,name={EVENT_PORT}",
        "-chardev", _output("log", machine.provision_log, invocation),
        "-device", f"virtserialport,chardev=log,name={LOG_PORT}",
        "-chardev", _output("audit", machine.audit_log, invocation),
        "-device", f"virtserialport,chardev=audit,name={AUDIT_PORT}",
        "-chardev", f"socket,id=qmp,path={machine.qmp_socket.name},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-pidfile", str(machine.pid_file),
    ]  # fmt: skip
    for number, descriptor in enumerate(invocation.pipes.values()):
        arguments += ["-add-fd", f"fd={descriptor},set={number}"]
    arguments += _more_disks(invocation)
    if invocation.job and invocation.template_ram is not None:
        arguments += ["-no-reboot"]  # what would boot is not the job
    if record.halt_port:  # a pipe, because the guest's port is then connected all the time, with no process at its end
        arguments += ["-chardev", f"pipe,id=halt,path={_escaped(machine.halt_pipe)}"]
        arguments += ["-device", f"virtserialport,chardev=halt,name={HALT_PORT}"]
    if record.watchdog_s:
        arguments += ["-device", f"i6300esb,addr={WATCHDOG_ADDRESS}", "-action", "watchdog=reset"]
    return arguments + _networks(invocation) + _screen(record) + _memory(invocation)


def _networks(invocation: Invocation) -> list[str]:
    """Returns the options of a network card for each network of the spec."""
    arguments: list[str] = []
    record, slots = invocation.record, zip(invocation.network_sockets, NETWORK_ADDRESSES, strict=False)
    for joined, (descriptor, slot) in zip(record.networks, slots, strict=False):
        mac = port.mac_of(str(joined.address(record.name))).hex(":")
        arguments += ["-netdev", f"dgram,id=network-{joined.name},local.type=fd,local.str={descriptor}"]
        arguments += ["-device", f"virtio-net-pci,netdev=network-{joined.name},mac={mac},addr={slot},romfile="]
    return arguments


def _screen(record: Record) -> list[str]:
    """Returns the options of a screen with a pointer at a socket in the machine's folder, whose name is relative.

    Nothing of the clipboard or of files passes between guest and viewer. A kernel without a driver for this card has
    none for another one, and shows text.
    """
    if record.display is None:
        return []
    card = ["-device", f"VGA,addr={DISPLAY_ADDRESSES[0]}", "-device", f"virtio-tablet-pci,addr={DISPLAY_ADDRESSES[1]}"]
    if record.display is Display.VNC:
        return [*card, "-vnc", f"unix:{display.SOCKET}"]
    options = "disable-ticketing=on,disable-copy-paste=on,disable-agent-file-xfer=on"
    return [*card, "-spice", f"unix=on,addr={display.SOCKET},{options}"]


def port_words(record: Record, network: Network, end: int, guest: int) -> list[str]:
    """Returns the command that connects a guest to a network, in the machine's folder. `end`, `guest`: descriptors.

    The path of a socket has at most 107 bytes (unix(7)), so it is relative.
    """
    name = socket_name(record, network)
    peers = [f"{address}=../{box}/{name}" for box, address in network.addresses if box != record.name]
    own = str(network.address(record.name))
    return [sys.executable, "-I", "-S", str(PORT), str(end), str(guest), own, name, *peers]


def _relays(machine: Machine, job: JobStart) -> list[str]:
    """Returns the options for the servers that a job reaches: QEMU starts a program for each connection to one.

    Landlock cannot limit the ports of this QEMU: it connects to itself, at any port, to talk to the program.
    """
    options = []
    for server in job.reach:
        words = [sys.executable, "-I", "-S", RELAY, server.address, server.port, machine.folder / RELAY_LOCK, RELAYS]
        program = shlex.join(map(str, words))
        options.append(f"guestfwd=tcp:{job.seen[server.name]}:{server.port}-cmd:{_escaped(program)}")
    return options


def _more_disks(invocation: Invocation) -> list[str]:
    """Returns the options of the disks beside the first one: scratch space, job and delivery."""
    machine = invocation.machine
    arguments: list[str] = []
    if invocation.scratch:
        # It is the last disk, so that the first disk keeps its name. QEMU need not flush its cache: the content need
        # not survive a crash of the host.
        drive = f"if=none,id=scratch0,format=qcow2,file={_escaped(machine.scratch)},discard=unmap,cache=unsafe"
        arguments += ["-drive", drive, "-device", f"virtio-blk-pci,drive=scratch0,serial={SCRATCH_SERIAL}"]
    if invocation.job:
        arguments += ["-drive", f"if=none,id=job0,{_job_source(invocation)}"]
        arguments += ["-device", f"virtio-blk-pci,drive=job0,serial={JOB_SERIAL}"]
        arguments += ["-chardev", f"file,id=job,path={_escaped(machine.job_log)},append=on"]
        arguments += ["-device", f"virtserialport,chardev=job,name={JOB_PORT}"]
    if invocation.record.delivery_disk:
        drive = f"if=none,id=delivery0,read-only=on,{_delivery_source(invocation)}"
        device = f"virtio-blk-pci,drive=delivery0,serial={SERIAL},addr={DELIVERY_ADDRESS}"
        arguments += ["-drive", drive, "-device", device]
    if invocation.record.seed:
        drive = f"if=none,id=seed0,read-only=on,format=raw,file={_escaped(machine.seed)}"
        device = f"virtio-blk-pci,drive=seed0,serial={SEED_SERIAL},addr={SEED_ADDRESS}"
        arguments += ["-drive", drive, "-device", device]
    return arguments


def _memory(invocation: Invocation) -> list[str]:
    """Returns the options for folders of the host, for memory that is a file, and what else only templates have."""
    machine = invocation.machine
    arguments = virtiofs.slots(invocation.record.mounts) + virtiofs.devices(invocation.mounts)
    if invocation.record.woken:
        arguments += [
            "-chardev", f"socket,id=freeze,path={machine.freeze_socket.name},server=on,wait=off",
            "-device", f"virtserialport,chardev=freeze,name={FREEZE_PORT}",
            "-device", "vmgenid,guid=auto,id=generation0",  # a new one makes Linux add it to its random generator
        ]  # fmt: skip
    if invocation.freezing or invocation.template_ram is not None:
        # QEMU would create a missing file: the memory of a template is a file that kimbox has opened.
        path = machine.ram if invocation.freezing else f"/proc/self/fd/{invocation.template_ram}"
        share = "on" if invocation.freezing else "off"
        size = f"{invocation.memory_bytes >> 20}M"
        arguments += ["-object", f"memory-backend-file,id={RAM_ID},size={size},mem-path={_escaped(path)},share={share}"]
    elif invocation.record.mounts:  # virtiofsd reads and writes the memory of the guest
        arguments += ["-object", f"memory-backend-memfd,id={RAM_ID},size={invocation.memory_bytes >> 20}M,share=on"]
    return arguments


def _memory_option(invocation: Invocation) -> str:
    has_file = invocation.freezing or invocation.template_ram is not None or invocation.record.mounts
    return f",memory-backend={RAM_ID}" if has_file else ""


def _output(name: str, log: Path, invocation: Invocation) -> str:
    """The character device that writes the output of a port to its log, or to the pipe in its place."""
    path = _escaped(log)
    if log.name in invocation.pipes:
        path = f"/dev/fdset/{list(invocation.pipes).index(log.name)}"
    return f"file,id={name},path={path},append=on"


def _job_source(invocation: Invocation) -> str:
    """The options of the disk with the job. That of a template has the largest size, so that each job's disk fits.

    The guest of a clone reads and writes the disk of its job, whose size it learns from the file system. QEMU refuses
    what is beyond the end of that disk.
    """
    if invocation.job and invocation.job.is_awaited:
        return f"driver=null-co,size={MAX_JOB_BYTES},read-zeroes=on"
    return f"format=raw,file={_escaped(invocation.machine.job_disk)},discard=unmap"


def _delivery_source(invocation: Invocation) -> str:
    """The options of the disk with the delivery. A guest that resumes has taken it: an empty disk takes its place."""
    machine = invocation.machine
    if invocation.delivery or machine.delivery.exists():
        return f"format=raw,file={_escaped(machine.delivery)}"
    return f"driver=null-co,size={SECTOR_BYTES},read-zeroes=on"


def credentials(invocation: Invocation) -> dict[str, str]:
    """Returns name -> value of the credentials in SMBIOS type 11 strings (systemd.exec(5)). None of them is secret.

    Raises the errors of `keys.public_key`.
    """
    name = invocation.record.name
    values = {"hostname": name, "network": f"{GUEST_ADDRESS} {GATEWAY} {NAMESERVER}"}
    if invocation.record.ssh_port:
        values["authorized_key"] = keys.public_key(invocation.machine)
    if invocation.freezing:
        values["freeze"] = "yes"
    if invocation.delivery:
        values["delivery"] = invocation.delivery.credential()
    if invocation.scratch:
        values["scratch"] = invocation.scratch.mount
    if mounts := invocation.record.mounts:
        values["mounts"] = " ".join(f"{m.mount_point}:{'rw' if m.writable else 'ro'}" for m in mounts)
    if invocation.job and not invocation.job.is_awaited:
        values["job"] = invocation.job.credential()
    if invocation.record.watchdog_s:
        values["watchdog"] = str(invocation.record.watchdog_s)
    if invocation.record.networks:
        values["networks"] = " ".join(map(functools.partial(_credential_of, name), invocation.record.networks))
    if invocation.machine.unseal_mark.exists():
        values["unseal"] = "yes"
    elif invocation.record.sealed:  # so that the guest seals itself even if /persistent has lost its mark
        values["sealed"] = "yes"
        if known := invocation.record.known:
            values["manifests"] = " ".join(known.manifests)
            values["caches"] = known.caches
    if invocation.connects_to is not None:
        values["connects_to"] = " ".join(map(str, sorted(invocation.connects_to))) or "none"
    return values


def _credential_of(name: str, network: Network) -> str:
    """The words for the guest: the MAC address of the card, its address, and ADDRESS=NAME of each box."""
    own = str(network.address(name))
    _, _, prefix = network.subnet.partition("/")
    return " ".join([
        port.mac_of(own).hex(":"), f"{own}/{prefix}", *(f"{address}={box}" for box, address in network.addresses)
    ])  # fmt: skip


def files_of(machine: Machine) -> dict[str, Path]:
    """Returns name -> file of the credentials of a sealed guest that are secret or long. QEMU reads them itself."""
    files = {"data_key": machine.data_key, "role": machine.role_file, "rotate": machine.rotate_file}
    return {name: path for name, path in files.items() if path.exists()}


def _escaped(value: str | Path) -> str:
    """Returns a value in the option syntax of QEMU, which doubles each comma."""
    return str(value).replace(",", ",,")
