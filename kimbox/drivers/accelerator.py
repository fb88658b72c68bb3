"""Detects the accelerator that QEMU can use on this host, by booting a guest, and stores the result.

/dev/kvm may exist and open, and a guest hang all the same, for example inside another virtual machine. Or the firmware
runs, and the kernel does not, or slower than under emulation. So the probe boots a guest of one sector
(`kimbox/drivers/probeguest.py`), which computes in the mode of a kernel and ends QEMU with an exit status of its own.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kimbox import paths
from kimbox.drivers import probeguest
from kimbox.errors import KimboxError
from kimbox.files import read_bounded, read_json, write_json
from kimbox.run import CommandError, require, run
from kimbox.temporary import temporary_folder

KVM = Path("/dev/kvm")

#: Timeout of the probe, in seconds. With a working KVM it takes less than one.
PROBE_TIMEOUT_S = 10.0

#: If KVM takes longer than this, in seconds, the probe also runs under emulation, and the faster one is used.
USUAL_PROBE_S = 3.0

#: Results of a probe that did not end in time, or was slow. The host may only have been busy, so they are valid for
#: HANG_VALID_S seconds.
HANGS = "a guest hangs"
SLOW = "a guest is slower with it"
HANG_VALID_S = 3600.0

#: How QEMU reports that KVM cannot go on. It stops the guest and does not exit.
KVM_ERROR = "KVM internal error"

#: Command that gives this user access to /dev/kvm.
KVM_ACCESS_COMMAND = "sudo usermod --append --groups kvm $USER  # then log in again"

#: Maximum size of the code that TCG has translated, in MiB.
CODE_MIB = 512


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The accelerator and its processor. `why` is the reason if it is not KVM; `repair`: a command that repairs it."""

    name: str
    cpu: str
    why: str
    repair: str | None = None

    def arguments(self, code_mib: int = CODE_MIB) -> list[str]:
        """Returns the options of QEMU. `code_mib`: maximum size of the translated code under TCG."""
        options = f"tcg,thread=multi,tb-size={code_mib}" if self.name == "tcg" else self.name
        return ["-accel", options, "-cpu", self.cpu]


KVM_WORKS = Accelerator("kvm", "host", "KVM works")

#: The emulated processor: all features of TCG except ERMS. With "enhanced rep movsb" a guest clears and copies memory
#: byte by byte, which is the fastest way on a real processor and the slowest under TCG.
EMULATED_CPU = "max,-erms"

#: The accelerator that works on every host.
EMULATED = Accelerator("tcg", EMULATED_CPU, "emulation works on every host")


def probe_failure(accelerator: str, cpu: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """Boots the guest of the probe. Returns None if it ran, else the reason of the failure."""
    with temporary_folder("kimbox-probe-") as folder:
        disk = folder / "probe.img"
        disk.write_bytes(probeguest.disk())
        command = [
            "qemu-system-x86_64", "-accel", accelerator, "-cpu", cpu, "-m", "64", "-machine", "q35,sata=off",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-drive", f"if=none,id=probe,format=raw,file={str(disk).replace(',', ',,')}",
            "-device", "virtio-blk-pci,drive=probe",
            "-device", f"isa-debug-exit,iobase={probeguest.EXIT_PORT:#x},iosize=1",
        ]  # fmt: skip
        try:
            done = run(command, check=False, timeout_s=timeout_s)
        except CommandError as error:
            return f"{HANGS} ({error.status}{f', {KVM_ERROR}' if KVM_ERROR in error.tail else ''})"
    if done.code == probeguest.EXIT_STATUS:
        return None
    return (done.stderr.strip().splitlines() or [f"QEMU exited with status {done.code}"])[-1]


def fingerprint() -> str:
    """Returns a text that changes with each fact that the result depends on: host boot, QEMU, /dev/kvm, guest."""
    qemu = Path(require("qemu-system-x86_64", "it runs the box"))
    boot = read_bounded(Path("/proc/sys/kernel/random/boot_id"), limit_bytes=64)
    device = KVM.stat() if KVM.exists() else None
    seen = (boot, qemu, qemu.stat().st_mtime_ns, device and (device.st_rdev, device.st_mode), _may_open())
    return repr((*seen, probeguest.PROGRAM))


def find() -> Accelerator:
    """Returns the best accelerator of this host: the stored result if it is still valid, else that of a new probe."""
    mark = fingerprint()
    try:
        stored = read_json(paths.host_facts_file())
        if stored.get("fingerprint") == mark and _is_valid(stored):
            return KVM_WORKS if stored["accelerator"] == KVM_WORKS.name else _emulated(str(stored["why"]))
    except (OSError, KimboxError, KeyError):
        pass
    return renew()


def _is_valid(stored: dict[str, Any]) -> bool:
    """Whether a stored result is still valid. Only that of a timeout or of a slow guest expires."""
    if HANGS not in str(stored["why"]) and SLOW not in str(stored["why"]):
        return True
    at = stored.get("at")
    return isinstance(at, int | float) and 0 <= time.time() - at < HANG_VALID_S


def renew() -> Accelerator:
    """Returns the best accelerator of this host from a new probe, and stores it for `find`."""
    mark = fingerprint()
    accelerator = probe()
    _store(mark, accelerator)
    return accelerator


def _store(mark: str, accelerator: Accelerator) -> None:
    result = {"fingerprint": mark, "accelerator": accelerator.name, "why": accelerator.why, "at": time.time()}
    write_json(paths.host_facts_file(), result)


def reject() -> None:
    """Stores that a guest hangs with the accelerator that `find` returns: `find` then returns emulation, for a time."""
    why = f"{KVM} exists, but {HANGS} with it: QEMU has reported an internal error"
    _store(fingerprint(), _emulated(why))


def probe() -> Accelerator:
    """Probes KVM if /dev/kvm exists. Returns the accelerator KVM, or TCG with the reason."""
    if not KVM.exists():
        why = f"{KVM} does not exist"
    elif not _may_open():
        return _emulated(f"this user may not open {KVM}", KVM_ACCESS_COMMAND)
    else:
        began_at = time.monotonic()
        failure = probe_failure("kvm", "host")
        if failure is None:
            slowness = _slowness(time.monotonic() - began_at)
            return _emulated(f"{KVM} exists, but {slowness}") if slowness else KVM_WORKS
        why = f"{KVM} exists, but a guest does not run with it: {failure}"
    return _emulated(why)


def _slowness(kvm_s: float) -> str | None:
    """Returns the reason not to use KVM if its probe, which took `kvm_s` seconds, takes less time under emulation."""
    if kvm_s <= USUAL_PROBE_S:
        return None
    began_at = time.monotonic()
    failure = probe_failure(EMULATED.name, EMULATED.cpu, timeout_s=kvm_s)
    emulated_s = time.monotonic() - began_at
    return None if failure else f"{SLOW} ({kvm_s:.1f} s) than under emulation ({emulated_s:.1f} s)"


def _emulated(why: str, repair: str | None = None) -> Accelerator:
    return Accelerator("tcg", EMULATED_CPU, why, repair)


def _may_open() -> bool:
    return os.access(KVM, os.R_OK | os.W_OK)
