"""Box -> Vagrantfile, for those who drive the box with Vagrant.

The template at the top of the repository has loops and quoted values only: whatever a spec says ends up inside a
Ruby literal, so that no spec can put code into the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.spec.model import Box

_MIB = 1 << 20

#: A host may refuse an ordinary user the ports below this one.
FIRST_ORDINARY_PORT = 1024

#: Added to a guest port below FIRST_ORDINARY_PORT where the spec leaves the host's port open.
PORT_SHIFT = 10000


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


def render_vagrantfile(box: Box, *, vagrant_box: str, host_ports: Mapping[int, int] | None = None) -> str:
    """The Vagrantfile of `box`, for libvirt and VirtualBox.

    `vagrant_box` is the name under which Vagrant knows the image. `host_ports` (guest port -> host port) are ports
    already allotted; where a port is open, Vagrant starts from a likely one and moves on when it is taken.
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
        name=box.name,
        vagrant_box=vagrant_box,
        cpus=box.cpus,
        memory_mib=-(-box.memory_bytes // _MIB),
        forwards=_forwards(box, host_ports or {}),
    )


def _forwards(box: Box, host_ports: Mapping[int, int]) -> list[dict[str, Any]]:
    forwards = []
    for forward in box.forwards:
        fixed = host_ports.get(forward.guest, forward.host)
        likely = forward.guest if forward.guest >= FIRST_ORDINARY_PORT else forward.guest + PORT_SHIFT
        forwards.append({"guest": forward.guest, "host": fixed or likely, "open": fixed is None})
    return forwards
