"""Freezes the kernel of a guest, through the debugger's port of QEMU (GDB manual, "Remote Protocol")."""

from __future__ import annotations

import re
import socket

from kimbox.drivers.qemu import qmp
from kimbox.machine.folder import Machine
from kimbox.sockets import short_path

#: Places of two registers of x86_64 among all of them: the address of the next instruction, and the flags.
RIP, EFLAGS = slice(128, 136), slice(136, 140)

#: The flag with which interrupts arrive.
INTERRUPTS = 0x200

#: Machine code: a jump to itself.
ENDLESS = "ebfe"

TIMEOUT_S = 30.0


def freeze(machine: Machine) -> None:
    """Lets the only processor of a guest jump to the same instruction for ever, with interrupts off.

    QEMU and its clocks run on.
    """
    path = machine.folder / "gdb"
    words = {"command-line": f"gdbserver unix:{path.name},server=on,wait=off"}
    assert "Waiting for gdb" in qmp.execute(machine.qmp_socket, "human-monitor-command", words)
    with socket.socket(socket.AF_UNIX) as port, short_path(path) as address:
        port.settimeout(TIMEOUT_S)
        port.connect(address)
        _ask(port, "?")  # the guest is stopped now
        registers = bytes.fromhex(_ask(port, "g"))
        rip = int.from_bytes(registers[RIP], "little")
        flags = int.from_bytes(registers[EFLAGS], "little") & ~INTERRUPTS
        changed = registers[: EFLAGS.start] + flags.to_bytes(4, "little")
        assert "OK" == _ask(port, f"G{changed.hex()}")  # the registers after these stay
        assert "OK" == _ask(port, f"M{rip:x},{len(ENDLESS) // 2:x}:{ENDLESS}")
        assert "OK" == _ask(port, "D")  # it runs again


def _ask(port: socket.socket, command: str) -> str:
    """Sends a command, and returns the answer: the packet after its acknowledgement `+`.

    A report that the guest has stopped, which QEMU sends by itself, has no acknowledgement before it.
    """
    port.sendall(f"${command}#{sum(command.encode()) % 256:02x}".encode())
    data = b""
    while not (answer := re.search(rb"\+\$([^#]*)#[0-9a-f]{2}", data)):
        part = port.recv(4096)
        assert part, f"QEMU has closed the port: {data!r}"
        data += part
    port.sendall(b"+")
    return answer[1].decode()
