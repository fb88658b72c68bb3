"""The files of a manifest that make checkouts like clones."""

from __future__ import annotations

from pathlib import Path

import makebox

from kimbox.lock.git.tags import Tag
from kimbox.lock.lockfile import Lock, PinnedRepository, PinnedSubmodule
from kimbox.render.checkouts import render_checkouts, tags_key
from kimbox.spec.model import Repository

A, B = "a" * 40, "b" * 40


def test_each_file_has_what_the_guest_reads(tmp_path: Path) -> None:
    """Tags as packed refs, origins of submodules, and a path that git's configuration must have in quotes."""
    code = Repository("code", "https://x.org/code", False, "main", "/opt/code")
    mine = Repository("mine", "https://x.org/mine", False, "main", "/home/vagrant/.mine")
    near = {"v2": Tag(A, B), "v1": Tag(A)}
    pinned = PinnedRepository(code.url, "main", A, B, {"a #b": PinnedSubmodule("https://x.org/lib", B)}, near)
    lock = Lock("d" * 64, None, {"code": pinned, "mine": PinnedRepository(mine.url, "main", B, A)})
    assert render_checkouts(makebox.make_box(tmp_path, repositories=(code, mine)), lock) == {
        f"tags/code/{A}": f"{A} refs/tags/v1\n{B} refs/tags/v2\n".encode(),
        "origins": b"code\t.\thttps://x.org/code\ncode\ta #b\thttps://x.org/lib\nmine\t.\thttps://x.org/mine\n",
        "gitconfig": b'[safe]\n\tdirectory = "/opt/code"\n\tdirectory = "/opt/code/a #b"\n',
    }
    assert tags_key(near) != tags_key({**near, "v1": Tag(B)})


def test_a_box_without_repositories_has_no_such_file(tmp_path: Path) -> None:
    """Its manifest stays as it was."""
    assert render_checkouts(makebox.make_box(tmp_path), Lock("d" * 64, None, {})) == {}
