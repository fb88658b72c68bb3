"""A submission: the folder with all files that a pool gets of a job, and what comes back of it.

submission.json is written before the jobs are submitted, and gets the number of the cluster afterwards. If kimbox is
killed between the two, the cluster is found again by its mark.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Self

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, StateError
from kimbox.files import read_json, write_json
from kimbox.jobs.backends.htcondor.bindings import Schedd
from kimbox.jobs.backends.htcondor.description import EVENT_LOG, result_file
from kimbox.jobs.items import MAX_BYTES, Item, folder_of
from kimbox.jobs.vet import Vetting

#: Name of the record of a submission, version of its content, and maximum size in bytes.
RECORD, FORMAT, MAX_RECORD_BYTES = "submission.json", 1, 2 * MAX_BYTES

#: The universes.
VANILLA, VM = "vanilla", "vm"

#: Number of random bytes in an id.
_ID_BYTES = 6


@attrs.frozen
class Submission:
    """A submission. `static`: the part of each job.json that is known beforehand."""

    folder: Path
    id: str
    created_at: str
    job_folder: Path
    output: Path
    #: The items, or None for one job.
    items: tuple[str, ...] | None
    #: What the results depend on, as the ledger of a sweep has it.
    facts: dict[str, Any]
    static: dict[str, Any]
    universe: str
    vetting: Vetting | None = None
    #: None: not submitted yet, or submitted by condor_submit.
    cluster: int | None = None
    schedd: Schedd = attrs.field(factory=Schedd)

    @property
    def count(self) -> int:
        """Number of jobs."""
        return 1 if self.items is None else len(self.items)

    @property
    def event_log(self) -> Path:
        return self.folder / EVENT_LOG

    @property
    def lock_file(self) -> Path:
        return self.folder / ".lock"

    @property
    def is_vm(self) -> bool:
        """Whether HTCondor boots the box, without the runner."""
        return self.universe == VM

    def item(self, process: int) -> Item | None:
        """Returns the item of a job; None for one job."""
        return None if self.items is None else Item(self.items[process], folder_of(self.items[process]))

    def results(self, process: int) -> Path:
        """Returns the disk with the results of a job."""
        return self.folder / result_file(process)

    def write(self) -> None:
        """Writes the record."""
        value = attrs.asdict(self, recurse=True)
        value |= {"folder": None, "job_folder": str(self.job_folder), "output": str(self.output)}
        write_json(self.folder / RECORD, {"format": FORMAT, **value}, mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads a submission. Raises KimboxError (`bad-record`)."""
        path = folder / RECORD
        try:
            value = read_json(path, limit_bytes=MAX_RECORD_BYTES)
            if value.pop("format") != FORMAT:
                raise ValueError("another version of kimbox wrote it")
            vetting = value.pop("vetting")
            vetting = Vetting.from_json(vetting) if vetting else None
            items = value.pop("items")
            value |= {"folder": folder, "job_folder": Path(value["job_folder"]), "output": Path(value["output"])}
            value["schedd"] = Schedd(**value["schedd"])
            return cls(vetting=vetting, items=None if items is None else tuple(items), **value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KimboxError(
                f"{path} is not the record of a submission: {error}", code="bad-record", fields={"path": str(path)}
            ) from None


def new_id() -> str:
    """Returns a new id."""
    return secrets.token_hex(_ID_BYTES)


def stored() -> list[Submission]:
    """Returns the submissions of this user, the oldest first. One that cannot be read is left out."""
    found = []
    for path in paths.submissions_dir().glob(f"*/{RECORD}"):
        try:
            found.append(Submission.read(path.parent))
        except KimboxError:
            continue
    return sorted(found, key=lambda submission: (submission.created_at, submission.id))


def find(target: str | None) -> Submission:
    """Returns the submission of a cluster, an id or a folder; without a target, the last one. Raises StateError."""
    if target and (Path(target) / RECORD).exists():
        return Submission.read(Path(target))
    known = stored()
    if target is None and known:
        return known[-1]
    chosen = [one for one in known if target in (one.id, str(one.cluster))]
    if chosen:
        return chosen[-1]
    raise StateError(
        f"there is no submission {target}" if target else "there is no submission",
        code="submission-not-found",
        hint="`kimbox job list` shows the submissions",
        fields={"submission": target or ""},
    )
