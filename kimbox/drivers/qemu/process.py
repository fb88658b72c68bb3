"""The QEMU process of a machine: starts it, observes it, ends it.

The process holds the machine's run lock from its start to its end. So the kernel shows whether it runs, and a stale pid
file does no harm. The process runs on after kimbox exits; later kimbox processes control it by QMP.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from kimbox.drivers.qemu import disk, qmp, recorder, virtiofs
from kimbox.drivers.qemu.command import HALT_WORD, Invocation, command, port_words
from kimbox.errors import GuestError, KimboxError
from kimbox.filelocks import flock
from kimbox.files import read_bounded, read_end
from kimbox.machine import display
from kimbox.machine.folder import OUTPUT_LIMIT_BYTES, Machine
from kimbox.machine.record import Record
from kimbox.restarting import restarting
from kimbox.run import describe_status, detach, require, tail
from kimbox.spec.model import Network

#: QEMU answers QMP within this time after its start.
START_TIMEOUT_S = 60.0

#: Maximum wait for the run lock. `kimbox status` holds it for a moment, to test it.
LOCK_WAIT_S = 1.0

#: Interval between two requests to a guest to shut down, in seconds.
REQUEST_INTERVAL_S = 3.0

#: Maximum wait for the end of QEMU after QMP's `quit`, and after a signal.
QUIT_TIMEOUT_S = 5.0
SIGNAL_TIMEOUT_S = 5.0

#: QEMU is unresponsive if QMP does not answer for this time, after a first attempt without an answer.
ANSWER_TIMEOUT_S = 8.0

#: Number of bytes at the end of QEMU's log that are read if QEMU did not start.
LOG_END_BYTES = 16 << 10

#: Interval between two checks of the process, in seconds.
POLL_INTERVAL_S = 0.05

#: Interval between two attempts to reach a QEMU that has just started, in seconds.
START_POLL_S = 0.01

#: Starts a program that writes no core dump (prlimit(1)). That of QEMU would contain the keys of a sealed box.
NO_CORE_DUMP = ("prlimit", "--core=0:0", "--")

#: Starts a program that the kernel kills when the thread ends that started it (setpriv(1)). Unlike a function that runs
#: between fork and exec, this is safe in a process with several threads.
ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")

#: The program that limits the size of a guest's output.
RECORDER = Path(recorder.__file__)

#: QEMU's message when it cannot listen on a port of the host.
NO_FORWARD = "Could not set up host forwarding rule"


class PortTakenError(GuestError):
    """Another program took a port of the host after kimbox chose it."""

    code = "port-in-use"


def start(invocation: Invocation) -> None:
    """Starts the process; returns when QEMU answers QMP.

    Raises GuestError: `wrong-state` if the machine runs, `qemu-failed` with the end of QEMU's output, `timeout`, or
    PortTakenError if another program has a port of the host.
    """
    machine = invocation.machine
    is_boot = invocation.saved_state is None and invocation.template_ram is None
    require("qemu-system-x86_64", "it runs the box")
    handle = os.open(machine.run_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(handle, machine)
        for log in machine.outputs:
            if log.exists() and is_boot:
                log.replace(log.with_name(log.name + ".1"))
            log.touch()
        sweep(machine)
        if invocation.record.halt_port:
            os.mkfifo(machine.halt_pipe, 0o600)
        if is_boot:
            disk.create_scratch(machine, invocation.scratch)
        exit_code = _start_qemu(invocation, handle)
    finally:
        os.close(handle)
    deadline = time.monotonic() + START_TIMEOUT_S
    while status(machine) is None:
        code = exit_code()
        if code is not None:
            output = tail(read_end(machine.qemu_log, LOG_END_BYTES).decode("utf-8", "replace"))
            message = f"QEMU did not start {machine.name}: it {describe_status(code)}\n{output}".rstrip()
            if NO_FORWARD in output:
                raise PortTakenError(message, fields={"name": machine.name})
            raise GuestError(message, code="qemu-failed", fields={"name": machine.name})
        if time.monotonic() > deadline:
            kill(machine)
            raise GuestError(
                f"QEMU did not answer for {machine.name} within {START_TIMEOUT_S:.0f} s of its start",
                code="timeout",
                fields={"name": machine.name},
            )
        time.sleep(START_POLL_S)


def _start_qemu(invocation: Invocation, run_lock: int) -> Callable[[], int | None]:
    """Starts QEMU, and for a sealed guest the recorder. Returns a function for the exit code of QEMU.

    The recorder has the run lock, too: the machine runs until the last output of its guest is in the files.
    """
    machine, template_ram = invocation.machine, invocation.template_ram
    with contextlib.ExitStack() as descriptors:
        pipes: dict[str, int] = {}
        if invocation.record.sealed:
            sources = {}
            for log in machine.outputs:
                sources[log.name], pipes[log.name] = os.pipe()
                descriptors.callback(os.close, sources[log.name])
                descriptors.callback(os.close, pipes[log.name])
            copied = [f"{source}:{name}" for name, source in sources.items()]
            detach(
                [sys.executable, "-I", "-S", RECORDER, str(OUTPUT_LIMIT_BYTES), *copied],
                log=machine.recorder_log,
                pass_fds=[run_lock, *sources.values()],
                cwd=machine.folder,
            )
        network_sockets = _start_ports(invocation, descriptors)
        secrets_file = _memory_file(invocation.secrets, descriptors) if invocation.secrets else None
        mounts = () if invocation.saved_state else invocation.record.mounts  # a saved state has only their slots
        served = descriptors.enter_context(virtiofs.serve(machine, mounts))
        invocation = attrs.evolve(
            invocation, pipes=pipes, secrets_file=secrets_file, mounts=served, network_sockets=network_sockets[1:]
        )
        inherited = [run_lock, *pipes.values(), *served, *network_sockets]
        inherited += [fd for fd in (template_ram, secrets_file) if fd is not None]
        wrapper = ENDS_WITH_PARENT if invocation.job and invocation.job.ends_with_kimbox else ()
        return detach(
            [*wrapper, *NO_CORE_DUMP, *command(invocation)],
            log=machine.qemu_log,
            pass_fds=inherited,
            cwd=machine.folder,
            connects_to=invocation.connects_to,
            dies_with_parent=invocation.freezing,  # nothing else ends it: its folder is no machine
        )


def _start_ports(invocation: Invocation, descriptors: contextlib.ExitStack) -> tuple[int, ...]:
    """Starts the program of each network of a machine. Returns the descriptors for QEMU, which `descriptors` closes.

    The first one is a pipe: the programs end when QEMU has ended, and with it the pipe. Then a socket for each network.
    """
    machine, record = invocation.machine, invocation.record
    if not record.networks:
        return ()
    end, kept = os.pipe()
    for each in (end, kept):
        descriptors.callback(os.close, each)
    sockets = []
    for network in record.networks:
        guest, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        descriptors.enter_context(guest)
        descriptors.enter_context(ours)
        start_port(machine, record, network, end, ours.fileno())
        sockets.append(guest.fileno())
    return (kept, *sockets)


def start_port(machine: Machine, record: Record, network: Network, end: int, guest: int) -> Callable[[], int | None]:
    """Starts the program of a network, which starts again if it is killed. `end`, `guest`: descriptors for it.

    QEMU does not see that: its socket has no connection. Returns a function for the exit code.
    """
    return detach(
        restarting(port_words(record, network, end, guest)),
        log=machine.folder / f"network-{network.name}.log",
        pass_fds=[end, guest],
        cwd=machine.folder,
    )


def _memory_file(data: bytes, descriptors: contextlib.ExitStack) -> int:
    """Returns the descriptor of a file with this content that is in memory alone, and is closed with `descriptors`."""
    handle = os.memfd_create("kimbox-secrets", os.MFD_CLOEXEC)
    descriptors.callback(os.close, handle)
    os.write(handle, data)
    return handle


def _lock(handle: int, machine: Machine) -> None:
    """Locks the run lock. Raises GuestError (`wrong-state`) if a QEMU process holds it for longer than LOCK_WAIT_S."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            flock(handle, fcntl.LOCK_EX, machine.run_lock)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise GuestError(
                    f"a QEMU process already runs {machine.name}",
                    code="wrong-state",
                    fields={"name": machine.name, "state": "running"},
                ) from None
            time.sleep(POLL_INTERVAL_S)
        else:
            return


