"""Where a symbolic link of a job's disk leads to, without the disk being mounted. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from kimbox.image.disk.ext4.content import Budget

#: Where a job sees its disk in the guest.
MOUNT_POINT = b"/mnt/user"

#: Maximum number of links that Linux follows in one path.
MAX_FOLLOWED = 40


def relative(path: bytes, target: bytes) -> bytes:
    """Returns the target of the link `path`. If it is absolute and on the mounted disk, it becomes relative."""
    if target != MOUNT_POINT and not target.startswith(MOUNT_POINT + b"/"):
        return target
    folder = posixpath.dirname(path)
    inside = target[len(MOUNT_POINT) :].lstrip(b"/")
    return posixpath.join(*[b".."] * (folder.count(b"/") + 1 if folder else 0), inside) or b"."


def leads_out(path: bytes, targets: Mapping[bytes, bytes], budget: Budget) -> bool:
    """Whether the link `path` leads above the root of its disk, or to an absolute path. A loop leads nowhere.

    `targets`: the links of the disk. They are followed as the kernel does. `..` is not resolved in the text, because
    the part before it can be a link, too. Raises ImageError if the budget is used up.
    """
    at: list[bytes] = path.split(b"/")[:-1]
    parts = targets[path].split(b"/")[::-1]
    if targets[path].startswith(b"/"):
        return True
    followed = 0
    while parts:
        budget.take()
        part = parts.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not at:
                return True
            at.pop()
            continue
        at.append(part)
        target = targets.get(b"/".join(at))
        if target is not None:
            followed += 1
            if target.startswith(b"/"):
                return True
            if followed > MAX_FOLLOWED:
                return False
            budget.take(target.count(b"/"))
            at.pop()
            parts += target.split(b"/")[::-1]
    return False
