"""Finds out which kind of guest a new machine runs, and prepares one whose image kimbox did not build.

Such a guest has no program that reports to the host. It has cloud-init, which has given it an account and a key, and
writes its host key to the console; and sshd, which accepts the key. A guest that reports by itself needs nothing.
"""

from __future__ import annotations

import contextlib
import time

import attrs

from kimbox.actions.watch import Watch
from kimbox.errors import GuestError
from kimbox.files import read_end
from kimbox.guest import adoption, cloudinit
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.machine import keys
from kimbox.machine.console import CONSOLE_BYTES
from kimbox.machine.folder import Machine
from kimbox.machine.record import GuestKind
from kimbox.spec.model import Box

#: Interval of the probes, and timeout of a login, in seconds.
PROBE_INTERVAL_S, LOGIN_TIMEOUT_S = 1.0, 20.0

#: Errors of a login to a guest that still boots.
_NOT_YET = frozenset({"guest-unreachable", "login-refused", "connection-lost", "timeout"})


def is_needed(machine: Machine) -> bool:
    """Whether the kind of the guest is not known yet. It is known of an image that kimbox built."""
    record = machine.record()
    return record.seed is not None and record.guest is None


def adopt(machine: Machine, box: Box, watch: Watch, timeout_s: float) -> None:
    """Waits until the guest reports, or accepts the key; then installs what it lacks. Writes its kind to the record.

    `timeout_s`: limit for cloud-init. Raises GuestError if the guest does neither, and the errors of
    `cloudinit.wait_until_done` and `adoption.install`.
    """
    with contextlib.ExitStack() as connections:
        probe = _Probe(machine, connections)
        watch.wait_until("waiting for the guest, or for its ssh server", probe.has_answered)
        if probe.guest is not None:
            cloudinit.wait_until_done(probe.guest, machine.name, timeout_s)
            log.now("installing the programs of kimbox")
            adoption.install(probe.guest, machine.name, machine.folder, needs_git=bool(box.repositories))
            kind = GuestKind.CLOUD_INIT
        else:
            reported = [event.text("guest") for event in watch.events if event.name == "booting"]
            kind = GuestKind.CLOUD_INIT if GuestKind.CLOUD_INIT in reported else GuestKind.KIMBOX
    machine.write_record(attrs.evolve(machine.record(), guest=kind))


@attrs.define
class _Probe:
    """Looks for an event, and tries a login about once in a second."""

    machine: Machine
    connections: contextlib.ExitStack
    #: The connection, once a login has succeeded.
    guest: Guest | None = None
    _tried_at: float = attrs.field(default=-PROBE_INTERVAL_S, init=False)

    def has_answered(self, watch: Watch) -> bool:
        """Whether the guest has sent an event, or accepts the key."""
        if watch.events or self.guest is not None:
            return True
        now = time.monotonic()
        if now - self._tried_at < PROBE_INTERVAL_S or not self._has_host_key():
            return False
        try:
            self.guest = self._login()
        except GuestError as error:
            if error.code not in _NOT_YET:
                raise
            log.detail(f"{self.machine.name}: {error.message}")
        self._tried_at = time.monotonic()
        return self.guest is not None

    def _has_host_key(self) -> bool:
        """Whether the host key is known. If not, it is looked for on the console."""
        self._tried_at = time.monotonic()
        if not self.machine.known_hosts.exists():
            key = cloudinit.host_key(read_end(self.machine.serial_log, CONSOLE_BYTES))
            if key is None:
                return False
            keys.pin_host_key(self.machine, key)
        return True

    def _login(self) -> Guest | None:
        """A connection to a guest that runs a command. Raises GuestError."""
        with contextlib.ExitStack() as stack:
            endpoint = self.machine.endpoint(self.machine.record())
            guest = stack.enter_context(Guest(endpoint, timeout_s=LOGIN_TIMEOUT_S))
            if guest.run("exit 0", timeout_s=LOGIN_TIMEOUT_S).code != 0:  # logins may be refused until the boot ends
                return None
            self.connections.push(stack.pop_all())
            return guest
