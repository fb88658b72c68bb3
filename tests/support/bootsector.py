"""Guests of 512 bytes under a real QEMU, for tests of what the host does with a running machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import makemachine
import pytest

from kimbox.drivers.accelerator import Accelerator
from kimbox.drivers.qemu import process
from kimbox.drivers.qemu.command import Invocation
from kimbox.machine.folder import Machine
from kimbox.run import run

#: Halts the processor: cli; hlt.
IDLE = bytes.fromhex("fa f4")

#: Writes to the first serial port without an end: mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to the last instruction.
FLOOD = bytes.fromhex("ba f8 03 b0 78 ee eb fd")

#: Writes one sector of its disk after the other, by the firmware: xor ax, ax; mov ds, ax; mov si, 0x7c15; mov ah, 0x43;
#: mov al, 0; mov dl, 0x80; int 0x13; inc word [0x7c1d]; jmp to the mov si; the packet of int 0x13, at 0x7c15.
WRITE = bytes.fromhex("31c0 8ed8 be157c b443 b000 b280 cd13 ff061d7c ebef 1000 0100 007c 0000 01")


@contextlib.contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch, code: bytes, **record: Any) -> Iterator[Machine]:
    """A machine that runs a program of at most 510 bytes from its boot sector. `record`: fields of its record."""
    monkeypatch.setenv("KIMBOX_HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    machine = makemachine.make_machine(**record)
    raw = folder / "boot.raw"
    raw.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, machine.disk])
    machine.write_record(attrs.evolve(machine.record(), ended=None))
    any_port = attrs.evolve(machine.record(), ssh_port=0, forwards={})
    process.start(Invocation(machine, any_port, 1, 32 << 20, Accelerator("tcg", "max", "there is no KVM")))
    try:
        yield machine
    finally:
        if machine.running:
            process.kill(machine)
