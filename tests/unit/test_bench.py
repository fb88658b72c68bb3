"""The benchmarks start, and their calculations are right. These tests do not run the measurements."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from bench.chunks import CHUNKS, against_plain
from bench.common import medians, ratio
from kimbox.run import run
from kimbox.spec.layout import SNAPSHOT_CHUNK_BYTES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "again",
        "boot",
        "build",
        "chunks",
        "cli",
        "clones",
        "first",
        "jobs",
        "lock",
        "mounts",
        "resnap",
        "save",
        "shrink",
        "using",
        "vagrant",
    ],
)
def test_a_benchmark_has_help(name: str) -> None:
    """`--help` shows the docstring of the module, and -n."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    output = run([sys.executable, "-m", f"bench.{name}", "--help"], env={"PYTHONPATH": path}, cwd=ROOT).stdout
    assert f"python -m bench.{name}" in output
    assert "-n N" in output


def test_a_ratio_is_the_median_of_pairs() -> None:
    """A round in which the host was ten times slower does not change the ratio."""
    assert 1.1 == ratio([11.0, 110.0, 12.0], [10.0, 100.0, 10.0])
    assert {"a": 2.0} == medians({"a": [1.0, 2.0, 30.0]})


def test_chunk_sizes_are_compared_with_the_plain_volume() -> None:
    """Each round is divided by its own plain volume. `stored` is not divided: the plain volume has no such value."""
    results = {chunk: {"unpack": {"MiB/s": 5.0, "stored": 1.5}} for chunk in CHUNKS}
    turns = [results | {"plain": {"unpack": {"MiB/s": plain}}} for plain in (10.0, 10.0, 1.0)]
    assert {"MiB/s": 0.5, "stored": 1.5} == {unit: row["64k"] for unit, row in against_plain(turns)["unpack"].items()}


def test_the_chunk_size_is_measured_and_the_initramfs_uses_the_same() -> None:
    """The script that creates a missing snapshot in the initramfs contains the size, too."""
    script = ROOT / "provisioners/boot/root/etc/initramfs-tools/scripts/local-premount/resnap"
    (chunk,) = re.findall(r"^CHUNK=(\d+)$", script.read_text(), re.MULTILINE)
    assert SNAPSHOT_CHUNK_BYTES == int(chunk) << 10
    assert f"{chunk}k" in CHUNKS
