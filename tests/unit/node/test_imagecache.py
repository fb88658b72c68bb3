"""The cache of images on a node: by digest, with a bound, and never a wrong image."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from refused import refused

from kimbox.errors import ImageError, StateError
from kimbox.node import imagecache


def served(folder: Path, data: bytes) -> tuple[str, int, str]:
    """Writes an image; returns its digest, size and URL."""
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"served-{digest[:8]}"
    path.write_bytes(data)
    return digest, len(data), path.as_uri()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(imagecache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return imagecache.folder()


def test_an_image_travels_once(tmp_path: Path, cache: Path) -> None:
    """The second job finds it, though its source is gone."""
    digest, size, url = served(tmp_path, b"image")
    for _ in range(2):
        with imagecache.leased(cache, digest, size, url, 100) as path:
            assert b"image" == path.read_bytes()
        Path(url.removeprefix("file://")).unlink(missing_ok=True)


def test_a_wrong_image_is_not_kept(tmp_path: Path, cache: Path) -> None:
    """Neither one with other bytes, nor one that is longer, nor another kind of URL."""
    digest, size, url = served(tmp_path, b"image")
    for wrong in (b"imaGe", b"image and more", b"imag"):
        Path(url.removeprefix("file://")).write_bytes(wrong)
        with refused(ImageError, "bad-digest"), imagecache.leased(cache, digest, size, url, 100):
            pass
    with refused(ImageError, "download-failed"), imagecache.leased(cache, digest, size, "ftp://x/y", 100):
        pass
    assert [] == list(cache.glob("*.qcow2"))
    assert [] == list(cache.glob(".new-*"))


def test_the_oldest_image_makes_room(tmp_path: Path, cache: Path) -> None:
    """One that a job uses stays, whatever its age."""
    images = [served(tmp_path, bytes([number]) * 40) for number in range(3)]
    with imagecache.leased(cache, *images[0], 100) as used:
        os.utime(used, (1, 1))
        with imagecache.leased(cache, *images[1], 100) as path:
            os.utime(path, (2, 2))
        with imagecache.leased(cache, *images[2], 100):
            names = {path.stem for path in cache.glob("*.qcow2")}
            assert {images[0][0], images[2][0]} == names


def test_a_folder_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user could replace the images in it."""
    monkeypatch.setenv(imagecache.FOLDER_VARIABLE, str(tmp_path))
    imagecache.folder().chmod(0o777)
    with refused(StateError, "folder-not-private"):
        imagecache.folder()
