"""Makes the folder of a job, and the folder with its results, as `kimbox job run` writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kimbox.files import json_bytes
from kimbox.jobs import listing
from kimbox.jobs.disk.source import read_folder
from kimbox.jobs.record import LOCK, RECORD
from kimbox.lock.lockfile import Lock, PinnedRepository, write_lock

#: A lock with a repository.
A_LOCK = Lock(
    "5" * 64, "1" * 64, {"setup": PinnedRepository("https://example.org/a.git", "stable", "c" * 40, "d" * 40)}
)


def make_folder(folder: Path, program: str = "#!/bin/sh\n") -> Path:
    """Makes the folder of a job."""
    (folder / "input").mkdir(parents=True)
    (folder / "input/data").write_text("data\n")
    (folder / "run-job").write_text(program)
    (folder / "run-job").chmod(0o755)
    return folder


def record_of(folder: Path, results: Path, lock: Lock = A_LOCK) -> dict[str, Any]:
    """Returns the content of job.json for a job that was ok."""
    return {
        "format": 1, "kimbox": "0.1.0", "id": "0123456789ab",
        "verdict": "ok", "exit": 0, "signal": None, "status": 0, "reason": None,
        "arguments": ["a b"], "box": "tiny", "image": "1" * 64, "manifest": "2" * 64,
        "lock": {"sha256": lock.digest, "spec": lock.spec_digest}, "commits": {"setup": "c" * 40}, "provenance": None,
        "settings": {"cpus": 1, "memory_bytes": 1 << 30, "scratch_bytes": None, "timeout_s": 60, "network": "none",
                     "size_bytes": 2 << 20},
        "folder": f"sha256:{'3' * 64}", "folder_name": folder.name,
        "input": listing.of_source(read_folder(folder)).as_json(),
        "output": listing.of_folder(results / "output").as_json(),
        "ended_at": "2026-01-01T00:00:00Z", "ready_s": 1.5, "run_s": 2, "memory_peak_bytes": 4096, "cpu_s": 0.1,
        "skipped": [], "quarantine": [], "console": [], "start": "cold", "restarted": None,
    }  # fmt: skip


def make_results(folder: Path, results: Path, output: Mapping[str, bytes], lock: Lock = A_LOCK) -> Path:
    """Makes the folder with the results of a job, and returns its job.json. `output`: content of each file."""
    for name, data in output.items():
        path = results / "output" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (results / "output").mkdir(parents=True, exist_ok=True)
    (results / "run-job.log").write_text("done\n")
    write_lock(results / LOCK, lock)
    (results / RECORD).write_bytes(json_bytes(record_of(folder, results, lock)))
    return results / RECORD


def set_old(folder: Path) -> None:
    """Gives every file of a folder another time."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (1, 1))
