"""Jobs: the director's list of them, and the text of a job in the queue.

A job asks for the lattice constant and the energy of a perfect crystal of one species with one OpenKIM model. Workers
can write to the queue, too, and a job becomes input of LAMMPS, which has a command `shell`. So every job from the queue
goes through `parse`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The tube (named queue) of beanstalkd that has the jobs.
TUBE = "pipeline"

#: Maximum length of the text of a job, in bytes.
LIMIT = 4096

#: Maximum nesting depth of JSON.
DEPTH = 32

LATTICES = ("bcc", "diamond", "fcc", "hcp", "sc")

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MODEL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,199}")
_SPECIES = re.compile(r"[A-Z][a-z]?")


class BadJobError(ValueError):
    """Text or fields that are not a valid job or result."""


@dataclass(frozen=True)
class Job:
    """Relax `lattice` of `species` with `model`, from the lattice constant `a` in A."""

    name: str
    model: str
    species: str
    lattice: str
    a: float

    def text(self) -> bytes:
        """The text of the job in the queue. Equal jobs give equal bytes."""
        return json.dumps(self.fields(), sort_keys=True).encode()

    def fields(self) -> dict[str, Any]:
        """The fields of the job, as JSON values."""
        return {"a": self.a, "job": self.name, "lattice": self.lattice, "model": self.model, "species": self.species}


@dataclass(frozen=True)
class Expected:
    """The known result: `a` in A and `e` in eV/atom, each within `tolerance`."""

    a: float
    e: float
    tolerance: float

    def agrees(self, a: float, e: float) -> bool:
        """Whether a result is within the tolerance."""
        return abs(a - self.a) <= self.tolerance and abs(e - self.e) <= self.tolerance


def number(value: object, low: float, high: float) -> float:
    """A finite number in that range. Raises BadJobError for anything else, including True and False."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadJobError(f"{value!r:.80} is no number from {low:g} to {high:g}")
    return float(value)


def word(value: object, shape: re.Pattern[str], what: str) -> str:
    """A string that matches `shape`. Raises BadJobError otherwise."""
    if not isinstance(value, str) or not shape.fullmatch(value):
        raise BadJobError(f"{value!r:.80} is no {what}")
    return value


def load_json(text: bytes) -> Any:
    """Parses JSON of the standard, with finite numbers. Raises BadJobError otherwise.

    Deep nesting is refused, because writing it again would fail.
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
    """A job from its fields. Raises BadJobError if a field is missing, unknown or invalid."""
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
    """A job from its text in the queue. Raises BadJobError."""
    if len(text) > LIMIT:
        raise BadJobError(f"a job has at most {LIMIT} bytes")
    return from_fields(load_json(text))


def load(path: Path) -> dict[str, tuple[Job, Expected | None]]:
    """The jobs of a file by name, with their known results. Raises BadJobError.

    The file has a list of jobs. Each may also have `expected`, an object with a, e and tolerance.
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
