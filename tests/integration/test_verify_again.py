"""`kimbox verify` with a tiny image: built a second time, compared, and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ownhome
import pytest
import tinyimage
from refused import refused

from kimbox import paths
from kimbox.actions import prune
from kimbox.actions.verify import verify
from kimbox.errors import ImageError
from kimbox.image import namespace, obtain
from kimbox.image.build import rootfs

home = ownhome.home  # a fixture

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")


def test_a_second_build_is_compared_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal builds have equal digests; otherwise the file is named. `prune` keeps the image meanwhile."""
    box = tinyimage.tiny_box(tmp_path)
    with refused(ImageError, "image-not-found", name=box.name):
        verify(box, tinyimage.LOCKED)
    monkeypatch.setattr(rootfs, "build", tinyimage.fill)
    image = obtain.ensure(box, tinyimage.LOCKED)
    same = verify(box, tinyimage.LOCKED)
    assert (image.key, same.stored_sha256, ()) == (same.key, same.built_sha256, same.differences)

    def fill(*args: Any, **options: Any) -> Path:
        root = tinyimage.fill(*args, **options)
        namespace.call(["sh", "-c", "echo other >root/etc/hostname"], cwd=args[1])
        assert [] == prune.remove(prune.unused())
        return root

    monkeypatch.setattr(rootfs, "build", fill)
    other = verify(box, tinyimage.LOCKED)
    assert same.stored_sha256 == other.stored_sha256 != other.built_sha256
    assert "/etc/hostname" in "".join(line for difference in other.differences for line in difference.lines())
    assert [image.key] == [p.name for p in paths.images_dir().iterdir() if p.is_dir()]
