"""Builds the folders of the host that a box shares."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from kimbox.spec import rules
from kimbox.spec.model import Mount
from kimbox.spec.nodes import Fault, shown
from kimbox.spec.reader import Reader
from kimbox.spec.repositories import refuse_overlap

#: Maximum number of folders: each has a slot of its own, a function of one device on the PCI bus.
MAX_MOUNTS = 8

#: Keys of a spec that exclude `mounts` -> the reason.
_EXCLUDED = {
    "secure": "a sealed box shares no folder with its host",
    "warm": "a box that continues a template starts without folders of the host",
}


def read_mounts(reader: Reader, others: Mapping[str, str]) -> tuple[Mount, ...]:
    """Returns the mounts of a box. Reports those whose mount point overlaps with another one, or with one of `others`.

    `others`: path in the guest -> what is there.
    """
    node = reader.tree.get("mounts")
    mounts: list[Mount] = []
    taken = dict(others)
    for item in node.items if node else ():
        location_node, point_node = item.get("location"), item.get("mount_point")
        place = functools.partial(_location, folder=Path(location_node.mark.file).parent if location_node else Path())
        location = reader.text(location_node, place, Path())
        point = reader.text(point_node, functools.partial(rules.mount_point, kind="mount"), "")
        if point and point_node:
            refuse_overlap(reader, point_node, point, taken)
            taken[point] = "another mount"
        mounts.append(Mount(location, point, writable=reader.switch(item.get("writable"))))
    for key, reason in _EXCLUDED.items():
        other = reader.tree.get(key)
        if mounts and node and other is not None and (other.mapping or other.value is True):
            message = f"`mounts` and `{key}` exclude each other: {reason}"
            hint = f"remove one of them, or use a spec of its own for `{key}`"
            reader.fault(node, message, hint, code="conflicting-settings")
    return tuple(mounts)


def _location(text: str, folder: Path) -> Path:
    """The absolute path of a folder of the host. A relative one starts at `folder`."""
    if not text or "\0" in text:
        raise Fault("the location of a mount is the path of a folder", "for example `.`", code="bad-path")
    if text.startswith("~"):
        message = f"{shown(text)} starts with ~, which has no meaning in a spec"
        raise Fault(message, "write the path, absolute or relative to this file", code="bad-path")
    return Path(os.path.abspath(folder / text))  # noqa: PTH100 - not through links
