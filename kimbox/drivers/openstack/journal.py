"""The journal of a machine in a cloud: what kimbox creates there for it, written before it is created.

Everything has the name in the journal, so that after an interruption the next run finds it, whether it was created or
not. A part of the name is random: another host may use the same project for a machine of the same name.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import attrs

from kimbox.errors import KimboxError
from kimbox.files import read_json, write_json
from kimbox.machine.folder import Machine
from kimbox.machine.record import CLOUD_FILE
from kimbox.spec.model import INSTANCE_TIMEOUT_S

#: Number of random bytes in a name.
NAME_BYTES = 4

#: Kinds of what is created. A snapshot is followed by its name, as `snapshot:NAME`.
KEY, SERVER, ADDRESS, SNAPSHOT = "key", "server", "address", "snapshot:"


@attrs.frozen
class Journal:
    """The journal of one machine."""

    file: Path
    #: The name in the cloud of everything that belongs to the machine.
    name: str
    #: Name of the cloud in clouds.yaml; None: that of the variables OS_*.
    cloud: str | None
    made: tuple[str, ...] = ()
    #: Ids of the external network and of the floating address in it; None: the machine has none.
    outside: str | None = None
    address: str | None = None
    #: Kind of the last request; None: the cloud has answered it.
    asked: str | None = None
    #: Limit on each wait for the cloud, in seconds: that of the spec at the last start.
    timeout_s: int = INSTANCE_TIMEOUT_S

    @classmethod
    def read(cls, machine: Machine) -> Journal:
        """Reads the journal. Raises KimboxError (`file-damaged`) if it is damaged. OSError passes."""
        file = machine.folder / CLOUD_FILE
        value = read_json(file)
        name, cloud, made = value.get("name"), value.get("cloud"), value.get("made")
        outside, address, asked = value.get("outside"), value.get("address"), value.get("asked")
        timeout_s = value.get("timeout_s", INSTANCE_TIMEOUT_S)
        texts = [name, *(text for text in (cloud, outside, address, asked) if text is not None)]
        are_texts = isinstance(made, list) and all(isinstance(text, str) for text in [*texts, *made])
        if made is None or not are_texts or type(timeout_s) is not int or timeout_s < 0:
            raise KimboxError(
                f"{file} is damaged",
                code="file-damaged",
                hint=f"remove what is named kimbox-{machine.name}-... from the cloud by hand, then the file",
                fields={"path": str(file)},
            )
        return cls(file, str(name), cloud, tuple(made), outside, address, asked, timeout_s)

    @classmethod
    def new(cls, file: Path, name: str, cloud: str | None) -> Journal:
        """Writes the journal of a new machine."""
        return cls(file, f"kimbox-{name}-{secrets.token_hex(NAME_BYTES)}", cloud).write()

    def limited_to(self, timeout_s: int) -> Journal:
        """Writes the limit on each wait, in seconds, unless it is there."""
        return self if timeout_s == self.timeout_s else attrs.evolve(self, timeout_s=timeout_s).write()

    def write(self) -> Journal:
        """Writes the journal, and returns it."""
        value: dict[str, Any] = {"name": self.name, "cloud": self.cloud, "made": list(self.made)}
        value |= {"outside": self.outside, "address": self.address, "asked": self.asked, "timeout_s": self.timeout_s}
        write_json(self.file, value)
        return self

    def adding(self, kind: str, *, is_asked: bool = False) -> Journal:
        """Writes that something of a kind will be created. With `is_asked`, `answered` says later that it was."""
        made = tuple(dict.fromkeys([*self.made, kind]))
        return attrs.evolve(self, made=made, asked=kind if is_asked else None).write()

    def answered(self) -> Journal:
        """Writes that the cloud has answered the last request."""
        return attrs.evolve(self, asked=None).write()

    def without(self, kind: str) -> Journal:
        """Writes that nothing of a kind is left."""
        return attrs.evolve(self, made=tuple(other for other in self.made if other != kind)).write()

    @property
    def snapshots(self) -> list[str]:
        """The names of the snapshots."""
        return [kind.removeprefix(SNAPSHOT) for kind in self.made if kind.startswith(SNAPSHOT)]
