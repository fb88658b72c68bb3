"""Sizes and durations as texts of a spec, in bytes and seconds."""

from __future__ import annotations

import re
from fractions import Fraction

from kimbox.spec.layout import EXTENT_BYTES
from kimbox.spec.model import FULL_ORIGIN
from kimbox.spec.nodes import Fault, shown

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

#: Units of a size, in bytes. Decimal units are refused: 5GB and 5GiB differ by 7 %, and GB is often used for both.
SIZE_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}

#: Maximum size: an MBR cannot describe a larger disk.
MAX_SIZE_BYTES = 2 << 40

#: Units of a duration, in seconds.
DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

#: Maximum duration: one week.
MAX_DURATION_S = 7 * 86400

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(KiB|MiB|GiB|TiB)")
_LOOSE_SIZE = re.compile(r"\s*+([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*+([kmgt])?i?b?(?:ytes)?\s*+", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")


def size(text: str, *, unit: int = EXTENT_BYTES, least: int = 0) -> int:
    """Returns the bytes of a size such as 5GiB, rounded up to a multiple of `unit` bytes.

    Raises Fault for another text, and for a size below `least` bytes or above MAX_SIZE_BYTES.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        message = f"{shown(text)} is not a size: write a number and KiB, MiB, GiB or TiB"
        raise Fault(message, _size_hint(text), code="bad-size")
    exact = Fraction(match[1]) * SIZE_UNITS[match[2]]
    count = -(-exact // unit) * unit
    if count == 0 or count < least:
        raise Fault(f"{shown(text)} is too small: at least {size_text(max(least, unit))}", code="out-of-range")
    if count > MAX_SIZE_BYTES:
        raise Fault(f"{shown(text)} is too large: at most {size_text(MAX_SIZE_BYTES)}", code="out-of-range")
    return count


def _size_hint(text: str) -> str | None:
    if not (match := _LOOSE_SIZE.fullmatch(text)) or not match[2]:
        return "give a unit: 5GiB" if match else None
    return f"did you mean {match[1]}{match[2].upper()}iB?"


def snapshot_size(text: str) -> int | None:
    """Returns the bytes of the snapshot; None for 100%ORIGIN. Raises Fault as `size` does."""
    if text == FULL_ORIGIN:
        return None
    if "%" in text:
        message = f"{shown(text)} is not a size of the snapshot: write {FULL_ORIGIN} or a size such as 2GiB"
        raise Fault(message, code="bad-size")
    return size(text)


def size_text(count: int) -> str:
    """Returns a size as a spec has it, without rounding: in the largest unit that divides it."""
    for name, unit in reversed(SIZE_UNITS.items()):
        if count and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count} bytes"


def duration(text: str, *, min_s: int = 1, max_s: int = MAX_DURATION_S) -> int:
    """Returns the seconds of a duration such as 36h. Raises Fault for another text, below `min_s` and above `max_s`."""
    match = _DURATION.fullmatch(text)
    if not match:
        hint = f"give a unit: {text}s" if text.isascii() and text.isdigit() else None
        message = f"{shown(text)} is not a duration: write a whole number and s, m, h or d"
        raise Fault(message, hint, code="bad-duration")
    seconds = int(match[1]) * DURATION_UNITS[match[2]]
    if not min_s <= seconds <= max_s:
        longest = f"{max_s // 86400}d" if max_s % 86400 == 0 else f"{max_s}s"
        raise Fault(f"{shown(text)} is out of range: from {min_s}s to {longest}", code="out-of-range")
    return seconds
