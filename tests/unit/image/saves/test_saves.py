"""Indexes, manifests and packs of a hostile store: each wrong number is an error, and none takes much memory."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import attrs
import pytest
import zstandard

from kimbox.errors import KimboxError
from kimbox.image.saves import index, manifest, packs
from kimbox.image.saves.index import CHUNK_BYTES, ZEROS, Chunk
from kimbox.image.saves.manifest import Base, Contents, Folder, Manifest, Stored
from kimbox.transfer.stores.folder import FolderStore

HEX = "a" * 64
DISK_BYTES = 10 * CHUNK_BYTES + 512
PACKS = [5000]
CHUNKS = [Chunk(0, b"1" * 32, 0, 0, 100), Chunk(3, b"2" * 32), Chunk(10, b"3" * 32, 0, 4900, 100)]

SAVE = Manifest(
    7, "tiny", "tiny", "2026-01-31T12:00:00Z", "0.1.0", HEX, HEX, HEX, 2, 1 << 30,
    Contents(DISK_BYTES, Stored(f"indexes/000007-{HEX}", 176), 3), Base(HEX, "raw", HEX),
    (Stored(f"packs/000005-{HEX}", 5000),),
    {name: Stored(f"files/000001-{HEX}", 10) for name in ("kimbox.yaml", "kimbox.lock", "image.json")},
    {"setup": Folder("c" * 40, Stored(f"files/000002-{HEX}", 20))}, (5, 6), 100,
)  # fmt: skip


def test_an_index_there_and_back() -> None:
    """What was packed is parsed."""
    assert CHUNKS == index.parse_index(index.pack_index(CHUNKS), DISK_BYTES, PACKS)
    assert (CHUNK_BYTES, 512) == (index.length_of(9, DISK_BYTES), index.length_of(10, DISK_BYTES))


@pytest.mark.parametrize(
    "chunks",
    [
        [Chunk(11, b"1" * 32)],
        [CHUNKS[2], CHUNKS[0]],
        [CHUNKS[0], CHUNKS[0]],
        [attrs.evolve(CHUNKS[0], pack=1)],
        [attrs.evolve(CHUNKS[0], offset=4901)],
        [attrs.evolve(CHUNKS[0], stored_bytes=0)],
        [attrs.evolve(CHUNKS[1], offset=1)],
        [Chunk(1, b"1" * 32, ZEROS, 0, 5)],
    ],
)
def test_an_index_with_a_wrong_number(chunks: list[Chunk]) -> None:
    """It is refused."""
    with pytest.raises(ValueError, match=r"chunk|pack"):
        index.parse_index(index.pack_index(chunks), DISK_BYTES, PACKS)


def test_bytes_that_are_no_index() -> None:
    """They are refused, also if they are cut off or say that they have another number of chunks."""
    good = index.pack_index(CHUNKS)
    huge = good[:16] + struct.pack("<I", 0xFFFFFFFF) + good[20:]
    for data in (b"", good[:-1], good + b"x", b"x" + good[1:], huge):
        with pytest.raises(ValueError, match="index"):
            index.parse_index(data, DISK_BYTES, PACKS)


def test_a_manifest_there_and_back() -> None:
    """What was packed is parsed."""
    assert SAVE == manifest.parse_manifest(manifest.pack_manifest(SAVE), 7, "store")


def packed(change: dict[str, Any]) -> bytes:
    """Returns the manifest with other values, and a right digest."""
    value = json.loads(manifest.pack_manifest(SAVE).partition(b"\n")[2]) | change
    body = json.dumps(value).encode()
    return b"kimbox-save 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.parametrize(
    "change",
    [
        {"number": 8},
        {"kept": [7]},
        {"machine": "../x"},
        {"box": "x" * 100},
        {"saved_at": "\u001b[2J"},
        {"packs": [{"name": "packs/../../etc/passwd", "size_bytes": 1}]},
        {"packs": [{"name": f"packs/000001-{HEX}", "size_bytes": 1 << 40}]},
        {"packs": [{"name": f"files/000001-{HEX}", "size_bytes": 1}]},
        {"packs": [{"name": f"packs/000001-{HEX}\n", "size_bytes": 1}]},
        {"disk": {"size_bytes": 1 << 60, "index": {"name": f"indexes/000007-{HEX}", "size_bytes": 176}, "chunks": 0}},
        {"disk": {"size_bytes": 1, "index": {"name": f"indexes/000007-{HEX}", "size_bytes": 1 << 40}, "chunks": 0}},
        {"files": {}},
        {"more": 1},
        {"cpus": True},
        {"added_bytes": -1},
    ],
)
def test_a_manifest_with_a_wrong_value(change: dict[str, Any]) -> None:
    """It is refused with its name, although its digest is right."""
    with pytest.raises(KimboxError) as caught:
        manifest.parse_manifest(packed(change), 7, "store")
    assert ("save-damaged", "saves/000007.json") == (caught.value.code, caught.value.fields["object"])


def test_another_format() -> None:
    """It is said, and not called damage."""
    with pytest.raises(KimboxError) as caught:
        manifest.parse_manifest(packed({"format": 2}), 7, "store")
    assert "unsupported-format" == caught.value.code


def stored(folder: Path, data: bytes) -> tuple[FolderStore, Stored]:
    """Puts a pack into a store."""
    store, name = FolderStore(folder), f"packs/000001-{hashlib.sha256(data).hexdigest()}"
    (folder / "data").write_bytes(data)
    store.write(name, folder / "data")
    return store, Stored(name, len(data))


@pytest.mark.parametrize("form", ["bomb", "bomb of unknown size", "short", "long", "not zstd", "other data", "window"])
def test_a_hostile_pack(form: str, tmp_path: Path) -> None:
    """A chunk that unpacks to another size or other bytes is an error that names pack and chunk."""
    right = b"right".ljust(CHUNK_BYTES, b"!")
    frames = {
        "bomb": zstandard.compress(bytes(1 << 28)),
        "bomb of unknown size": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 26)),
        "short": zstandard.compress(right[:-1]),
        "long": zstandard.compress(right) + zstandard.compress(right),
        "not zstd": b"x" * 100,
        "other data": zstandard.compress(right[::-1]),
        "window": zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
        ).compress(right),
    }
    store, pack = stored(tmp_path, frames[form])
    chunk = Chunk(4, index.digest_of(right), 0, 0, pack.size_bytes)
    with pytest.raises(KimboxError) as caught:
        list(packs.fetch(store, [pack], [chunk], DISK_BYTES, lambda _: None))
    assert ("save-damaged", pack.name, "4") == (
        caught.value.code, caught.value.fields["object"], caught.value.fields["chunk"],
    )  # fmt: skip


def test_neighbours_are_read_at_once(tmp_path: Path) -> None:
    """Chunks of a pack come with one request, each with its own bytes."""
    contents = [bytes([number]) * CHUNK_BYTES for number in range(1, 5)]
    frames = [zstandard.compress(one) for one in contents]
    store, pack = stored(tmp_path, b"".join(frames))
    chunks, at = [], 0
    for number, (data, frame) in enumerate(zip(contents, frames, strict=True)):
        chunks.append(Chunk(number, index.digest_of(data), 0, at, len(frame)))
        at += len(frame)
    reads: list[int] = []
    found = dict(packs.fetch(store, [pack], reversed(chunks), DISK_BYTES, reads.append))
    assert (dict(enumerate(contents)), 1) == (found, len(reads))
