"""Errors for a disk that kimbox cannot read: it is damaged, or it has a form that kimbox does not know.

The field `fault` names the fault for callers and tests, `part` the structure that is damaged, and `volume` the
partition or LV that has it. Further fields say where the fault is, for example `group` or `line`.
"""

from __future__ import annotations

from collections.abc import Callable

from kimbox.errors import ImageError

#: Structures that can be damaged, as messages and the field `part` name them.
PARTITION_TABLE = "partition table"
LVM_METADATA = "LVM metadata"
FILE_SYSTEM = "file system"
SNAPSHOT_STORE = "snapshot store"


#: Limit of an offset on a disk, in bytes.
MAX_OFFSET_BYTES = 1 << 62


class UnknownUsage(ImageError):
    """Some structure has a form that kimbox does not know, so that its bytes in use are not known.

    The structure may be intact. Code that copies a disk must count all of its bytes as used.
    """

    def __init__(self, fault: str, message: str, **details: str) -> None:
        super().__init__(message, code="disk-unsupported", fields={"fault": fault, **details})


def unsupported(fault: str, message: str) -> ImageError:
    """Returns the error for a structure that may be intact, but that kimbox does not read."""
    return ImageError(message, code="disk-unsupported", fields={"fault": fault})


def damaged(fault: str, reason: str, *, part: str = FILE_SYSTEM, **details: str | int) -> ImageError:
    """Returns the error for a structure with invalid or inconsistent content. `details` are more fields."""
    fields = {"fault": fault, "part": part, **{name: str(value) for name, value in details.items()}}
    return ImageError(f"the {part} is damaged: {reason}", code="disk-damaged", fields=fields)


def exact(read: Callable[[int, int], bytes], part: str = FILE_SYSTEM) -> Callable[[int, int], bytes]:
    """Returns `read` with a check: it raises ImageError if there are fewer bytes than requested."""

    def read_exactly(offset: int, size: int) -> bytes:
        data = read(offset, size) if 0 <= offset < MAX_OFFSET_BYTES else b""  # pread(2) takes no other offset
        if len(data) != size:
            raise damaged("truncated", "it is longer than the disk or volume", part=part)
        return data

    return read_exactly


def other_layout(fault: str, message: str) -> ImageError:
    """Returns the error for a disk that does not have the layout of kimbox's images."""
    return ImageError(message, code="disk-layout", fields={"fault": fault})


def in_volume(name: str, error: ImageError) -> ImageError:
    """Returns the error with the name of the partition or LV before its message and in the field `volume`."""
    return ImageError(
        f"{name}: {error.message}", code=error.code, hint=error.hint, fields={**error.fields, "volume": name}
    )
