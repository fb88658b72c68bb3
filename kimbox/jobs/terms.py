"""What the results of a job depend on besides its box. It is kept beside the disk of the job while the guest runs.

A later run of kimbox, which has neither the spec nor the command line, writes the results from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import attrs

from kimbox.errors import KimboxError
from kimbox.files import read_json, write_json
from kimbox.jobs.record import MAX_RECORD_BYTES
from kimbox.jobs.vet import Vetting
from kimbox.lock.lockfile import MAX_LOCK_BYTES

#: Version of the content of the file.
FORMAT = 1

#: Maximum size of the file, in bytes.
MAX_BYTES = MAX_RECORD_BYTES + MAX_LOCK_BYTES


@attrs.frozen
class Terms:
    """What was asked for a job. The fields are those of RunRequest."""

    folder: Path
    output: Path
    arguments: tuple[str, ...] = ()
    timeout_s: int | None = None
    vetting: Vetting | None = None
    sign_key: Path | None = None
    keep: bool = False


@attrs.frozen
class Inputs:
    """What is known of the inputs of a job. `static`: the part of job.json about them; `lock_text`: the lock."""

    static: dict[str, Any]
    lock_text: str


@attrs.frozen
class Unfinished:
    """A job whose results are not written yet."""

    id: str
    terms: Terms
    inputs: Inputs

    def write(self, path: Path) -> None:
        """Writes the file."""
        terms = attrs.asdict(self.terms)
        for key in ("folder", "output", "sign_key"):
            value = getattr(self.terms, key)
            terms[key] = None if value is None else str(value.absolute())
        write_json(path, {"format": FORMAT, "id": self.id, "terms": terms, "inputs": attrs.asdict(self.inputs)},
                   mode=0o600)  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file. Raises KimboxError (`bad-record`)."""
        try:
            value = read_json(path, limit_bytes=MAX_BYTES)
            if value["format"] != FORMAT:
                raise ValueError("another version of kimbox wrote it")
            terms = dict(value["terms"])
            for key in ("folder", "output", "sign_key"):
                terms[key] = None if terms[key] is None else Path(terms[key])
            terms["arguments"] = tuple(terms["arguments"])
            terms["vetting"] = Vetting.from_json(terms["vetting"]) if terms["vetting"] else None
            return cls(str(value["id"]), Terms(**terms), Inputs(**value["inputs"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KimboxError(
                f"{path} is not the record of a job that runs: {error}", code="bad-record", fields={"path": str(path)}
            ) from None
