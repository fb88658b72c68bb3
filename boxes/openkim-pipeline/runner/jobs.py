"""What a job is: the list of them that the director has, and the text in which one travels through the queue.

A job asks for the lattice constant and the energy of a perfect crystal of one species with one OpenKIM model. Workers
can put into the queue, too, and what is in a job becomes input of LAMMPS, which knows a command `shell`: so nobody
takes a job from there without `parse`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The tube of the queue that jobs go through.
TUBE = "pipeline"

#: Longest text of a job, in bytes.
LIMIT = 4096

#: How deeply JSON may be nested.
DEPTH = 32

LATTICES = ("bcc", "diamond", "fcc", "hcp", "sc")

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MODEL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,199}")
_SPECIES = re.compile(r"[A-Z][a-z]?")


class BadJobError(ValueError):
    """A job that is none."""


@dataclass(frozen=True)
class Job:
    """Relax `lattice` of `species` with `model`, from the lattice constant `a` in A."""

    name: str
    model: str
    species: str
    lattice: str
    a: float

    def text(self) -> bytes:
        """As it travels: the same job gives the same bytes."""
        return json.dumps(self.fields(), sort_keys=True).encode()

    def fields(self) -> dict[str, Any]:
        """What is asked for, as JSON has it."""
        return {"a": self.a, "job": self.name, "lattice": self.lattice, "model": self.model, "species": self.species}


@dataclass(frozen=True)
class Expected:
    """What is known of a result: `a` in A and `e` in eV/atom, each to within `tolerance`."""

    a: float
    e: float
    tolerance: float

    def agrees(self, a: float, e: float) -> bool:
        """Whether a result is as expected."""
        return abs(a - self.a) <= self.tolerance and abs(e - self.e) <= self.tolerance


def number(value: object, low: float, high: float) -> float:
    """A finite number in that range, or BadJobError. True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadJobError(f"{value!r:.80} is no number from {low:g} to {high:g}")
    return float(value)


def word(value: object, shape: re.Pattern[str], what: str) -> str:
    """A string of that shape, or BadJobError."""
    if not isinstance(value, str) or not shape.fullmatch(value):
        raise BadJobError(f"{value!r:.80} is no {what}")
    return value


def load_json(text: bytes) -> Any:
    """JSON as its standard has it, with finite numbers, or BadJobError.

    What is nested deeply is refused: to write it again would fail.
    """

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):  # 1e999
            raise BadJobError(f"{digits:.80} is no number")
        return value

    try:
        value = json.loads(text, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise BadJobError(f"no JSON: {error!s:.80}") from None
    level = [value]
    for _ in range(DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise BadJobError(f"it is nested more than {DEPTH} deep")
    return value


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def from_fields(fields: object) -> Job:
    """A job from its fields, each checked; or BadJobError."""
    wanted = {"a", "job", "lattice", "model", "species"}
    if not isinstance(fields, dict) or set(fields) != wanted:
        raise BadJobError(f"a job has the fields {', '.join(sorted(wanted))}, and no others")
    if fields["lattice"] not in LATTICES:
        raise BadJobError(f"{fields['lattice']!r:.80} is no lattice")
    return Job(
        name=word(fields["job"], NAME, "name of a job"),
        model=word(fields["model"], _MODEL, "name of a model"),
        species=word(fields["species"], _SPECIES, "species"),
        lattice=fields["lattice"],
        a=number(fields["a"], 0.5, 50.0),
    )


def parse(text: bytes) -> Job:
    """A job from the queue, or BadJobError."""
    if len(text) > LIMIT:
        raise BadJobError(f"a job has at most {LIMIT} bytes")
    return from_fields(load_json(text))


def load(path: Path) -> dict[str, tuple[Job, Expected | None]]:
    """The jobs of a file by their names, with what is known of their results; or BadJobError.

    The file is a list of jobs. Beside its fields each may have `expected`, an object of a, e and tolerance.
    """
    found: dict[str, tuple[Job, Expected | None]] = {}
    entries = load_json(path.read_bytes())
    if not isinstance(entries, list):
        raise BadJobError(f"{path} is no list of jobs")
    for entry in entries:
        fields = dict(entry) if isinstance(entry, dict) else {}
        known = fields.pop("expected", None)
        job = from_fields(fields)
        if job.name in found:
            raise BadJobError(f"{path} has two jobs {job.name}")
        expected = None
        if known is not None:
            if not isinstance(known, dict) or set(known) != {"a", "e", "tolerance"}:
                raise BadJobError(f"{job.name}: what is expected has a, e and tolerance")
            values = [number(known[key], -math.inf, math.inf) for key in ("a", "e", "tolerance")]
            expected = Expected(*values)
        found[job.name] = (job, expected)
    return found
