"""The identity of a clone: what makes it another machine than its template, as the line that the guest gets.

The guest applies it before any of its processes runs (provisioners/freeze/root/usr/lib/kimbox/freeze). The line comes
through a port of the guest: no command line and no file of the guest has the private key in it before.
"""

from __future__ import annotations

import secrets
import time
import uuid

import attrs

#: Number of random bytes for the random generator of the guest's kernel, all of them credited as entropy.
SEED_BYTES = 64


@attrs.frozen
class Identity:
    """The identity of one clone."""

    #: Host name.
    name: str
    #: UUID of the machine. Without its hyphens it is the machine-id.
    uuid: str
    #: ssh host key: the contents of the private key file and of the .pub file, which ends with a line break.
    host_key: str = attrs.field(repr=False)
    host_public: str
    #: The public key that may log in.
    authorized_key: str
    #: What the guest gets of the job that it is to run (`JobStart.credential`); empty: it runs none.
    job: str = ""
    boot_id: str = attrs.field(factory=lambda: str(uuid.uuid4()))

    def line(self) -> bytes:
        """Returns the line for the guest, with the present time and a fresh seed: words KEY=VALUE, the value in hex."""
        values = {name: value.encode() for name, value in attrs.asdict(self).items() if value}
        values["seed"] = secrets.token_bytes(SEED_BYTES)
        values["wall_ns"] = str(time.time_ns()).encode()
        return " ".join(f"{name}={value.hex()}" for name, value in values.items()).encode() + b"\n"
