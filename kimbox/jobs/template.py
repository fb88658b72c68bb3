"""Writes a job folder with comments to start from."""

from __future__ import annotations

import os
from pathlib import Path

from kimbox.errors import StateError
from kimbox.image.formats.boxwriter import making
from kimbox.jobs.jobfile import FILE

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


def write_folder(folder: Path) -> Path:
    """Writes the new folder of a job. Raises StateError (`file-exists`) if it exists."""
    if os.path.lexists(folder):
        raise StateError(
            f"{folder} already exists", code="file-exists", hint="name a new folder", fields={"path": str(folder)}
        )
    with making(folder) as work:
        new = work / folder.name
        (new / "input").mkdir(parents=True)
        (new / "output").mkdir()
        for name, text in {"run-job": PROGRAM, "input/numbers": NUMBERS, FILE: JOBFILE}.items():
            (new / name).write_text(text)
        (new / "run-job").chmod(0o755)
    return folder
