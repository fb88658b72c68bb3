"""Sizes and durations as a spec writes them, and how much disk its volumes need."""

from __future__ import annotations

import re
from fractions import Fraction

from kimbox.spec.layout import EXTENT_BYTES
from kimbox.spec.model import FULL_ORIGIN
from kimbox.spec.nodes import Fault, shown

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

#: Units of a size. Only binary ones: 5GB and 5GiB differ by 7 %, and nobody can see which was meant.
SIZE_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}

#: No disk of a box is larger; beyond this a size is a slip of the hand (the MBR ends at 2 TiB).
MAX_SIZE_BYTES = 2 << 40

#: Units of a duration, in seconds.
DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

#: The longest time-out: one week.
MAX_DURATION_S = 7 * 86400

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(KiB|MiB|GiB|TiB)")
_LOOSE_SIZE = re.compile(r"\s*+([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*+([kmgt])?i?b?(?:ytes)?\s*+", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)")


def size(text: str, *, unit: int = EXTENT_BYTES, least: int = 0) -> int:
    """Bytes of a size such as 5GiB, rounded up to a multiple of `unit`."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise Fault(f"{shown(text)} is not a size: write a number and KiB, MiB, GiB or TiB", _meant(text))
    exact = Fraction(match[1]) * SIZE_UNITS[match[2]]
    count = -(-exact // unit) * unit
    if count == 0 or count < least:
        raise Fault(f"{shown(text)} is too small: at least {size_text(max(least, unit))}")
    if count > MAX_SIZE_BYTES:
        raise Fault(f"{shown(text)} is too large: at most {size_text(MAX_SIZE_BYTES)}")
    return count


def _meant(text: str) -> str | None:
    if not (match := _LOOSE_SIZE.fullmatch(text)) or not match[2]:
        return "give a unit: 5GiB" if match else None
    return f"did you mean {match[1]}{match[2].upper()}iB?"


def snapshot_size(text: str) -> int | None:
    """Bytes of the snapshot; None for 100%ORIGIN."""
    if text == FULL_ORIGIN:
        return None
    if "%" in text:
        raise Fault(f"{shown(text)} is not a size of the snapshot: write {FULL_ORIGIN} or a size such as 2GiB")
    return size(text)


def size_text(count: int) -> str:
    """A size as a spec would write it, exactly: the largest unit that divides it."""
    for name, unit in reversed(SIZE_UNITS.items()):
        if count and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count} bytes"


def duration(text: str) -> int:
    """Seconds of a duration such as 36h."""
    match = _DURATION.fullmatch(text)
    if not match:
        hint = f"give a unit: {text}s" if text.isascii() and text.isdigit() else None
        raise Fault(f"{shown(text)} is not a duration: write a whole number and s, m, h or d", hint)
    seconds = int(match[1]) * DURATION_UNITS[match[2]]
    if not 1 <= seconds <= MAX_DURATION_S:
        raise Fault(f"{shown(text)} is out of range: from 1s to 7d")
    return seconds
