"""Renders the files of a manifest that make its checkouts like clones: tags, origins, git's configuration. Pure.

tags/NAME/COMMIT    the tags of a checkout, as lines of .git/packed-refs (gitrepository-layout(5))
origins             where a checkout comes from, one a line: name of the repository, path in its checkout (`.` for the
                    checkout itself), URL, separated by tabs
gitconfig           configuration for every account: it may run git in the checkouts that belong to root
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from kimbox.render.boxfile import Pinned, PinnedLock, PinnedTag
from kimbox.spec import urls
from kimbox.spec.model import Box

#: Checkouts below this folder belong to the user of the guest, all others to root.
USER_HOME = "/home/vagrant/"


def render_checkouts(box: Box, lock: PinnedLock) -> dict[str, bytes]:
    """Returns the files that are not empty."""
    files = {}
    origins: list[str] = []
    trusted: list[str] = []
    for repository in box.repositories:
        pinned = lock.repositories.get(repository.name)
        if pinned is None:
            continue
        if pinned.tags:
            files[f"tags/{repository.name}/{pinned.commit}"] = packed_refs(pinned.tags)
        for inside, url in _parts(pinned):
            if not urls.is_folder(url):
                origins.append(f"{repository.name}\t{inside}\t{url}\n")
            if not repository.path.startswith(USER_HOME):
                trusted.append(repository.path if inside == "." else f"{repository.path}/{inside}")
    if origins:
        files["origins"] = "".join(origins).encode()
    if trusted:
        # Only root's: git runs programs that the configuration of a repository names, so root must not trust others.
        lines = [f"\tdirectory = {_quoted(path)}\n" for path in trusted]
        files["gitconfig"] = ("[safe]\n" + "".join(lines)).encode()
    return files


def packed_refs(tags: Mapping[str, PinnedTag]) -> bytes:
    """Returns tags as lines of .git/packed-refs."""
    return "".join(f"{tag.target} refs/tags/{name}\n" for name, tag in sorted(tags.items())).encode()


def tags_key(tags: Mapping[str, PinnedTag]) -> str:
    """Returns the name under which a guest records that it has these tags: 40 hex digits, as of a commit."""
    return hashlib.sha256(packed_refs(tags)).hexdigest()[:40]


def _parts(pinned: Pinned) -> Iterator[tuple[str, str]]:
    """Yields path in the checkout and URL, of a repository and of its submodules."""
    yield ".", pinned.url
    for inside, submodule in sorted(pinned.submodules.items()):
        yield inside, submodule.url


def _quoted(path: str) -> str:
    """Returns a path as a value of a git configuration (git-config(1), CONFIGURATION FILE)."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
