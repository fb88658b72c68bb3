"""Brings what a guest without a port to the host has told and written into the machine's folder, over ssh.

The guest keeps its events in a file on /persistent, and the output of its provisioning in another. Both are copied from
where the last copy ended, to the files that QEMU would write. A file that is another one now, or shorter than before
(the box went back to a snapshot), is copied anew.
"""

from __future__ import annotations

import base64
import re
import shlex
from pathlib import Path

import attrs

from kimbox.errors import GuestError, KimboxError
from kimbox.files import locked, read_json, write_json
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Guest
from kimbox.machine.folder import Machine

#: Where the guest has them (events.sh, provisiond).
EVENTS = "/persistent/log/events.jsonl"
OUTPUT = "/persistent/log/provision.log"

#: No more of one file comes at a time.
PIECE_BYTES = 4 << 20

#: Connecting to a guest that may be gone, and each copy, may take this long.
CONNECT_TIMEOUT_S = 20.0
COPY_TIMEOUT_S = 30.0

#: Which file it is and from where on it is copied, on a line of its own, then what is new, in base64; its arguments are
#: the file, and inode and size of the last copy.
SCRIPT = f"""\
f=$1 inode=$2 at=$3
set -- $(stat -c "%i %s" "$f")
if [ "$1" != "$inode" ] || [ "$2" -lt "$at" ]; then at=0; fi
echo "$1 $at"
tail -c "+$((at + 1))" "$f" | head -c {PIECE_BYTES} | base64 -w 0
"""

_HEAD = re.compile(r"(\d{1,19}) (\d{1,19})\n")


def places_file(machine: Machine) -> Path:
    """What of which file of the guest was copied last."""
    return machine.folder / "fetched.json"


def forget(machine: Machine) -> None:
    """Removes what the guest of a former disk has told: on a new one the same files may have the same inodes."""
    for file in (machine.events_file, machine.provision_log, places_file(machine)):
        file.unlink(missing_ok=True)


@attrs.define
class Fetcher:
    """A connection to a guest that is kept from one look to the next."""

    machine: Machine
    endpoint: Endpoint
    _guest: Guest | None = None

    def fetch(self) -> bool:
        """Copies what is new. True if the guest answered as it should.

        Raises GuestError if another machine answers in its place.
        """
        try:
            if self._guest is None:
                self._guest = Guest(self.endpoint, timeout_s=CONNECT_TIMEOUT_S).__enter__()
            file = places_file(self.machine)
            with locked(file.with_suffix(".lock"), wait_s=COPY_TIMEOUT_S):  # `status` looks while `up` does
                places = self._places()
                self._copy(EVENTS, self.machine.events_file, places)
                self._copy(OUTPUT, self.machine.provision_log, places)
                write_json(file, places)
        except GuestError as error:
            self.close()
            if error.code == "host-key-mismatch":
                raise
            return False
        return True

    def close(self) -> None:
        """Ends the connection."""
        if self._guest is not None:
            self._guest.__exit__(None, None, None)
            self._guest = None

    def _places(self) -> dict[str, int]:
        """Inodes of the guest's files, as they were copied last."""
        try:
            return {str(key): int(value) for key, value in read_json(places_file(self.machine)).items()}
        except (OSError, KimboxError, TypeError, ValueError):
            return {}

    def _copy(self, remote: str, local: Path, places: dict[str, int]) -> None:
        assert self._guest is not None  # noqa: S101 - for the type checker
        size = local.stat().st_size if local.exists() else 0
        words = f"{remote} {places.get(remote, 0)} {size}"
        answer = self._guest.run(f"sh -ec {shlex.quote(SCRIPT)} sh {words}", timeout_s=COPY_TIMEOUT_S)
        head = _HEAD.match(answer.stdout)
        if answer.code != 0 or not head:  # it has not written it yet
            return
        inode, at = map(int, head.groups())
        try:
            data = base64.b64decode(answer.stdout[head.end() :], validate=True)
        except ValueError:
            data = None
        if data is None or len(data) > PIECE_BYTES or at not in (0, size):
            raise GuestError(f"{self.machine.name} sends something else than its {remote}")
        with local.open("r+b" if local.exists() else "wb") as file:
            file.truncate(at)
            file.seek(at)
            file.write(data)
        places[remote] = inode