def pid(machine: Machine) -> int | None:
    """Returns the pid of the machine's process from its pid file, or None if /proc shows that it is another process."""
    if not machine.running:
        return None
    with contextlib.suppress(OSError, ValueError, KimboxError):
        number = int(read_bounded(machine.pid_file, limit_bytes=32))
        if os.fsencode(machine.pid_file) in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0"):
            return number
    return None


def status(machine: Machine) -> str | None:
    """Returns the run state of QMP (`running`, `paused`, ...), or None if QEMU does not answer."""
    try:
        return str(qmp.execute(machine.qmp_socket, "query-status", timeout_s=2.0)["status"])
    except KimboxError:
        return None


def is_unresponsive(machine: Machine) -> bool:
    """Whether a QEMU process that runs does not answer on its socket for ANSWER_TIMEOUT_S.

    QEMU talks to one client at a time. So it counts as responsive while another kimbox process works on the machine.
    """
    if machine.is_locked_by_another() or not machine.qmp_socket.exists():
        return False
    try:
        qmp.execute(machine.qmp_socket, "query-status", timeout_s=ANSWER_TIMEOUT_S)
    except KimboxError:  # a timeout, or it has just ended
        return machine.running and machine.qmp_socket.exists()
    return False


def wait_until_gone(machine: Machine, timeout_s: float) -> bool:
    """Waits for the process to end; True if it did within the timeout."""
    deadline = time.monotonic() + timeout_s
    while machine.running:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True


