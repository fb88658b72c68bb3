"""The record of a machine, machine.json: its box, plan, driver and purpose, and the ports and ids assigned to it."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox.errors import KimboxError
from kimbox.spec.model import Display, Mount, Network, Scratch

#: Version of machine.json that kimbox writes. kimbox also reads version 1, which has no box, purpose, driver and plan.
FORMAT = 2
FORMATS = (1, FORMAT)

#: Suffix of the name of a maintenance machine, after the name of its box.
MAINTENANCE_SUFFIX = "-maintain"

#: Name of a file in the folder of a machine that Vagrant runs.
VAGRANTFILE = "Vagrantfile"

#: Name of a file in the folder of a machine that is an instance in a cloud.
CLOUD_FILE = "cloud.json"

#: Matches the key `name` of the box in the text of a spec.
_NAME_KEY = re.compile(r"""^["']?name["']?\s*:\s*["']?([a-z0-9.-]+)""", re.MULTILINE)

#: A sha256 digest in hex.
_DIGEST = re.compile(r"[0-9a-f]{64}")

#: The name of a box or a network. File names have it.
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

#: The id of an instance: of cloud-init, or of a cloud.
_INSTANCE = re.compile(r"[A-Za-z0-9-]{1,64}")


class Purpose(StrEnum):
    """The purpose of a machine."""

    BOX = "box"  #: users work in it
    MAINTENANCE = "maintenance"  #: `kimbox maintain` changes the base of the box in it
    CLONE = "clone"  #: a copy of a template of the box
    JOB = "job"  #: one job runs in it
    SWEEP = "sweep"  #: one of the jobs of a sweep runs in it: it is not kept, and nobody else uses it


class GuestKind(StrEnum):
    """The kind of a guest, as the first `up` found it out: it asks the guest, not the image."""

    KIMBOX = "kimbox"  #: it reports to this host by itself
    CLOUD_INIT = "cloud-init"  #: cloud-init has set it up, and kimbox has installed its programs in it over ssh


class Ended(StrEnum):
    """How kimbox ended the last run of a machine."""

    NEW = "new"  #: the machine has never run
    HALTED = "halted"  #: the guest was shut down or powered off
    SUSPENDED = "suspended"  #: its memory is saved, and it can resume


@attrs.frozen
class Sealed:
    """The role and site of a sealed box."""

    role: str
    site: str


@attrs.frozen
class Known:
    """What this host knows of the volume `persistent` of a sealed box: the box uses nothing else of it as a program."""

    #: Digests of its manifests: the newest first. It has the one that was last ready.
    manifests: tuple[str, ...]
    #: sha256 hex digest of the list of the files in its caches; empty: the box did not report one.
    caches: str


@attrs.frozen
class PutBack:
    """The last time at which the host put the disk of a sealed box back to its image."""

    #: In UTC, by the clock of the host, as 2026-01-31T12:00:00Z.
    at: str
    #: Names of the parts of the disk that the run before had changed, and paths of /boot. Empty: none, or not known.
    changed: tuple[str, ...]


@attrs.frozen
class LastSave:
    """The last save of a machine, or the one that it was made of. `at` is in UTC, as in PutBack."""

    #: The store, without user name and password.
    url: str
    number: int
    at: str


@attrs.frozen
class PlanDigests:
    """The sha256 hex digests of the plan that a machine was created from. Later starts do not change them."""

    spec: str
    lock: str
    manifest: str


@attrs.frozen
class Record:
    """The content of machine.json."""

    name: str
    #: Path of the spec. The path of a shipped box may change with each version of kimbox.
    source: str
    #: Name of the shipped box; None: the box is not shipped with kimbox.
    shipped: str | None
    spec_digest: str
    image: str
    uuid: str
    mac: str
    ssh_port: int
    #: Guest port -> port on 127.0.0.1 of the host.
    forwards: dict[int, int]
    #: How kimbox ended the last run. None: the machine runs, or the run ended without kimbox.
    ended: Ended | None = Ended.NEW
    #: Values of the last start. A saved state resumes only with the same values.
    cpus: int | None = None
    memory_bytes: int | None = None
    scratch: Scratch | None = None
    #: Whether the last start had a disk with a delivery. A saved state has the device, too.
    delivery_disk: bool = False
    #: Whether the last boot had the port that shuts the guest down. A saved state has the device, too.
    halt_port: bool = False
    #: Timeout of the watchdog of the last start, in seconds; None: it had none. A saved state has the device, too. Only
    #: the driver qemu gives a machine one.
    watchdog_s: int | None = None
    #: The folders of the host of the last start. A saved state has a slot for each, without the device.
    mounts: tuple[Mount, ...] = ()
    #: Address of the ssh server, whose port is `ssh_port`.
    ssh_host: str = "127.0.0.1"
    #: Role and site, which the guest reports at each boot. None: the box is not sealed.
    sealed: Sealed | None = None
    #: None: the box is not sealed, or an older kimbox has sealed it.
    known: Known | None = None
    #: None: the box is not sealed, or has not been started since it was.
    put_back: PutBack | None = None
    #: None: the machine was never saved.
    saved: LastSave | None = None
    #: Name of the box that the machine belongs to. One box may have several machines.
    box: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    purpose: Purpose = Purpose.BOX
    #: Name of the driver.
    driver: str = "qemu"
    #: None: the machine was created by a version of kimbox that did not record the plan.
    plan: PlanDigests | None = None
    #: Key of the template that a clone was made from; its disk is below that of the clone. None: it is no clone.
    template: str | None = None
    #: Whether the last run continued the template instead of booting. A saved state has the devices of the template.
    woken: bool = False
    #: The values of the spec that `--set` has changed, as KEY=VALUE.
    settings: tuple[str, ...] = ()
    #: Name and version of each package that `kimbox up --install` has brought into the box since it has its image.
    installed: tuple[str, ...] = ()
    #: Size to which kimbox has grown the disk, in bytes. None: it has the size with which it was made.
    disk_bytes: int | None = None
    #: Names of the secret variables that the last start gave to the guest.
    secrets: tuple[str, ...] = ()
    #: Id of the instance on the disk that cloud-init reads, at the last boot. None: kimbox built the image, and the
    #: guest has no such disk. A saved state has the device, too.
    seed: str | None = None
    #: None: kimbox built the image, or `up` has not found out yet.
    guest: GuestKind | None = None
    #: The networks of the last start. A saved state has their cards, too.
    networks: tuple[Network, ...] = ()
    #: Whether each port on which a program of the guest listens is forwarded, by the spec of the last start.
    auto_forwards: bool = False
    #: The screen of the last start. A saved state has the device, too.
    display: Display | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the content of machine.json."""
        plain = attrs.asdict(self)
        plain["mounts"] = [attrs.asdict(mount) | {"location": str(mount.location)} for mount in self.mounts]
        plain["forwards"] = {str(guest): host for guest, host in self.forwards.items()}
        return {"format": FORMAT} | plain

    @classmethod
    def parse(cls, value: dict[str, Any], path: Path) -> Self:
        """Parses the content of machine.json; `path` is that file.

        Raises KimboxError: `unsupported-format`, or `file-damaged` if a field is missing or has an invalid value.
        """
        try:
            if value["format"] not in FORMATS:
                raise KimboxError(
                    f"{path} has format {value['format']!r}; this version reads 1 to {FORMAT}",
                    code="unsupported-format",
                    hint="use the version of kimbox that created the machine, or remove it with `kimbox destroy`",
                    fields={"path": str(path), "format": str(value["format"])},
                )
            if value["format"] == 1:
                value = value | _added_since_format_1(value, path)
            fields = {f.name: value[f.name] for f in attrs.fields(cls) if f.name in value}
            for key in ("name", "source", "spec_digest", "image", "uuid", "mac", "box", "driver"):
                if not isinstance(fields[key], str):
                    raise ValueError(f"{key} is not a text")
            fields["ssh_port"] = _port(fields["ssh_port"])
            fields["forwards"] = {_port(int(guest)): _port(host) for guest, host in value["forwards"].items()}
            fields["ended"] = Ended(fields["ended"]) if fields["ended"] is not None else None
            fields["scratch"] = _scratch(fields.get("scratch"))
            fields["mounts"] = tuple(map(_mount, fields.get("mounts", ())))
            fields["delivery_disk"] = fields.get("delivery_disk") is True
            fields["halt_port"] = fields.get("halt_port") is True
            fields["watchdog_s"] = _watchdog(fields.get("watchdog_s"))
            fields["sealed"] = _sealed(fields.get("sealed"))
            fields["known"] = _known(fields.get("known"))
            fields["put_back"] = _put_back(fields.get("put_back"))
            fields["saved"] = _last_save(fields.get("saved"))
            fields["purpose"] = Purpose(fields["purpose"])
            fields["template"] = _template(fields.get("template"))
            fields["woken"] = fields.get("woken") is True
            fields["settings"] = _texts(fields.get("settings", []))
            fields["installed"] = _texts(fields.get("installed", []))
            fields["secrets"] = _texts(fields.get("secrets", []))
            fields["disk_bytes"] = _size(fields.get("disk_bytes"))
            fields["seed"] = _seed(fields.get("seed"))
            fields["guest"] = GuestKind(fields["guest"]) if fields.get("guest") is not None else None
            fields["display"] = Display(fields["display"]) if fields.get("display") is not None else None
            fields["auto_forwards"] = fields.get("auto_forwards") is True
            fields["networks"] = tuple(map(_network, fields.get("networks", [])))
            fields["plan"] = _plan(fields["plan"])
            fields["ssh_host"] = str(ipaddress.ip_address(fields.get("ssh_host", "127.0.0.1")))
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise KimboxError(
                f"{path} is damaged: {problem}",
                code="file-damaged",
                hint=f"`kimbox destroy {path.parent.name}` removes the machine",
                fields={"path": str(path)},
            ) from None


