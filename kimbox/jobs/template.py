"""Writes a job folder with comments to start from."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from kimbox import paths
from kimbox.errors import StateError, UsageError
from kimbox.jobs.jobfile import FILE
from kimbox.newfiles import making

PROGRAM = """\
#!/bin/sh
# The program of the job. It runs as root in the box, in /, with the disk of this folder at /mnt/user. Its output goes
# to run-job.log; its exit status is the result of the job.
set -eu
cd /mnt/user
echo "hello from $(uname -n), with the arguments: $*"

# What the job needs is in input/. What it leaves in output/ comes back; everything else is discarded.
sort input/numbers >output/sorted
"""

NUMBERS = "3\n1\n2\n"

JOBFILE = """\
# The settings of this job. Options on the command line have precedence.
kimbox: 1
description: sorts a few numbers

# The box that the job runs in. Without it: the spec of the current folder, or --box.
# box: openkim-dev

# Arguments of run-job.
# arguments: [--steps, "1000"]

# The machine: processors, memory, and scratch space at /staging, which is empty at the start.
# cpus: 4
# memory: 8GiB
# scratch: 20GiB

# Limit on the duration of run-job.
timeout: 1h

# none: the guest reaches nothing. outbound: it opens connections, for example to download its input.
# example.org:443,db=192.0.2.7:5432: it reaches these servers, and nothing else.
network: none

# Conditions for each file in output/. What does not pass goes to quarantine/ beside it, and the verdict says so.
# vet:
#   names: ["*", "plots/**"]
#   types: [text, png]
#   max_size: 10MiB
#   command: [./check]

# Room for results on the disk: a part of what this folder needs, or a size. `size: 2GiB` sets the whole disk instead.
# room: 500MiB
"""


def examples() -> list[str]:
    """Returns the names of the examples that ship with kimbox."""
    return sorted(path.parent.parent.name for path in paths.examples_dir().glob("*/job/job.yaml"))


def copy_example(name: str, folder: Path) -> Path:
    """Copies an example, its box and its job, to a new folder. Returns the folder of its job.

    Raises StateError (`file-exists`), and UsageError for an unknown name.
    """
    if name not in examples():
        raise UsageError(
            f"there is no example {name}",
            code="usage",
            hint=f"there are: {', '.join(examples())}",
            fields={"option": "--example"},
        )
    _refuse_existing(folder)
    with making(folder) as work:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")  # pip compiles what is Python
        shutil.copytree(paths.examples_dir() / name, work / folder.name, ignore=ignored)
        for path in [work / folder.name, *(work / folder.name).rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)  # an installation may be read-only
    return folder / "job"


def write_folder(folder: Path) -> Path:
    """Writes the new folder of a job. Raises StateError (`file-exists`) if it exists."""
    _refuse_existing(folder)
    with making(folder) as work:
        new = work / folder.name
        (new / "input").mkdir(parents=True)
        (new / "output").mkdir()
        for name, text in {"run-job": PROGRAM, "input/numbers": NUMBERS, FILE: JOBFILE}.items():
            (new / name).write_text(text)
        (new / "run-job").chmod(0o755)
    return folder


def _refuse_existing(folder: Path) -> None:
    if os.path.lexists(folder):
        raise StateError(
            f"{folder} already exists", code="file-exists", hint="name a new folder", fields={"path": str(folder)}
        )
