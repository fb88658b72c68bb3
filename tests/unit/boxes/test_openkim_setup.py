"""The setup folder of the box openkim-dev, with a stand-in for LAMMPS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kimbox import paths
from kimbox.run import Completed, run

TOOL = paths.boxes_dir() / "openkim-dev/setup/bin/kimbox-al"


def kimbox_al(folder: Path, lammps: str, *options: str) -> Completed:
    """Runs kimbox-al with a program `lmp` that does this."""
    (folder / "lmp").write_text(f"#!/bin/sh\n{lammps}\n")
    (folder / "lmp").chmod(0o755)
    return run([sys.executable, TOOL, *options], env={"PATH": f"{folder}:/usr/bin:/bin"}, check=False)


def test_the_result_is_printed_and_agrees(tmp_path: Path) -> None:
    """LAMMPS gets an input that names the model, and its result is shown as published."""
    model = "EAM_Dynamo_ErcolessiAdams_1994_Al__MO_123629422045_005"
    lammps = f'grep -q "^kim init {model} metal" "$2" && echo "RESULT 4.03208197 -3.36"'
    done = kimbox_al(tmp_path, lammps, "--check")
    assert (done.code, done.stdout, done.stderr) == (0, "a = 4.03208 A\nE = -3.36000 eV/atom\n", "")
    said = json.loads(kimbox_al(tmp_path, lammps, "--json").stdout)
    assert (said["a_angstrom"], said["energy_ev_per_atom"], said["agrees"]) == (4.03208197, -3.36, True)


@pytest.mark.parametrize(
    ("lammps", "words"),
    [
        ("echo RESULT 4.05 -3.36", "published are a = 4.0321 A"),
        ("echo RESULT 4.0321 -3.37", "published are a = 4.0321 A"),
        ("echo ERROR: no such model; exit 1", "no such model"),
        ("true", "gave no result"),
    ],
)
def test_another_result_or_none_is_told(tmp_path: Path, lammps: str, words: str) -> None:
    """--check fails with what was expected, or with LAMMPS' own last words."""
    done = kimbox_al(tmp_path, lammps, "--check")
    assert done.code == 1
    assert words in done.stderr
