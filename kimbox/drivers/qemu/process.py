"""The QEMU process of a machine: starts it, observes it, ends it.

The process holds the machine's run lock as long as it lives. So the kernel says whether it runs, and no file has to be
believed. The process outlives kimbox; a later kimbox controls it by QMP.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path

from kimbox.drivers.qemu import disk, qmp
from kimbox.drivers.qemu.command import Invocation, command
from kimbox.errors import GuestError, KimboxError
from kimbox.files import read_bounded
from kimbox.machine.folder import Machine, read_end
from kimbox.run import describe_status, detach, require, tail

#: QEMU answers QMP within this time after its start.
START_TIMEOUT_S = 60.0

#: `status` of another kimbox holds the run lock only while it tries it.
LOCK_WAIT_S = 1.0

#: A press of the power button that had no effect is repeated after this time.
BUTTON_INTERVAL_S = 3.0

#: Maximum time for QEMU to end after QMP's `quit`, and after a signal.
QUIT_TIMEOUT_S = 5.0
SIGNAL_TIMEOUT_S = 10.0

#: This much of QEMU's log, from its end, is read where QEMU did not start.
LOG_END_BYTES = 16 << 10

#: Seconds between two looks at the process, while something is waited for.
POLL_INTERVAL_S = 0.05

#: QEMU's message when it cannot listen on a port of the host.
NO_FORWARD = "Could not set up host forwarding rule"


class PortTakenError(GuestError):
    """A port of the host was free when it was chosen, and is not any more."""


def start(invocation: Invocation) -> None:
    """Starts the process; returns when QEMU answers QMP.

    Raises GuestError with QEMU's own message: PortTakenError where another program has a port of the host by now.
    """
    machine = invocation.machine
    is_boot = invocation.saved_state is None
    require("qemu-system-x86_64", "it runs the box")
    arguments = command(invocation)
    handle = os.open(machine.run_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(handle, machine)
        for log in (machine.serial_log, machine.events_file, machine.provision_log, machine.audit_log):
            if log.exists() and is_boot:
                log.replace(log.with_name(log.name + ".1"))
            log.touch()
        sweep(machine)
        if is_boot:
            disk.create_scratch(machine, invocation.scratch)
        exit_code = detach(arguments, log=machine.qemu_log, pass_fds=[handle], cwd=machine.folder)
    finally:
        os.close(handle)
    deadline = time.monotonic() + START_TIMEOUT_S
    while status(machine) is None:
        code = exit_code()
        if code is not None:
            output = tail(read_end(machine.qemu_log, LOG_END_BYTES).decode("utf-8", "replace"))
            kind = PortTakenError if NO_FORWARD in output else GuestError
            raise kind(f"QEMU did not start {machine.name}: it {describe_status(code)}\n{output}".rstrip())
        if time.monotonic() > deadline:
            kill(machine)
            raise GuestError(f"QEMU did not set up {machine.name} within {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)


def _lock(handle: int, machine: Machine) -> None:
    """Locks the run lock. Raises GuestError if a QEMU process holds it, after LOCK_WAIT_S."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise GuestError(f"a QEMU process of {machine.name} is running already") from None
            time.sleep(POLL_INTERVAL_S)
        else:
            return


def pid(machine: Machine) -> int | None:
    """The process that runs the machine: from its pid file, if /proc shows that file in the process's command line."""
    if not machine.running:
        return None
    with contextlib.suppress(OSError, ValueError, KimboxError):
        number = int(read_bounded(machine.pid_file, limit_bytes=32))
        if str(machine.pid_file).encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
            return number
    return None


def status(machine: Machine) -> str | None:
    """QMP's run state (`running`, `paused`, ...), or None if QEMU does not answer."""
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
        time.sleep(POLL_INTERVAL_S)
    return True


def power_off(machine: Machine, timeout_s: float) -> bool:
    """Presses the power button (ACPI) and waits; True if the guest shut down within the timeout.

    A guest that has just started ignores the button, so that it is pressed again.
    """
    deadline = time.monotonic() + timeout_s
    while machine.running and time.monotonic() < deadline:
        with contextlib.suppress(KimboxError):  # the process may be ending
            qmp.execute(machine.qmp_socket, "system_powerdown")
        if wait_until_gone(machine, min(BUTTON_INTERVAL_S, deadline - time.monotonic())):
            return True
    return not machine.running


def unpause(machine: Machine) -> None:
    """Continues the processors of the guest."""
    qmp.execute(machine.qmp_socket, "cont")


def kill(machine: Machine) -> None:
    """Ends the process, by QMP, else by signal. Raises GuestError if it does not end."""
    with contextlib.suppress(KimboxError):
        qmp.execute(machine.qmp_socket, "quit")
    if wait_until_gone(machine, QUIT_TIMEOUT_S):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = pid(machine)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        if wait_until_gone(machine, SIGNAL_TIMEOUT_S):
            return
    raise GuestError(f"the QEMU process of {machine.name} does not end", hint=f"its lock is {machine.run_lock}")


def sweep(machine: Machine) -> None:
    """Removes what only a running machine needs, and what an interrupted `shrink` left."""
    for path in (machine.qmp_socket, machine.pid_file, machine.new_disk):
        path.unlink(missing_ok=True)


def remove(machine: Machine) -> None:
    """Removes the folder of a machine that does not run: the record first, so that a half of it is no machine."""
    sweep(machine)
    machine.record_file.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(machine.folder)
