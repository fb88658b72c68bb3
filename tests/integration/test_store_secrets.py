"""The scan at the end of a build: no image contains a key that was created during the build."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import tinyimage

from kimbox.errors import ImageError
from kimbox.image import namespace, obtain
from kimbox.image.build import rootfs
from kimbox.image.store import images as store

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEYlA2K1gPQPzV0nRXFUmqw1xQDlVBQQ0cRyXXyUbHpB\n"


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store in an empty home."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return tmp_path / "home/images"


def building(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes builds tiny. A script adds files to the root."""

    def fill(*args: Any, **options: Any) -> Path:
        root = tinyimage.fill(*args, **options)
        namespace.call(["sh", "-eu", "-c", script, "sh", KEY], cwd=args[1])
        return root

    monkeypatch.setattr(rootfs, "build", fill)


def test_a_key_that_the_build_has_created_is_refused(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the key, the hint helps, the log is kept, and the store has no image."""
    building(monkeypatch, 'printf %s "$1" >root/etc/made.key')
    with pytest.raises(
        ImageError, match=r"could not be built: the image holds.*\n  /etc/made.key: private key"
    ) as caught:
        obtain.ensure(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
    assert "`provision`" in (caught.value.hint or "")
    key = obtain.key_of(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
    assert str(images / f"{key}.failed.log") == caught.value.fields["log"]
    assert (None, True) == (store.find(key), (images / f"{key}.failed.log").exists())


def test_a_key_that_a_package_ships_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the facts of the image and in its log."""
    digest = hashlib.md5(KEY.encode(), usedforsecurity=False).hexdigest()
    building(
        monkeypatch,
        'mkdir -p root/var/lib/dpkg/info; printf %s "$1" >root/etc/shipped.key; '
        f"echo '{digest}  etc/shipped.key' >root/var/lib/dpkg/info/some:amd64.md5sums",
    )
    made = obtain.ensure(tinyimage.tiny_box(tmp_path), tinyimage.LOCKED)
    kept = {"path": "/etc/shipped.key", "kind": "private key (PEM)", "package": "some"}
    assert [kept] == made.facts["kept_keys"]
    log = (made.disk.parent / "build.log").read_text()
    assert "kept: /etc/shipped.key: private key (PEM), of the package some\n" in log
