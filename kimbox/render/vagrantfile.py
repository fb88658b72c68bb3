"""Renders the Vagrantfile of boxes that Vagrant runs.

The template at the top of the repository has only loops and quoted values: every value of a spec becomes a Ruby
literal, so that no spec can put code into the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.spec.model import FIRST_ORDINARY_PORT, Box, PackageImage

_MIB = 1 << 20

#: Added to a guest port below FIRST_ORDINARY_PORT if the spec does not choose the port of the host.
PORT_SHIFT = 10000

#: The last port.
LAST_PORT = 65535

#: The port of the host that Vagrant forwards to ssh, and the first port from which it takes another one
#: (`usable_port_range` of its plugin kernel_v2).
VAGRANT_SSH_PORT = 2222
VAGRANT_FIRST_PORT = 2200

#: Number of digits of the key of an image in the name of a Vagrant box.
KEY_DIGITS = 12

#: The private key of the boxes, in Vagrant's own folder beside the Vagrantfile.
KEY = ".vagrant/kimbox/id_ed25519"


@attrs.frozen
class Delivery:
    """How Vagrant provisions a box: an archive beside the Vagrantfile, the digest of its manifest, the boot mode."""

    archive: str
    digest: str
    boot: str


@attrs.frozen
class VagrantMachine:
    """A machine in a Vagrantfile."""

    box: Box
    #: The name of the image in Vagrant.
    vagrant_box: str
    #: From where Vagrant adds it if it is missing: a URL, or a path relative to the folder of the Vagrantfile.
    location: str | None = None
    #: `sha256:` and the hex digest of that file.
    digest: str | None = None
    #: None: the Vagrantfile does not provision the box.
    delivery: Delivery | None = None
    #: Ports that are allocated already: guest port -> host port.
    host_ports: Mapping[int, int] = attrs.field(factory=dict)
    #: Folder of the host -> its path relative to the folder of the Vagrantfile. A folder without one has its own path.
    locations: Mapping[Path, str] = attrs.field(factory=dict)


def ruby_literal(value: object) -> str:
    """Returns a text, whole number or boolean as a Ruby literal. In single quotes, Ruby reads only `\\` and `\\'`.

    Raises KimboxError for text that Ruby would change: control characters and lone surrogates.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} has no Ruby literal here")
    bad = next((c for c in value if (c < " " and c not in "\n\t") or c == "\x7f" or "\ud800" <= c <= "\udfff"), None)
    if bad is not None:
        message = f"{value!r} contains the character {bad!r}, which a Vagrantfile cannot have"
        raise KimboxError(message, code="forbidden-character")
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def as_file(path: str) -> str:
    """Returns a path for Ruby's File.expand_path, which would read a leading `~x` as the home folder of a user."""
    return f"./{path}" if path.startswith("~") else path


def box_name(name: str, image: str, prefix: str = "kimbox-") -> str:
    """Returns the name of the image of a box in Vagrant. Each image has a name of its own, so that both can exist.

    vagrant-libvirt gives that name to a volume of the host, which all users share: a `prefix` of its own keeps it apart
    from volumes of others.
    """
    return f"{prefix}{name}-{image[:KEY_DIGITS]}"


def is_url(location: str) -> bool:
    """Whether a location is a URL, and not a path."""
    return "://" in location


def render_vagrantfile(machines: Iterable[VagrantMachine], *, key: str = KEY, prefix: str | None = None) -> str:
    """Returns the Vagrantfile of these machines, for libvirt and VirtualBox. Equal arguments give equal bytes.

    `key` is the private key for logins, a path relative to the folder of the file; the Vagrantfile creates it if it is
    missing. `prefix` is at the start of the names of domains, volumes and machines; None: the name of the folder. For a
    forwarded port without a fixed port of the host, Vagrant tries a default and then the next free port.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - this is Ruby: the filter `ruby` quotes, and a test checks each expression
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["ruby"] = ruby_literal
    template = environment.from_string((paths.data_dir() / "Vagrantfile.j2").read_text(encoding="utf-8"))
    return template.render(
        key=as_file(key),
        machines=[_values(machine) for machine in machines],
        prefixes=[] if prefix is None else [prefix],
    )


def _values(machine: VagrantMachine) -> dict[str, Any]:
    """Returns the values of a machine for the template. An optional value is a list with at most one item."""
    box, location = machine.box, machine.location
    return {
        "name": box.name,
        "vagrant_box": machine.vagrant_box,
        "box_urls": [location] if location is not None and is_url(location) else [],
        "box_files": [as_file(location)] if location is not None and not is_url(location) else [],
        "box_digests": [machine.digest.removeprefix("sha256:")] if machine.digest is not None else [],
        "guest": box.image.distribution if isinstance(box.image, PackageImage) else "linux",
        "cpus": box.cpus,
        "memory_mib": -(-box.memory_bytes // _MIB),
        **_ports(box, machine.host_ports),
        "scratches": [{"mount": box.scratch.mount, "size": f"{-(-box.scratch.size_bytes // _MIB)}M"}]
        if box.scratch
        else [],
        **_mounts(machine),
        "deliveries": [attrs.asdict(machine.delivery) | {"archive": as_file(machine.delivery.archive)}]
        if machine.delivery
        else [],
    }


def _mounts(machine: VagrantMachine) -> dict[str, list[Any]]:
    """Returns the folders of the host. `readonly`: libvirt exports them so, if it can."""
    values: dict[str, list[Any]] = {"writable": [], "readonly": []}
    for mount in machine.box.mounts:
        location = as_file(machine.locations.get(mount.location, str(mount.location)))
        values["writable" if mount.writable else "readonly"].append({"location": location, "at": mount.mount_point})
    return values | {"shared_memory": [{}] if machine.box.mounts else []}


def _ports(box: Box, host_ports: Mapping[int, int]) -> dict[str, list[Any]]:
    """Returns the forwards of a box, each with another port of the host, and the port of the host for Vagrant's ssh.

    Vagrant forwards VAGRANT_SSH_PORT to ssh itself, and refuses a Vagrantfile that names a port of the host twice. If
    the box uses that port, ssh gets the first free one from VAGRANT_FIRST_PORT on. Else the list of its port is empty.
    """
    fixed = {forward.guest: host_ports.get(forward.guest, forward.host) for forward in box.forwards}
    used = {host for host in fixed.values() if host is not None}
    forwards = []
    for guest, host in fixed.items():
        port = host
        if port is None:
            port = guest if guest >= FIRST_ORDINARY_PORT else guest + PORT_SHIFT
            while port in used:
                port = port + 1 if port < LAST_PORT else FIRST_ORDINARY_PORT
            used.add(port)
        forwards.append({"guest": guest, "host": port, "open": host is None})
    free = (port for port in range(VAGRANT_FIRST_PORT, LAST_PORT + 1) if port not in used)
    return {"forwards": forwards, "ssh_ports": [next(free)] if VAGRANT_SSH_PORT in used else []}
