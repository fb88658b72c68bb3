"""Runs LAMMPS for a job: it relaxes the crystal and prints lattice constant and energy."""

from __future__ import annotations

import os
import re
import subprocess  # noqa: TID251 - this runs in a guest, where there is no kimbox.run
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs import Job

#: Cells along each edge: enough atoms for every model, and a run of about one second.
CELLS = {"bcc": 4, "diamond": 2, "fcc": 3, "hcp": 3, "sc": 5}

#: A job takes a second; an emulated machine may need a minute.
TIMEOUT_S = 300.0

#: Limits on the output of LAMMPS that is read (bytes) and that becomes part of a failure (lines, characters per line).
OUTPUT_BYTES = 65536
LAST_LINES, LINE_CHARACTERS = 10, 200

#: Waits for a program, up to a number of seconds. Returns whether it has ended.
Wait = Callable[[subprocess.Popen[bytes], float], bool]

# hcp keeps the ratio of its axes, so that one number describes the cell, as for the other lattices.
_INPUT = """\
kim init {model} metal
boundary p p p
lattice {lattice} {a!r}
region box block 0 {cells} 0 {cells} 0 {cells}
create_box 1 box
create_atoms 1 box
mass 1 1.0
kim interactions {species}
fix relax all box/relax iso 0.0 vmax 0.001
thermo_style custom step pe lx press
thermo 100
min_style cg
minimize 1e-14 1e-12 1000 10000
print "RESULT $(lx/{cells}:%.8f) $(pe/atoms:%.8f)"
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job: the values `a` and `e`, or why there are none, and the last lines of LAMMPS's output."""

    version: str = ""
    values: dict[str, float] | None = None
    reason: str = ""
    tail: tuple[str, ...] = ()


def input_of(job: Job) -> str:
    """The input of LAMMPS for a job."""
    return _INPUT.format(model=job.model, lattice=job.lattice, a=job.a, cells=CELLS[job.lattice], species=job.species)


def run(program: Sequence[str], job: Job, wait: Wait, *, timeout_s: float = TIMEOUT_S) -> Outcome:
    """Runs LAMMPS for a job in a temporary folder; `wait` waits for its end."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        (Path(folder) / "in.job").write_text(input_of(job), encoding="ascii")
        # Open MPI does not start without HOME, and a service has none. One process, one thread.
        env = {"HOME": folder, "OMP_NUM_THREADS": "1", "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        with (Path(folder) / "out").open("w+b") as out:
            try:
                process = subprocess.Popen(
                    [*program, "-in", "in.job", "-log", "none"],
                    cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except OSError as error:
                return Outcome(reason=f"{program[0]} does not start: {error.strerror}")
            try:
                ended = wait(process, timeout_s)
            finally:
                process.kill()
                process.wait()
            head = os.pread(out.fileno(), OUTPUT_BYTES, 0)
            end = os.pread(out.fileno(), OUTPUT_BYTES, max(0, out.seek(0, os.SEEK_END) - OUTPUT_BYTES))
    return _judge(head.decode(errors="replace"), end.decode(errors="replace"), process.returncode, ended, timeout_s)


def _judge(head: str, end: str, status: int, ended: bool, timeout_s: float) -> Outcome:
    said = re.search(r"^LAMMPS \(([^)\n]{1,80})\)", head, re.MULTILINE)  # MPI may print lines before it
    version = said[1] if said else ""
    lines = [line[:LINE_CHARACTERS] for line in end.splitlines() if line.strip()]
    tail = tuple("".join(c if c.isprintable() else " " for c in line) for line in lines[-LAST_LINES:])
    if not ended:
        return Outcome(version, reason=f"LAMMPS did not end within {timeout_s:g} s", tail=tail)
    number = r"(-?\d{1,6}\.\d{1,12})"
    result = re.search(rf"^RESULT {number} {number}$", end, re.MULTILINE)
    if status != 0 or not result:
        return Outcome(version, reason=f"LAMMPS gave no result (exit status {status})", tail=tail)
    return Outcome(version, values={"a": float(result[1]), "e": float(result[2])})
