"""`kimbox verify` with a tiny image: built a second time, compared, and removed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tinyimage
import tinypackage
from clirun import Kimbox, result
from clirun import kimbox as kimbox
from clirun import world as world
from refused import refused

from kimbox import paths
from kimbox.actions import prune
from kimbox.actions.verify import verify
from kimbox.errors import ImageError
from kimbox.image import namespace, obtain
from kimbox.image.build import rootfs
from kimbox.lock.lockfile import read_lock

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


def test_files_that_differ_in_each_build_are_recorded_and_expected(
    kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--deep` names them and writes them to the lock. A later `verify` expects them, and nothing else."""
    calls = itertools.count()

    def fill(*args: Any, **options: Any) -> Path:
        root = tinyimage.fill(*args, **options)
        script = "head -c $((1 + $1 * 5000)) /dev/zero >root/etc/random; touch root/etc/cache-$1"
        namespace.call(["sh", "-c", f"{script}; {more}", "sh", str(next(calls))], cwd=args[1])
        return root

    def verified(*words: str) -> tuple[int, dict[str, Any]]:
        code, out, _ = kimbox("--json", "verify", *words)
        return code, result(out, "verify")

    more = ":"
    monkeypatch.setattr(rootfs, "build", fill)
    spec = world / "work/kimbox.yaml"
    spec.write_text(tinypackage.SPEC)
    assert 0 == kimbox("build")[0]
    lock = spec.with_suffix(".lock")
    before = lock.read_text()
    code, plain = verified()
    assert (1, "different", {}) == (code, plain["outcome"], plain["varying"])
    assert ["/etc/cache-0", "/etc/cache-1", "/etc/random"] == plain["unexpected"]
    assert before == lock.read_text()
    files = {"/etc": "entries", "/etc/random": "content"}
    code, deep = verified("--deep")
    assert (0, "expected", files, True) == (code, deep["outcome"], deep["varying"], deep["recorded"])
    assert files == read_lock(lock).varying
    code, plain = verified()
    assert (0, "expected", files, False) == (code, plain["outcome"], plain["varying"], plain["same"])
    assert 0 == kimbox("lock", "--check")[0]
    # A program of the image that was changed differs from both new builds.
    more = "echo other >root/etc/hostname"
    for words in ([], ["--deep"]):
        code, changed = verified(*words)
        assert (1, ["/etc/hostname"], files) == (code, changed["unexpected"], changed["varying"])
    assert files == read_lock(lock).varying
    assert [] == [p.name for p in paths.images_dir().iterdir() if "verify" in p.name and p.is_dir()]
