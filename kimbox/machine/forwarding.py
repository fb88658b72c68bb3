"""Forwards each port on which a program of a guest listens, while it does (`forwards: [{guest: auto}]`).

    python -P -m kimbox.machine.forwarding NAME

It is a process of its own for each box, with one ssh connection: a program in the guest (provisioners/provision/
listening) reports the ports, and ssh forwards each of them to 127.0.0.1 of the guest, which QEMU's own forwards do not
reach. Nothing polls on the host. When the box stops, ssh ends, and with it the forwards and this process. If the
process is killed, its connection ends with it. It is started again, and then creates the forwards again.

A guest is hostile. It says only which of its ports listen: this host listens on 127.0.0.1 alone, on ports from 1024 on
that are free, on MAX_FORWARDS at most, and changes them once in SETTLE_S at most.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.filelocks import is_locked, locked
from kimbox.files import read_bounded, read_json, write_json
from kimbox.guest.endpoint import ssh_command
from kimbox.machine import ports
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.restarting import restarting
from kimbox.run import CommandError, detach, run, stream
from kimbox.spec.model import FIRST_ORDINARY_PORT, SSH_PORT

#: Maximum number of ports that are forwarded at the same time, and of ports in a report that are read.
MAX_FORWARDS, MAX_REPORTED = 32, 1024

#: Minimum time between two changes, in seconds.
SETTLE_S = 1.0

#: Time to the next connection after one has ended while the box runs, as in a restart of the guest, in seconds.
RETRY_S = 5.0

#: Time in which the process takes its lock after its start, and pause between two checks of that, in seconds.
START_S, START_POLL_S = 10.0, 0.02

#: Timeout of a change of a forward, in seconds.
CHANGE_S = 30.0

#: Number of ports of the host that are tried for a port of the guest, and of ports of the guest in one report for which
#: all of them may fail: each costs the host a program.
ATTEMPTS, MAX_FAILURES = 3, 8

#: Maximum number of messages in the log.
MAX_MESSAGES = 100

#: Names in the machine's folder: of the socket of the connection, of the lock, and of the file with the forwards.
SOCKET, LOCK, STATE = "forwards.sock", "forwards.lock", "forwards.json"

_REPORT = re.compile(r"listening((?: [0-9A-F]{4})*)")


def ensure(machine: Machine, record: Record) -> None:
    """Starts the process for a box that runs and asks for it, unless it runs. A sealed box has none."""
    if record.auto_forwards and record.sealed is None and machine.running and not is_locked(machine.folder / LOCK):
        command = [sys.executable, "-P", "-m", "kimbox.machine.forwarding", machine.name]
        env = {"KIMBOX_HOME": str(paths.home()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        has_ended = detach(restarting(command), log=machine.folder / "forwards.log", env=env)
        deadline = time.monotonic() + START_S
        while not is_locked(machine.folder / LOCK) and has_ended() is None and time.monotonic() < deadline:
            time.sleep(START_POLL_S)


def is_down(machine: Machine, record: Record) -> bool:
    """Whether a box that runs and asks for the process has none, and no kimbox is just starting or stopping the box."""
    is_asked = record.auto_forwards and record.sealed is None
    return is_asked and not is_locked(machine.folder / LOCK) and not machine.is_locked_by_another()


def forwards_of(machine: Machine) -> dict[str, int]:
    """Returns port of the guest -> port on 127.0.0.1 of the host, of the forwards that exist now."""
    if not is_locked(machine.folder / LOCK):
        return {}
    try:
        value = read_json(machine.folder / STATE)
    except (KimboxError, OSError):
        return {}
    return {str(guest): host for guest, host in value.items() if isinstance(host, int)}


def reported(line: str) -> set[int] | None:
    """Returns the ports in a line of the guest, except that of ssh, which every box forwards; None: it is no report."""
    match = _REPORT.fullmatch(line[: len("listening") + 5 * MAX_REPORTED])
    return {int(word, 16) for word in match[1].split()} - {0, SSH_PORT} if match else None


class Forwards:
    """The forwards of a box."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        #: Port of the guest -> port of the host.
        self.held: dict[int, int] = {}
        self._messages = 0

    def take(self, line: str) -> None:
        """Changes the forwards to those of a report of the guest. Other lines are ignored."""
        listening = reported(line)
        if listening is not None:
            self._change(listening - set(self.machine.record().forwards))
        time.sleep(SETTLE_S)  # the guest waits meanwhile: its output stays in the connection

    def _change(self, listening: set[int]) -> None:
        for guest in sorted(set(self.held) - listening):
            self._control("cancel", guest, self.held.pop(guest))
        failures = 0
        for guest in sorted(listening - set(self.held)):
            if len(self.held) >= MAX_FORWARDS:
                self._report(f"port {guest} is not forwarded: {MAX_FORWARDS} ports are")
                break
            failures += not self._add(guest)
            if failures >= MAX_FAILURES:  # the connection has ended, for example
                break
        self._write()

    def forget(self) -> None:
        """Forgets all forwards, because the connection has ended, and with it the forwards."""
        self.held.clear()
        self._write()

    def _add(self, guest: int) -> bool:
        """Forwards a port of the guest from the port of the same number, or from another one if that is taken.

        Returns whether it is forwarded now.
        """
        used = {*ports.taken(self.machine), *self.held.values()}
        same = (guest,) if guest >= FIRST_ORDINARY_PORT else ()
        candidates = (port for port in (*same, *ports.AUTO_PORTS) if port not in used)
        attempts = 0
        for host in candidates:
            if attempts == ATTEMPTS:
                break
            if not ports.is_free(host):
                continue
            attempts += 1
            if self._control("forward", guest, host):
                self.held[guest] = host
                return True
        self._report(f"port {guest} cannot be forwarded")
        return False

    def _report(self, message: str) -> None:
        """Writes to the log of this process. A guest cannot fill it."""
        self._messages += 1
        if self._messages <= MAX_MESSAGES:
            print(message, file=sys.stderr, flush=True)

    def _control(self, command: str, guest: int, host: int) -> bool:
        """Adds or removes a forward. sshd tries each address of localhost in the guest: of IPv4 and IPv6."""
        option = f"{ports.ADDRESS}:{host}:localhost:{guest}"
        words = ["ssh", "-F", "none", f"-oControlPath={SOCKET}", "-O", command, "-L", option, "box"]
        with contextlib.suppress(CommandError):
            return run(words, check=False, cwd=self.machine.folder, timeout_s=CHANGE_S).ok
        return False

    def _write(self) -> None:
        if self.machine.running:  # not into a folder that is being removed
            write_json(self.machine.folder / STATE, {str(guest): host for guest, host in self.held.items()})


