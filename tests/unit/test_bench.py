"""The measurements can be started, and reckon right; what they measure is no matter of these tests."""

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


@pytest.mark.parametrize("name", ["again", "boot", "build", "chunks", "cli", "lock", "resnap", "shrink", "vagrant"])
def test_a_measurement_says_what_it_takes(name: str) -> None:
    """`--help` shows the module's own words, and -n."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    shown = run([sys.executable, "-m", f"bench.{name}", "--help"], env={"PYTHONPATH": path}, cwd=ROOT).stdout
    assert f"python -m bench.{name}" in shown
    assert "-n N" in shown


def test_a_ratio_is_the_median_of_pairs() -> None:
    """A turn in which the host was ten times slower counts as any other."""
    assert 1.1 == ratio([11.0, 110.0, 12.0], [10.0, 100.0, 10.0])
    assert {"a": 2.0} == medians({"a": [1.0, 2.0, 30.0]})


def test_chunk_sizes_are_held_against_the_plain_volume() -> None:
    """Each turn's own plain volume divides it; `stored`, which that one has not, stays as it is."""
    found = {chunk: {"unpack": {"MiB/s": 5.0, "stored": 1.5}} for chunk in CHUNKS}
    turns = [found | {"plain": {"unpack": {"MiB/s": plain}}} for plain in (10.0, 10.0, 1.0)]
    assert {"MiB/s": 0.5, "stored": 1.5} == {what: row["64k"] for what, row in against_plain(turns)["unpack"].items()}


def test_the_chosen_chunk_is_one_that_is_measured_and_the_initramfs_has_the_same() -> None:
    """The script that makes a snapshot where there is none names the size once more."""
    script = ROOT / "provisioners/boot/root/etc/initramfs-tools/scripts/local-premount/resnap"
    (chunk,) = re.findall(r"^CHUNK=(\d+)$", script.read_text(), re.MULTILINE)
    assert SNAPSHOT_CHUNK_BYTES == int(chunk) << 10
    assert f"{chunk}k" in CHUNKS