def power_off(machine: Machine, timeout_s: float) -> bool:
    """Requests a shutdown of the guest and waits; True if it shut down within the timeout.

    Each request goes to the guest's port and to its power button (ACPI). The guest reads the port from the start of its
    boot. systemd-logind reads the button, and starts later; only the button exists in a guest that an older kimbox
    started or built. A request that is lost, for example in a reboot, is repeated after REQUEST_INTERVAL_S.
    """
    deadline = time.monotonic() + timeout_s
    while machine.running and time.monotonic() < deadline:
        _write_halt_word(machine)
        with contextlib.suppress(KimboxError):  # the process may be ending
            qmp.execute(machine.qmp_socket, "system_powerdown")
        if wait_until_gone(machine, min(REQUEST_INTERVAL_S, deadline - time.monotonic())):
            return True
    return not machine.running


def _write_halt_word(machine: Machine) -> None:
    """Writes HALT_WORD to the guest's port. Does nothing if there is no port, or if the guest does not read it."""
    with contextlib.suppress(OSError):  # ENOENT: no port; ENXIO: QEMU is ending; EAGAIN: the pipe is full
        handle = os.open(machine.halt_pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(handle, f"{HALT_WORD}\n".encode())
        finally:
            os.close(handle)


def unpause(machine: Machine) -> None:
    """Continues the processors of the guest."""
    qmp.execute(machine.qmp_socket, "cont")


def kill(machine: Machine) -> None:
    """Ends the process by QMP, or else by a signal. Raises GuestError (`timeout`) if it does not end."""
    if status(machine) is not None:
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
    raise GuestError(
        f"the QEMU process of {machine.name} did not end after a signal",
        code="timeout",
        hint=f"`fuser {machine.run_lock}` shows the process",
        fields={"name": machine.name, "path": str(machine.run_lock)},
    )


def sweep(machine: Machine) -> None:
    """Removes files that only a running machine needs, and the new disk of an interrupted command."""
    sockets = (machine.qmp_socket, machine.freeze_socket, display.socket_of(machine))
    for path in (*sockets, machine.pid_file, machine.halt_pipe, machine.new_disk):
        path.unlink(missing_ok=True)


def remove(machine: Machine) -> None:
    """Removes the folder of a machine that does not run. Removes the record first: without it, there is no machine."""
    sweep(machine)
    machine.record_file.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(machine.folder)
