"""LVM2 metadata that kimbox writes, read by a separate reader of the tests, and by pvck if it is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lvmreader
import pytest

from kimbox.image.disk.lvm import writer
from kimbox.run import run, which
from kimbox.spec.layout import EXTENT_BYTES, MIB, PE_START_BYTES, Layout, plan
from kimbox.spec.model import Disk, Volume

EPOCH_S = 1735689600

#: Words of LVM's warnings and errors.
WARNING = re.compile("warning|bad|invalid|corrupt|unexpected", re.IGNORECASE)


def layout(*, swap: bool = True, group: str = "vagrant-pipeline") -> Layout:
    """Returns a small disk with names that have hyphens."""
    return plan(
        Disk(
            size_bytes=512 * MIB,
            boot_bytes=64 * MIB,
            volume_group=group,
            root=Volume("root", 64 * MIB),
            persistent=Volume("per-sistent", 32 * MIB),
            swap=Volume("swap", 32 * MIB) if swap else None,
            snapshot=Volume("root_snap", None),
        )
    )


def write_pv(path: Path, made: Layout, seed: str = "seed") -> Path:
    """Writes the PV of a layout into a sparse file and returns its path."""
    with path.open("wb") as file:
        file.truncate(made.pv.size_bytes)
        for offset, data in writer.pieces(made, seed, EPOCH_S):
            assert made.pv.offset_bytes <= offset
            assert offset + len(data) <= made.pv.offset_bytes + PE_START_BYTES
            file.seek(offset - made.pv.offset_bytes)
            file.write(data)
    return path


def area(path: Path) -> bytes:
    """Returns the bytes before the first extent of a PV: label and metadata."""
    with path.open("rb") as file:
        return file.read(PE_START_BYTES)


def group_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the label and the volume group of a PV."""
    label, text = lvmreader.read(area(path))
    [group] = [value for value in text.values() if isinstance(value, dict)]
    return label, group


@pytest.mark.parametrize("swap", [True, False])
def test_it_reads_back(tmp_path: Path, swap: bool) -> None:
    """Label, metadata area and text match the layout, and every checksum is correct."""
    made = layout(swap=swap)
    label, group = group_of(write_pv(tmp_path / "pv", made))
    assert made.pv.size_bytes == label["size"]
    assert [(PE_START_BYTES, 0)] == label["data"]
    assert (2, 1) == (label["version"], label["flags"])
    pv = group["physical_volumes"]["pv0"]
    assert label["uuid"] == pv["id"].replace("-", "")
    assert (made.pv.size_bytes // 512, PE_START_BYTES // 512) == (pv["dev_size"], pv["pe_start"])
    assert made.pv_extents == pv["pe_count"]
    assert EXTENT_BYTES // 512 == group["extent_size"]
    for volume in made.volumes:
        segment = group["logical_volumes"][volume.name]["segment1"]
        assert [volume.extents, ["pv0", volume.first_extent]] == [segment["extent_count"], segment["stripes"]]
    assert len(made.volumes) + 1 == len(group["logical_volumes"])


def test_the_snapshot_ties_the_cow_store_to_root(tmp_path: Path) -> None:
    """The hidden volume names origin and COW store, and has the length of the origin."""
    made = layout()
    group = group_of(write_pv(tmp_path / "pv", made))[1]
    hidden = group["logical_volumes"]["snapshot0"]
    segment = hidden["segment1"]
    assert ("snapshot", "root", "root_snap") == (segment["type"], segment["origin"], segment["cow_store"])
    assert (made.root.extents, 128) == (segment["extent_count"], segment["chunk_size"])
    assert "VISIBLE" not in hidden["status"]


def test_identifiers_differ_and_follow_from_the_seed(tmp_path: Path) -> None:
    """Every object has another identifier. The same seed gives the same bytes, another seed other bytes."""
    metadata = area(write_pv(tmp_path / "1", layout()))
    assert metadata == area(write_pv(tmp_path / "2", layout()))
    assert metadata != area(write_pv(tmp_path / "3", layout(), seed="other"))
    ids = re.findall(rb'id = "([^"]*)"', metadata)
    assert len(ids) == len(set(ids)) == 7
    assert all(re.fullmatch(rb"\w{6}(-\w{4}){5}-\w{6}", i) for i in ids)


@pytest.mark.skipif(not which("pvck"), reason="package lvm2 is not installed")
def test_pvck_finds_nothing(tmp_path: Path) -> None:
    """Real LVM reads headers and text from the file, without a warning."""
    pv = write_pv(tmp_path / "pv", layout())
    env = {"LVM_SUPPRESS_FD_WARNINGS": "1"}
    for what in ("headers", "metadata", "metadata_all"):
        done = run(["pvck", "--dump", what, pv], env=env)
        output = done.stdout + done.stderr
        warnings = [line for line in output.splitlines() if WARNING.search(line)]
        assert [] == [line for line in warnings if "non-root user" not in line]
        assert "vagrant-pipeline" in output