def serve(machine: Machine) -> None:
    """Forwards ports until the box stops."""
    script = read_bounded(paths.provisioners_dir() / "provision/listening", limit_bytes=1 << 16).decode()
    settings = {
        "ControlMaster": "yes", "ControlPath": SOCKET, "BatchMode": "yes", "ConnectTimeout": "60",
        "ServerAliveInterval": "15", "ServerAliveCountMax": "1000",
    }  # fmt: skip
    forwards = Forwards(machine)
    while machine.running and machine.record().sealed is None:
        (machine.folder / SOCKET).unlink(missing_ok=True)
        command = f"exec sh -c {shlex.quote(script)}"
        endpoint = machine.endpoint(machine.record())
        argv = ssh_command(endpoint, command=command, settings=settings, cwd=machine.folder)
        with contextlib.suppress(CommandError):
            stream(argv, on_line=forwards.take, cwd=machine.folder)
        if machine.running:
            forwards.forget()
            time.sleep(RETRY_S)


def main(name: str) -> None:
    """Runs the program with its argument. Does nothing if the box does not run, or if another process serves it."""
    machine = Machine(name)
    if not machine.running:  # started again after its end: the lock would create the folder of a removed machine
        return
    # Another process may have the lock, or the box is destroyed meanwhile.
    with contextlib.suppress(KimboxError, FileNotFoundError), locked(machine.folder / LOCK):
        try:
            serve(machine)
        finally:
            for file in (STATE, SOCKET):
                (machine.folder / file).unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1])
