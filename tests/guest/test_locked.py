"""A box from its lock in a real guest: submodules, signatures, --locked, --offline, and the output of diff."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Kimbox

from kimbox import run
from kimbox.lock.lockfile import read_lock

pytestmark = pytest.mark.guest


def git(folder: Path, *words: str) -> str:
    """Runs git in a folder with an identity and a signing key. Returns the output."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    signing = ["-c", "gpg.format=ssh", "-c", f"user.signingKey={folder.parent}/key"]
    return run.run(["git", *identity, *signing, "-C", str(folder), *words]).stdout.strip()


def make(folder: Path, text: str) -> str:
    """Makes a repository with one file, or adds a commit to it. Returns the commit."""
    if not folder.exists():
        folder.mkdir()
        git(folder, "init", "-q")
    (folder / "file").write_text(text)
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-S", "-m", text.strip())
    return git(folder, "rev-parse", "HEAD")


def link(folder: Path, path: str, commit: str) -> None:
    """Commits another commit of the submodule `path`."""
    (folder / ".gitmodules").write_text(f'[submodule "{path}"]\n\tpath = {path}\n\turl = ../inner\n')
    git(folder, "add", ".gitmodules")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    git(folder, "commit", "-q", "-S", "-m", "inner")


def test_a_box_matches_its_lock(kimbox: Kimbox) -> None:
    """A signed repository with a submodule is provisioned, moved, compared, and provisioned without its servers."""
    folder = kimbox.folder
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"])
    old_inner = make(folder / "inner", "inner one\n")
    make(folder / "tool", "tool one\n")
    link(folder / "tool", "lib/inner", old_inner)
    url, key = f"file://{folder}/tool", (folder / "key.pub").read_text().strip()
    kimbox.spec("locked", f"repositories: {{tool: {{url: '{url}', path: /opt/tool, verify: {{keys: ['{key}']}}}}}}\n")
    assert 3 == kimbox("up", "--locked", check=False).code
    kimbox("lock")
    kimbox("lock", "--check", "--remote")
    kimbox("up", "--locked")
    look = "cat /opt/tool/file /opt/tool/lib/inner/file && sudo git -C /opt/tool/lib/inner rev-parse HEAD"
    assert f"tool one\ninner one\n{old_inner}\n" == kimbox.sh("locked", look)
    assert "are equal" in kimbox("diff").stdout

    new_inner = make(folder / "inner", "inner two\n")
    link(folder / "tool", "lib/inner", new_inner)
    make(folder / "tool", "tool two\n")
    kimbox("lock", "--update", "tool")
    compared = kimbox.json("diff")
    assert ["tool two", "inner"] == [line.split(" ", 1)[1] for line in compared["repositories"]["tool"]["log"]["came"]]
    assert f"submodule lib/inner: {old_inner[:12]} -> {new_inner[:12]}" in kimbox("diff").stdout
    for name in ("inner", "tool"):
        (folder / name).rename(folder / f"{name}-away")
    kimbox("halt")
    kimbox("up", "--locked", "--offline")
    assert f"tool two\ninner two\n{new_inner}\n" == kimbox.sh("locked", look)
    assert "are equal" in kimbox("diff").stdout
    assert new_inner == read_lock(folder / "kimbox.lock").repositories["tool"].submodules["lib/inner"].commit
    kimbox("destroy", "-y")
