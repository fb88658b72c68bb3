"""The digest of a stored disk: any changed byte changes it, and holes count as zeros."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kimbox.image.store.digest import PIECE_BYTES, disk_digest
from kimbox.sparse import copy_sparse

SIZE_BYTES = 5 * PIECE_BYTES + 700


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse file: data in the middle of the second piece, zeros in the third, and data at its end."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        for offset, data in (
            (PIECE_BYTES + 5000, b"one" * 900),
            (2 * PIECE_BYTES, bytes(8192)),
            (SIZE_BYTES - 3, b"end"),
        ):
            file.seek(offset)
            file.write(data)
    return path


def test_holes_are_zeros(disk: Path, tmp_path: Path) -> None:
    """A copy without holes, a sparse copy and the disk have one digest."""
    full, sparse = tmp_path / "full", tmp_path / "sparse"
    full.write_bytes(disk.read_bytes())
    copy_sparse(disk, sparse)
    assert disk_digest(disk) == disk_digest(full) == disk_digest(sparse)


def test_every_change_is_seen(disk: Path) -> None:
    """A changed bit in data or in a hole, a moved piece, and another size each give another digest."""
    content = disk.read_bytes()
    seen = {disk_digest(disk)}
    offsets = [0, PIECE_BYTES + 5000, PIECE_BYTES + 5001, 3 * PIECE_BYTES, SIZE_BYTES - 1]
    changed = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in offsets]
    changed += [content[:-1], content + b"\0", content[PIECE_BYTES:] + content[:PIECE_BYTES]]
    for data in changed:
        disk.write_bytes(data)
        seen.add(disk_digest(disk))
    assert len(changed) + 1 == len(seen)


def test_ranges_within_a_piece(tmp_path: Path) -> None:
    """Several data ranges in one piece are read once: random holes give the digest of the file without holes."""
    chance = random.Random(5)  # noqa: S311
    for number in range(20):
        holes, full = tmp_path / f"holes-{number}", tmp_path / f"full-{number}"
        with holes.open("wb") as file:
            file.truncate(3 * PIECE_BYTES + chance.randrange(PIECE_BYTES))
            for _ in range(chance.randrange(12)):
                file.seek(chance.randrange(3 * PIECE_BYTES))
                file.write(chance.randbytes(chance.randrange(1, 9000)))
        full.write_bytes(holes.read_bytes())
        assert disk_digest(full) == disk_digest(holes)
