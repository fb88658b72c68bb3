"""Copies the events and the output of a guest without a port to the host to the machine's folder, over ssh.

The guest writes its events to a file on /persistent, and the output of its provisioning to another. Each copy starts
where the last one ended, and appends to the file that QEMU would write. If the file in the guest was replaced or became
shorter (a snapshot was restored), all of it is copied again.
"""

from __future__ import annotations

import base64
import contextlib
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from kimbox.errors import GuestError, KimboxError
from kimbox.files import locked, read_json, write_json
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Guest
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record

#: Paths in the guest of its events (events.sh) and of the output of provisioning (provisiond).
EVENTS = "/persistent/log/events.jsonl"
OUTPUT = "/persistent/log/provision.log"

#: Maximum size of one copy.
PIECE_BYTES = 4 << 20

#: Timeouts of the connection to a guest, which may be off, and of each copy.
CONNECT_TIMEOUT_S = 20.0
COPY_TIMEOUT_S = 30.0

#: A script for the guest. Its arguments are the file, and the inode and the size of the last copy. It prints a line
#: with the inode and the offset from which it copies, and then the new data in base64.
SCRIPT = f"""\
f=$1 inode=$2 at=$3
set -- $(stat -c "%i %s" "$f")
if [ "$1" != "$inode" ] || [ "$2" -lt "$at" ]; then at=0; fi
echo "$1 $at"
tail -c "+$((at + 1))" "$f" | head -c {PIECE_BYTES} | base64 -w 0
"""

_HEAD = re.compile(r"(\d{1,19}) (\d{1,19})\n")


def inodes_file(machine: Machine) -> Path:
    """The file with the inodes of the guest's files at the last copy."""
    return machine.folder / "fetched.json"


def remove_fetched(machine: Machine) -> None:
    """Removes what was copied from a former disk: on a new disk the files may have the same inodes."""
    for file in (machine.events_file, machine.provision_log, inodes_file(machine)):
        file.unlink(missing_ok=True)


@attrs.define
class Fetcher:
    """Copies from a guest. The connection stays open between two copies."""

    machine: Machine
    endpoint: Endpoint
    _guest: Guest | None = None

    def fetch(self) -> bool:
        """Copies new data. True if the guest sent valid answers.

        Raises GuestError (`host-key-mismatch`) if another machine answers.
        """
        try:
            if self._guest is None:
                self._guest = Guest(self.endpoint, timeout_s=CONNECT_TIMEOUT_S).__enter__()
            file = inodes_file(self.machine)
            with locked(file.with_suffix(".lock"), wait_s=COPY_TIMEOUT_S):  # of `status` and `up` at the same time
                inodes = self._inodes()
                self._copy(EVENTS, self.machine.events_file, inodes)
                self._copy(OUTPUT, self.machine.provision_log, inodes)
                write_json(file, inodes)
        except GuestError as error:
            self.close()
            if error.code == "host-key-mismatch":
                raise
            return False
        return True

    def close(self) -> None:
        """Closes the connection."""
        if self._guest is not None:
            self._guest.__exit__(None, None, None)
            self._guest = None

    def _inodes(self) -> dict[str, int]:
        """Returns the inodes of the guest's files at the last copy: path in the guest -> inode."""
        try:
            return {str(key): int(value) for key, value in read_json(inodes_file(self.machine)).items()}
        except (OSError, KimboxError, TypeError, ValueError):
            return {}

    def _copy(self, remote: str, local: Path, inodes: dict[str, int]) -> None:
        """Appends new data of a file in the guest to a local file. Raises GuestError if the answer is not valid."""
        assert self._guest is not None  # noqa: S101 - for the type checker
        size = local.stat().st_size if local.exists() else 0
        arguments = f"{remote} {inodes.get(remote, 0)} {size}"
        answer = self._guest.run(f"sh -ec {shlex.quote(SCRIPT)} sh {arguments}", timeout_s=COPY_TIMEOUT_S)
        head = _HEAD.match(answer.stdout)
        if answer.code != 0 or not head:  # the guest has not written the file yet
            return
        inode, offset = map(int, head.groups())
        try:
            data = base64.b64decode(answer.stdout[head.end() :], validate=True)
        except ValueError:
            data = None
        if data is None or len(data) > PIECE_BYTES or offset not in (0, size):
            raise GuestError(
                f"{self.machine.name} sent an invalid copy of its {remote}",
                code="unexpected-output",
                fields={"name": self.machine.name, "path": remote},
            )
        with local.open("r+b" if local.exists() else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
        inodes[remote] = inode


@attrs.define
class EventCopies:
    """The copies of the events of a machine, for a driver whose guests have no port to the host."""

    machine: Machine
    #: Interval between two copies while the machine boots, in seconds.
    interval_s: float
    _fetcher: Fetcher | None = None
    #: Time of the last copy by `listen`, on the monotonic clock.
    _listened_s: float = 0.0

    def fetch(self, record: Record) -> bool:
        """Copies the guest's new events; True if it answered. Raises GuestError (`host-key-mismatch`)."""
        if self._fetcher is None:
            self._fetcher = Fetcher(self.machine, self.machine.endpoint(record))
        return self._fetcher.fetch()

    def answers(self, record: Record) -> bool:
        """Copies the guest's new events; False if it does not answer, or another machine answers."""
        with contextlib.suppress(KimboxError):
            return self.fetch(record)
        return False

    def listen(self, is_running: Callable[[], bool]) -> bool:
        """Copies the new events if it is time for that. False if the guest does not answer and does not run."""
        now_s = time.monotonic()
        if now_s - self._listened_s < self.interval_s:
            return True
        self._listened_s = now_s
        return self.fetch(self.machine.record()) or is_running()

    def forget(self) -> None:
        """Forgets the connection, because the machine has started again and may have another address."""
        self._fetcher = None
