"""Which accelerator QEMU can really use here, found out by running a guest; the answer is kept.

That /dev/kvm exists and opens says little: inside another virtual machine it may do so and then hang. So the probe
boots a guest of one sector, whose only act is to end QEMU with a number of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.files import read_bounded, read_json, write_json
from kimbox.run import CommandError, require, run

KVM = Path("/dev/kvm")

#: A working KVM runs firmware and boot sector in well under a second.
PROBE_TIMEOUT_S = 10.0

#: What is said of a guest that did not end in time. The host may only have been busy, so it is believed for a while.
HANGS = "a guest hangs"
HANGS_BELIEVED_S = 3600.0

#: Lets this user open /dev/kvm.
MAY_OPEN = "sudo usermod --append --groups kvm $USER  # then log in anew"

#: I/O port of QEMU's isa-debug-exit device, and what the probe writes to it.
EXIT_PORT = 0x501
EXIT_VALUE = 0x2A

#: isa-debug-exit ends QEMU with this status for the value written.
EXIT_STATUS = (EXIT_VALUE << 1) | 1


@attrs.frozen
class Accelerator:
    """What to give to QEMU. `why` says why it is not KVM, and `mend` is a command that changes that, for doctor."""

    name: str
    cpu: str
    why: str
    mend: str | None = None

    def arguments(self) -> list[str]:
        """As QEMU takes them."""
        options = "tcg,thread=multi,tb-size=512" if self.name == "tcg" else self.name
        return ["-accel", options, "-cpu", self.cpu]


KVM_WORKS = Accelerator("kvm", "host", "KVM works")

#: The processor that is emulated: all that TCG knows, but for ERMS. A guest that finds "enhanced rep movsb" clears and
#: copies memory byte by byte, the quickest way on a real processor and the slowest on this one.
EMULATED_CPU = "max,-erms"


def boot_sector() -> bytes:
    """A boot sector that writes EXIT_VALUE to EXIT_PORT: mov dx, port; mov al, value; out dx, al; hlt; jmp back."""
    code = b"\xba" + EXIT_PORT.to_bytes(2, "little") + b"\xb0" + bytes([EXIT_VALUE]) + b"\xee\xf4\xeb\xfd"
    return code.ljust(510, b"\0") + b"\x55\xaa"


def try_out(accelerator: str, cpu: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """Boots the probe guest. Returns None if it ran, else what went wrong."""
    with tempfile.TemporaryDirectory(prefix="kimbox-probe-") as folder:
        disk = Path(folder) / "probe.img"
        disk.write_bytes(boot_sector())
        command = [
            "qemu-system-x86_64", "-accel", accelerator, "-cpu", cpu, "-m", "64", "-machine", "q35,sata=off",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-drive", f"if=none,id=probe,format=raw,file={str(disk).replace(',', ',,')}",
            "-device", "virtio-blk-pci,drive=probe",
            "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1",
        ]  # fmt: skip
        try:
            done = run(command, check=False, timeout_s=timeout_s)
        except CommandError as error:
            return f"{HANGS} ({error.status})"
    if done.code == EXIT_STATUS:
        return None
    return (done.stderr.strip().splitlines() or [f"QEMU ended with status {done.code}"])[-1]


def fingerprint() -> str:
    """Changes whenever the answer could: another boot of the host, another QEMU, another /dev/kvm or access to it."""
    qemu = Path(require("qemu-system-x86_64", "it runs the box"))
    boot = read_bounded(Path("/proc/sys/kernel/random/boot_id"), limit_bytes=64)
    device = KVM.stat() if KVM.exists() else None
    parts = (boot, qemu, qemu.stat().st_mtime_ns, device and (device.st_rdev, device.st_mode), _may_open())
    return repr(parts)


def find() -> Accelerator:
    """The best accelerator of this host: from the last probe if nothing has changed since, else by probing now."""
    mark = fingerprint()
    try:
        known = read_json(paths.host_facts_file())
        if known.get("fingerprint") == mark and _is_fresh(known):
            return KVM_WORKS if known["accelerator"] == KVM_WORKS.name else _emulated(str(known["why"]))
    except (OSError, KimboxError, KeyError):
        pass
    return renew()


def _is_fresh(known: dict[str, Any]) -> bool:
    """Whether what was found may still be believed: for ever, but a time-out."""
    if HANGS not in str(known["why"]):
        return True
    at = known.get("at")
    return isinstance(at, int | float) and 0 <= time.time() - at < HANGS_BELIEVED_S


def renew() -> Accelerator:
    """The best accelerator of this host, found by probing now, and kept for `find`."""
    mark = fingerprint()
    found = probe()
    facts = {"fingerprint": mark, "accelerator": found.name, "why": found.why, "at": time.time()}
    write_json(paths.host_facts_file(), facts)
    return found


def probe() -> Accelerator:
    """Tries KVM, where there is one; software emulation works everywhere."""
    if not KVM.exists():
        why = f"there is no {KVM}"
    elif not _may_open():
        return _emulated(f"this user may not open {KVM}", MAY_OPEN)
    else:
        trouble = try_out("kvm", "host")
        if trouble is None:
            return KVM_WORKS
        why = f"{KVM} is there, but {trouble}"
    return _emulated(why)


def _emulated(why: str, mend: str | None = None) -> Accelerator:
    return Accelerator("tcg", EMULATED_CPU, why, mend)


def _may_open() -> bool:
    return os.access(KVM, os.R_OK | os.W_OK)
