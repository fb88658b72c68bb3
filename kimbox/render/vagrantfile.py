"""Box -> Vagrantfile, for those who drive boxes with Vagrant.

The template at the top of the repository has loops and quoted values only: whatever a spec says ends up inside a
Ruby literal, so that no spec can put code into the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.spec.model import Box, PackageImage

_MIB = 1 << 20

#: A host may refuse an ordinary user the ports below this one.
FIRST_ORDINARY_PORT = 1024

#: Added to a guest port below FIRST_ORDINARY_PORT where the spec leaves the host's port open.
PORT_SHIFT = 10000

#: So many digits of an image's key tell it from others among Vagrant's boxes.
KEY_DIGITS = 12

#: Where Vagrant keeps what belongs to a folder alone, and with it the key of its boxes.
KEY = ".vagrant/kimbox/id_ed25519"


@attrs.frozen
class Delivery:
    """What provisions a box: an archive beside the Vagrantfile, the digest of the manifest in it, and the boot mode."""

    archive: str
    digest: str
    boot: str


@attrs.frozen
class VagrantMachine:
    """One machine of a Vagrantfile."""

    box: Box
    #: The name under which Vagrant knows the image.
    vagrant_box: str
    #: Where Vagrant finds it where it does not know it yet: a URL, or a path from the Vagrantfile's folder on.
    location: str | None = None
    #: `sha256:` and the digest of the file there.
    digest: str | None = None
    #: None: somebody else provisions the box.
    delivery: Delivery | None = None
    #: Ports already allotted: guest port -> host port.
    host_ports: Mapping[int, int] = attrs.field(factory=dict)


def ruby_literal(value: object) -> str:
    """A text, whole number or boolean as a Ruby literal. Text is single-quoted, where Ruby reads only `\\` and `\\'`.

    Raises KimboxError for text that Ruby would not read back as it is: control characters and lone surrogates.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} has no Ruby literal here")
    bad = next((c for c in value if (c < " " and c not in "\n\t") or c == "\x7f" or "\ud800" <= c <= "\udfff"), None)
    if bad is not None:
        raise KimboxError(f"{value!r} holds the character {bad!r}, which a Vagrantfile cannot hold")
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def as_file(path: str) -> str:
    """A path as Ruby's File.expand_path takes it: `~x` is a file of that name, and nobody's home."""
    return f"./{path}" if path.startswith("~") else path


def box_name(name: str, image: str, prefix: str = "kimbox-") -> str:
    """The name that Vagrant has for the image of a box: another image has another name, and both may be there.

    The volume that Vagrant makes of it in libvirt bears that name, whichever user or home it is of: with a `prefix` of
    its own, nobody else's is taken for it.
    """
    return f"{prefix}{name}-{image[:KEY_DIGITS]}"


def is_url(location: str) -> bool:
    """Whether a place is a URL, and not a path."""
    return "://" in location


def render_vagrantfile(machines: Iterable[VagrantMachine], *, key: str = KEY, prefix: str | None = None) -> str:
    """The Vagrantfile of these machines, for libvirt and VirtualBox; the same bytes whenever and wherever.

    `key` is the private key that may log in, a path from the file's folder on; the file makes it where it is missing.
    `prefix` stands before the names of domains, volumes and machines, in place of the folder's name. Where a forwarded
    port is open, Vagrant starts from a likely one and moves on when it is taken.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - this is Ruby: `ruby` does the quoting, and a test holds every value to it
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
    """What the template asks of a machine; what may be missing is a list of one or none."""
    box, place = machine.box, machine.location
    return {
        "name": box.name,
        "vagrant_box": machine.vagrant_box,
        "box_urls": [place] if place is not None and is_url(place) else [],
        "box_files": [as_file(place)] if place is not None and not is_url(place) else [],
        "box_digests": [machine.digest.removeprefix("sha256:")] if machine.digest is not None else [],
        "guest": box.image.distribution if isinstance(box.image, PackageImage) else "linux",
        "cpus": box.cpus,
        "memory_mib": -(-box.memory_bytes // _MIB),
        "forwards": _forwards(box, machine.host_ports),
        "scratches": [{"mount": box.scratch.mount, "size": f"{-(-box.scratch.size_bytes // _MIB)}M"}]
        if box.scratch
        else [],
        "deliveries": [attrs.asdict(machine.delivery) | {"archive": as_file(machine.delivery.archive)}]
        if machine.delivery
        else [],
    }


def _forwards(box: Box, host_ports: Mapping[int, int]) -> list[dict[str, Any]]:
    forwards = []
    for forward in box.forwards:
        fixed = host_ports.get(forward.guest, forward.host)
        likely = forward.guest if forward.guest >= FIRST_ORDINARY_PORT else forward.guest + PORT_SHIFT
        forwards.append({"guest": forward.guest, "host": fixed or likely, "open": fixed is None})
    return forwards
