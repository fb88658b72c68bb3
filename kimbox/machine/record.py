"""The record of a machine, machine.json: which box, plan, driver and purpose it has, and what was allotted to it."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox.errors import KimboxError
from kimbox.spec.model import Scratch

#: Version of machine.json that is written. Version 1 is read, too: it had neither box nor purpose, driver and plan.
FORMAT = 2
FORMATS = (1, FORMAT)

#: What follows the name of a box in the name of the machine in which its base is changed.
MAINTENANCE_SUFFIX = "-maintain"

#: Name of the file that a machine of the driver `vagrant` has, beside its record.
VAGRANTFILE = "Vagrantfile"


#: The name of a box in the text of its spec.
_NAME_KEY = re.compile(r"""^["']?name["']?\s*:\s*["']?([a-z0-9.-]+)""", re.MULTILINE)


class Purpose(StrEnum):
    """What a machine of a box is for."""

    BOX = "box"  #: it is the box that its users work in
    MAINTENANCE = "maintenance"  #: the base of the box is changed in it (`kimbox maintain`)
    CLONE = "clone"  #: a copy of a template of the box
    JOB = "job"  #: one job runs in it


class Ended(StrEnum):
    """How kimbox ended the last run of a machine."""

    NEW = "new"  #: it has never run
    HALTED = "halted"  #: it was halted
    SUSPENDED = "suspended"  #: its state lies in the disk, as the snapshot SUSPENDED_TAG


@attrs.frozen
class Sealed:
    """The role that a box took when it was secured."""

    role: str
    site: str


@attrs.frozen
class PlanDigests:
    """The plan that a machine was made from, as sha256 hex digests. Later starts do not change it."""

    spec: str
    lock: str
    manifest: str


@attrs.frozen
class Record:
    """machine.json: what a machine was made from, and what was allotted to it."""

    name: str
    #: The spec's file; for a shipped box its path today.
    source: str
    #: Name of the shipped box, if it is one.
    shipped: str | None
    spec_digest: str
    image: str
    uuid: str
    mac: str
    ssh_port: int
    #: Guest port -> port on 127.0.0.1 of the host.
    forwards: dict[int, int]
    #: How kimbox ended the last run; None while there is one, or if it ended by itself.
    ended: Ended | None = Ended.NEW
    #: What the last run was started with: a saved state wakes only in a machine of the same shape.
    cpus: int | None = None
    memory_bytes: int | None = None
    scratch: Scratch | None = None
    #: Where ssh reaches it, at `ssh_port`.
    ssh_host: str = "127.0.0.1"
    #: The role that it took when it was secured, as the guest reports at each boot; None: it was not secured.
    sealed: Sealed | None = None
    #: Name of the box that the machine belongs to. One box may have several machines.
    box: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    purpose: Purpose = Purpose.BOX
    #: Name of the driver that runs it.
    driver: str = "qemu"
    #: None: it was made by a kimbox that did not record it.
    plan: PlanDigests | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in machine.json."""
        plain = attrs.asdict(self)
        plain["forwards"] = {str(guest): host for guest, host in self.forwards.items()}
        return {"format": FORMAT} | plain

    @classmethod
    def parse(cls, value: dict[str, Any], path: Path) -> Self:
        """From machine.json. Raises KimboxError naming the file if it is not one."""
        try:
            if value["format"] not in FORMATS:
                hint = "use the kimbox that made the machine, or remove it with `kimbox destroy`"
                raise KimboxError(f"{path} has format {value['format']!r}; this kimbox reads {FORMAT}", hint=hint)
            if value["format"] == 1:
                value = value | _added_since_format_1(value, path)
            fields = {f.name: value[f.name] for f in attrs.fields(cls) if f.name in value}
            for key in ("name", "source", "spec_digest", "image", "uuid", "mac", "box", "driver"):
                if not isinstance(fields[key], str):
                    raise ValueError(f"{key} is no text")
            fields["ssh_port"] = _port(fields["ssh_port"])
            fields["forwards"] = {_port(int(guest)): _port(host) for guest, host in value["forwards"].items()}
            fields["ended"] = Ended(fields["ended"]) if fields["ended"] is not None else None
            fields["scratch"] = _scratch(fields.get("scratch"))
            fields["sealed"] = _sealed(fields.get("sealed"))
            fields["purpose"] = Purpose(fields["purpose"])
            fields["plan"] = _plan(fields["plan"])
            fields["ssh_host"] = str(ipaddress.ip_address(fields.get("ssh_host", "127.0.0.1")))
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            hint = "`kimbox destroy` removes the machine"
            raise KimboxError(f"{path} is damaged: {what}", hint=hint) from None


def _added_since_format_1(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields that a record of format 1 lacks, from its name, its spec and the folder that it lies in."""
    name, shipped = value["name"], value.get("shipped")
    box, purpose = name, Purpose.BOX
    if name.endswith(MAINTENANCE_SUFFIX) and name != shipped and not _is_named(Path(value["source"]), name):
        box, purpose = name.removesuffix(MAINTENANCE_SUFFIX), Purpose.MAINTENANCE
    driver = "vagrant" if (path.parent / VAGRANTFILE).exists() else "qemu"
    return {"box": box, "purpose": purpose, "driver": driver, "plan": None}


def _is_named(source: Path, name: str) -> bool:
    """Whether a spec gives its box this name. The text is searched, as a YAML parser would slow down `kimbox list`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return name in _NAME_KEY.findall(source.read_text())
    return False


def _plan(value: Any) -> PlanDigests | None:
    if value is None:
        return None
    if all(isinstance(value[key], str) for key in ("spec", "lock", "manifest")):
        return PlanDigests(value["spec"], value["lock"], value["manifest"])
    raise ValueError(f"{value!r} is no plan")


def _port(value: object) -> int:
    if isinstance(value, int) and 0 < value < 1 << 16:
        return value
    raise ValueError(f"{value!r} is no port")


def _sealed(value: Any) -> Sealed | None:
    if value is None:
        return None
    if all(isinstance(value[key], str) for key in ("role", "site")):
        return Sealed(value["role"], value["site"])
    raise ValueError(f"{value!r} is no role")


def _scratch(value: Any) -> Scratch | None:
    if value is None:
        return None
    if isinstance(value["size_bytes"], int) and isinstance(value["mount"], str):
        return Scratch(value["size_bytes"], value["mount"])
    raise ValueError(f"{value!r} is no scratch space")
