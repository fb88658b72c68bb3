"""Folders of the host in a guest: starts virtiofsd(1) for each, and plugs its device into a machine that runs.

virtiofsd serves one connection, which kimbox opens before QEMU starts and then passes to QEMU. When QEMU ends, in any
way, the kernel closes the connection, and virtiofsd ends. So no process is left, and there is no socket in a folder.
QEMU cannot save the memory of a guest with such a device: it is unplugged before, and plugged in again afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.qemu import confine, qmp
from kimbox.errors import GuestError, KimboxError, MissingToolError
from kimbox.filelocks import flock
from kimbox.files import read_end
from kimbox.image import namespace
from kimbox.machine.folder import Machine
from kimbox.machine.mounts import lock_file, real_folder
from kimbox.run import detach, tail, which
from kimbox.sockets import short_path
from kimbox.spec.model import Mount

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

#: The program, and where distributions install it: Debian 13 and Ubuntu 24.04, then Debian 12 with QEMU.
PROGRAM, PLACES = "virtiofsd", ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")

#: Starts virtiofsd in its namespaces.
CONFINE = Path(confine.__file__)

#: Owners of the files that other accounts of a guest create, if root runs kimbox: ids that systemd's list of users and
#: groups (UIDS-GIDS.md) does not assign.
UNASSIGNED_IDS = 1879048192

#: Prefix of the tag of a device. The guest's script has the same.
TAG = "kimbox"

#: Name of the socket in the machine's folder, while a server starts.
SOCKET = "mount.sock"

#: Number of files of a folder that a guest may need at a time. The source of Linux has 80,000.
ENOUGH_FILES = 100_000

#: Address of the slots on the PCI bus, above those that QEMU allots and below those of command.py. Each is one of the 8
#: functions of this address. A saved state has each slot at its address.
SLOTS_ADDRESS = "0x15"

#: Timeout of the first answer of virtiofsd, and of the guest when a device is unplugged, in seconds.
ANSWER_TIMEOUT_S, UNPLUG_TIMEOUT_S = 30.0, 60.0

#: A request of the vhost-user protocol for the features of the server: its number, the version, no data.
_GET_FEATURES = struct.pack("=III", 1, 1, 0)

#: Size of the answer: the same, and 64 bits.
_ANSWER_BYTES = 20

#: Number of bytes at the end of a log that are read after a failure.
_LOG_END_BYTES = 4096


def program() -> str:
    """Returns the path of virtiofsd. Raises MissingToolError."""
    if path := which(PROGRAM):
        return path
    for place in PLACES:
        if os.access(place, os.X_OK):
            return place
    raise MissingToolError(
        "the program virtiofsd is not installed (it shares folders of the host with a box)",
        hint="sudo apt-get install virtiofsd",
        fields={"program": PROGRAM},
    )


def check() -> HostCheck:
    """Checks whether this host can share folders, and enough files."""
    path = program()
    if os.geteuid() != 0:
        namespace.first_subordinate_ids()
    text, files = f"folders of this host in a box, by {path}", confine.most_open_files()
    if files >= ENOUGH_FILES:
        return HostCheck("mounts", Outcome.GOOD, text)
    text += f"; a guest can use {files} files of a folder at a time, because `ulimit -Hn` is {files}"
    repair = f"echo '{getpass.getuser()} hard nofile {8 * ENOUGH_FILES}' | sudo tee -a /etc/security/limits.conf"
    return HostCheck("mounts", Outcome.SLOW, text, repair)


def slots(mounts: tuple[Mount, ...]) -> list[str]:
    """Returns the options for the slots of the devices."""
    options = []
    for number in range(len(mounts)):
        port = f"pcie-root-port,id=slot{number},chassis={number + 1},addr={SLOTS_ADDRESS}.{number}"
        options += ["-device", port + (",multifunction=on" if number == 0 else "")]
    return options


def devices(connections: tuple[int, ...]) -> list[str]:
    """Returns the options for the devices of a guest that boots. `connections`: descriptors that QEMU inherits."""
    options = []
    for number, connection in enumerate(connections):
        options += ["-chardev", f"socket,id=mount{number},fd={connection}"]
        driver, *properties = _device(number).items()
        options += ["-device", ",".join([driver[1], *map("=".join, properties)])]
    return options


def _device(number: int) -> dict[str, str]:
    name = f"mount{number}"
    tag = f"{TAG}{number}"
    return {"driver": "vhost-user-fs-pci", "id": name, "chardev": name, "tag": tag, "bus": f"slot{number}"}


def log_file(machine: Machine, number: int) -> Path:
    """Returns the log of a virtiofsd."""
    return machine.folder / f"virtiofsd{number}.log"


@contextlib.contextmanager
def serve(machine: Machine, mounts: tuple[Mount, ...]) -> Iterator[tuple[int, ...]]:
    """Starts virtiofsd for each folder. The value is the descriptors of the connections, which QEMU must get.

    A server ends when neither this block nor QEMU has its connection. Raises KimboxError (`mount-failed`),
    MissingToolError.
    """
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_serve(machine, number, mount)) for number, mount in enumerate(mounts)]
        yield tuple(connection.fileno() for connection in connections)


def _serve(machine: Machine, number: int, mount: Mount) -> socket.socket:
    """Returns the connection to a new virtiofsd, which has answered on it."""
    words = _command(mount, real_folder(machine.name, mount))
    log, lock = log_file(machine, number), lock_file(machine, number)
    connection = socket.socket(socket.AF_UNIX)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        address = machine.folder / SOCKET
        short = stack.enter_context(short_path(address))
        address.unlink(missing_ok=True)  # left by a kimbox that was killed
        stack.callback(address.unlink)
        listener.bind(short)  # not an abstract address, to which every user of the host could connect
        listener.listen(1)
        connection.connect(short)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, handle)
        with contextlib.suppress(BlockingIOError):  # a server that is just ending has it
            flock(handle, fcntl.LOCK_EX, lock)
        detach([*words, f"--fd={listener.fileno()}"], log=log, pass_fds=[listener.fileno(), handle])
        listener.close()  # so that the connection ends with the server
        if not _answers(connection):
            connection.close()
            raise KimboxError(
                f"{mount.location} cannot be shared with {machine.name}: virtiofsd does not start\n"
                + tail(read_end(log, _LOG_END_BYTES).decode("utf-8", "replace")),
                code="mount-failed",
                hint="`kimbox doctor` checks this host",
                fields={"name": machine.name, "path": str(mount.location)},
            )
    return connection


def _command(mount: Mount, real: Path) -> list[str | Path]:
    """Returns the command of a server of the folder `real`, without its socket.

    Both kinds of virtiofsd accept these options.
    """
    owner = real.stat()
    if os.geteuid() == 0:  # root works for the owner of the folder, and a guest gets the rights of that user alone
        ids = (owner.st_uid, owner.st_gid, UNASSIGNED_IDS, UNASSIGNED_IDS)
    else:
        ids = (os.getuid(), os.getgid(), *namespace.first_subordinate_ids())
    access = "rw" if mount.writable else "ro"
    return [
        "prlimit", "--core=0:0", "--",
        sys.executable, "-I", "-S", CONFINE, *map(str, ids), access, real, program(),
        "-f", "-o", "source={folder}", "-o", "sandbox=namespace", "-o", "cache=auto", "--rlimit-nofile=0",
    ]  # fmt: skip


def _answers(connection: socket.socket) -> bool:
    """Whether the server answers a request (QEMU's docs/interop/vhost-user.rst)."""
    connection.settimeout(ANSWER_TIMEOUT_S)
    try:
        connection.sendall(_GET_FEATURES)
        left = _ANSWER_BYTES
        while left and (data := connection.recv(left)):
            left -= len(data)
        return not left
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            connection.settimeout(None)


def plug(machine: Machine, mounts: tuple[Mount, ...]) -> None:
    """Gives the devices to a machine that runs. Raises the errors of `serve` and QmpError."""

    async def add(client: QMPClient) -> None:
        for number, connection in enumerate(connections):
            device = _device(number)
            await qmp.send_file(client, connection, device["chardev"])
            address = {"type": "fd", "data": {"str": device["chardev"]}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            await client.execute("chardev-add", {"id": device["chardev"], "backend": backend})
            await client.execute("device_add", device)

    with serve(machine, mounts) as connections:
        qmp.talk(machine.qmp_socket, add, timeout_s=UNPLUG_TIMEOUT_S)


def unplug(machine: Machine, mounts: tuple[Mount, ...]) -> None:
    """Takes the devices away, as far as it has them, from a machine in whose guest no folder is mounted.

    Raises GuestError (`mount-failed`) if the guest does not give one back within UNPLUG_TIMEOUT_S, and QmpError.
    """
    names = {_device(number)["id"] for number in range(len(mounts))}

    def is_ours(event: Any) -> bool:
        return event["data"].get("device") in names

    async def remove(client: QMPClient) -> None:
        with client.listener(("DEVICE_DELETED",), is_ours) as listener:
            left = {str(device["qdev_id"]) for device in await _pci_devices(client)} & names
            for name in sorted(left):
                await client.execute("device_del", {"id": name})
            while left:
                data: Any = (await listener.get())["data"]
                left.discard(data["device"])
        chardevs: Any = await client.execute("query-chardev")
        for name in sorted({chardev["label"] for chardev in chardevs} & names):
            await client.execute("chardev-remove", {"id": name})

    try:
        qmp.talk(machine.qmp_socket, remove, timeout_s=UNPLUG_TIMEOUT_S)
    except qmp.QmpError as error:
        if error.code != "timeout":
            raise
        raise GuestError(
            f"the guest of {machine.name} does not give back the devices of the folders of this host",
            code="mount-failed",
            hint=f"try again when the guest is less busy; or `kimbox halt {machine.name}`",
            fields={"name": machine.name},
        ) from None


async def _pci_devices(client: QMPClient) -> list[dict[str, Any]]:
    """Returns the devices on the PCI bus and behind its bridges, as QMP's query-pci describes them."""
    buses: Any = await client.execute("query-pci")
    devices = [device for bus in buses for device in bus["devices"]]
    return devices + [behind for device in devices for behind in device.get("pci_bridge", {}).get("devices", [])]
