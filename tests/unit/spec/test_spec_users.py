"""`users` of a spec, and the file that the guest gets of each."""

from __future__ import annotations

from pathlib import Path

import attrs
import makebox
import makekeys
import pytest

from kimbox.errors import SpecError
from kimbox.lock.lockfile import Lock
from kimbox.render.manifest import ENVIRONMENT_FORMAT, render_manifest
from kimbox.render.users import user_file
from kimbox.spec.load import load_box
from kimbox.spec.model import Box, User


def load(folder: Path, text: str) -> Box:
    """Loads a spec with these keys."""
    spec = folder / "kimbox.yaml"
    spec.write_text(f"kimbox: 1\nname: x\nimage: {{packages: []}}\n{text}\n")
    return load_box(spec)


def test_values(tmp_path: Path) -> None:
    """Keys are written out or in a file beside the spec; everything but the name has a default."""
    assert () == load(tmp_path, "").users
    key = " ".join(makekeys.ssh(tmp_path, "ada").public.split()[:2])
    box = load(tmp_path, "users: [{name: ada, keys: [ada.pub], sudo: true, groups: [adm, video]}, {name: bob_2}]")
    assert (User("ada", (key,), True, ("adm", "video")), User("bob_2")) == box.users


def test_the_manifest(tmp_path: Path) -> None:
    """A file for each account. Older images refuse such a manifest. One without accounts stays as it was."""
    box = attrs.evolve(makebox.make_box(tmp_path), users=(User("ada", ("ssh-ed25519 A",), True, ("adm",)), User("bob")))
    lock = Lock("d" * 64, "e" * 64, {})
    manifest = render_manifest(box, lock)
    assert (b"yes adm\nssh-ed25519 A\n", 0o644) == manifest["users/ada"]
    assert (b"no -\n", 0o644) == manifest["users/bob"]
    assert f"KIMBOX_MANIFEST_FORMAT='{ENVIRONMENT_FORMAT}'" in manifest["manifest.env"][0].decode().replace('"', "'")
    assert not [path for path in render_manifest(attrs.evolve(box, users=()), lock) if path.startswith("users")]
    assert b"no a,b\n" == user_file(User("x", groups=("a", "b")))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("users: [{sudo: true}]", "missing-key"),
        ("users: [{name: root}]", "bad-name"),
        ("users: [{name: vagrant}]", "bad-name"),
        ("users: [{name: operator}]", "bad-name"),
        ("users: [{name: Ada}]", "bad-name"),
        ("users: [{name: ../x}]", "bad-name"),
        ("users: [{name: ada, groups: ['a b']}]", "bad-name"),
        ("users: [{name: ada, groups: [adm, adm]}]", "duplicate"),
        ("users: [{name: ada}, {name: ada}]", "duplicate"),
        ("users: [{name: ada, keys: ['ssh-ed25519 nonsense']}]", "bad-public-key"),
        ("users: [{name: ada, password: x}]", "unknown-key"),
    ],
)
def test_faults(tmp_path: Path, text: str, code: str) -> None:
    """Each is in its line: names that the system has, names that lead elsewhere, keys that are none, passwords."""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert [(4, code)] == [(one.line, one.code) for one in caught.value.problems]