def _added_since_format_1(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the fields that a record of format 1 lacks, from its name, its spec and its folder."""
    name, shipped = value["name"], value.get("shipped")
    box, purpose = name, Purpose.BOX
    if name.endswith(MAINTENANCE_SUFFIX) and name != shipped and not _is_named(Path(value["source"]), name):
        box, purpose = name.removesuffix(MAINTENANCE_SUFFIX), Purpose.MAINTENANCE
    driver = "vagrant" if (path.parent / VAGRANTFILE).exists() else "qemu"
    return {"box": box, "purpose": purpose, "driver": driver, "plan": None}


def _is_named(source: Path, name: str) -> bool:
    """Whether a spec gives its box this name. Searches the text: a YAML parser would slow down `kimbox list`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return name in _NAME_KEY.findall(source.read_text())
    return False


def _known(value: Any) -> Known | None:
    if value is None:
        return None
    digests = [*value["manifests"], *([value["caches"]] if value["caches"] else [])]
    if all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
        return Known(tuple(value["manifests"]), value["caches"])
    raise ValueError(f"{value!r} is not what is known of a sealed box")


def _put_back(value: Any) -> PutBack | None:
    if value is None:
        return None
    if isinstance(value["at"], str) and all(isinstance(part, str) for part in value["changed"]):
        return PutBack(value["at"], tuple(value["changed"]))
    raise ValueError(f"{value!r} is not a time at which a disk was put back")


def _last_save(value: Any) -> LastSave | None:
    if value is None:
        return None
    if isinstance(value["url"], str) and isinstance(value["number"], int) and isinstance(value["at"], str):
        return LastSave(value["url"], value["number"], value["at"])
    raise ValueError(f"{value!r} is not a save")


def _plan(value: Any) -> PlanDigests | None:
    if value is None:
        return None
    if all(isinstance(value[key], str) for key in ("spec", "lock", "manifest")):
        return PlanDigests(value["spec"], value["lock"], value["manifest"])
    raise ValueError(f"{value!r} is not a plan")


def _template(value: object) -> str | None:
    if value is None or (isinstance(value, str) and _DIGEST.fullmatch(value)):
        return value
    raise ValueError(f"{value!r} is not the key of a template")


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise ValueError(f"{value!r} is not a list of texts")


def _network(value: Any) -> Network:
    subnet = ipaddress.IPv4Network(value["subnet"])
    addresses = tuple((name, str(ipaddress.IPv4Address(address))) for name, address in value["addresses"])
    if not all(isinstance(text, str) and _LABEL.fullmatch(text) for text in (value["name"], *dict(addresses))):
        raise ValueError(f"{value!r} is not a network")
    return Network(value["name"], str(subnet), addresses)


def _seed(value: object) -> str | None:
    if value is None or (isinstance(value, str) and _INSTANCE.fullmatch(value)):
        return value
    raise ValueError(f"{value!r} is not the id of an instance")


def _watchdog(value: object) -> int | None:
    if value is None or (isinstance(value, int) and value > 0):
        return value
    raise ValueError(f"{value!r} is not the timeout of a watchdog")


def _size(value: object) -> int | None:
    if value is None or (isinstance(value, int) and value > 0):
        return value
    raise ValueError(f"{value!r} is not the size of a disk")


def _port(value: object) -> int:
    if isinstance(value, int) and 0 < value < 1 << 16:
        return value
    raise ValueError(f"{value!r} is not a port")


def _sealed(value: Any) -> Sealed | None:
    if value is None:
        return None
    if all(isinstance(value[key], str) for key in ("role", "site")):
        return Sealed(value["role"], value["site"])
    raise ValueError(f"{value!r} is not a role")


def _scratch(value: Any) -> Scratch | None:
    if value is None:
        return None
    if isinstance(value["size_bytes"], int) and isinstance(value["mount"], str):
        return Scratch(value["size_bytes"], value["mount"])
    raise ValueError(f"{value!r} is not a scratch space")


def _mount(value: Any) -> Mount:
    location, point = value["location"], value["mount_point"]
    if isinstance(location, str) and isinstance(point, str) and Path(location).is_absolute():
        return Mount(Path(location), point, writable=value["writable"] is True)
    raise ValueError(f"{value!r} is not a folder of the host")
