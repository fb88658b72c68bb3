"""Checks the content of a commit before it is pinned: its size, and files that Git LFS keeps elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.git.submodules import Submodule
from kimbox.spec.nodes import shown

#: Maximum size of all files of a commit, in bytes. The size of the pack limits nothing: it is compressed.
MAX_TREE_BYTES = 16 << 30

#: First line of a Git LFS pointer, which a commit holds in place of a large file; and its maximum size, in bytes.
LFS_HEAD = "version https://git-lfs.github.com/spec/v1"
LFS_BYTES = 1024

#: Timeout of a search through every file of a commit, in seconds.
_SEARCH_TIMEOUT_S = 600


def check(mirror: Mirror, commit: str, submodules: Mapping[str, Submodule]) -> list[str]:
    """Warnings about a commit and its submodules.

    Raises GitError (`repository-too-large`), with the largest file, if the files are larger than MAX_TREE_BYTES.
    """
    if mirror.is_folder:  # lock/git/folder.py limits its size, and it has no LFS pointers
        return []
    warnings = _check(mirror, commit, "")
    for path, submodule in submodules.items():
        warnings += _check(submodule.mirror, submodule.commit, f"{path}/")
    return warnings


def _check(mirror: Mirror, commit: str, prefix: str) -> list[str]:
    _check_size(mirror, commit, prefix)
    pointer = _lfs_pointer(mirror, commit)
    if pointer is None:
        return []
    return [
        f"repository {mirror.name}: {shown(prefix + pointer)} is kept by Git LFS, which kimbox does not fetch: the box "
        "gets a pointer of three lines in place of it, and of every other such file"
    ]


def _check_size(mirror: Mirror, commit: str, prefix: str) -> None:
    listed = git(["ls-tree", "-r", "-l", "-z", "--full-tree", commit], git_dir=mirror.path).stdout
    total, largest, name = 0, 0, b""
    for entry in listed.split(b"\0"):
        head, _, path = entry.partition(b"\t")
        size = head.rpartition(b" ")[2]
        if size.isdigit():
            total += int(size)
            if int(size) > largest:
                largest, name = int(size), path
    if total > MAX_TREE_BYTES:
        file = shown(prefix + name.decode(errors="replace"))
        raise GitError(
            f"{mirror.where}: the files of commit {commit} are {total >> 20} MiB, more than "
            f"{MAX_TREE_BYTES >> 20} MiB; the largest is {file} with {largest >> 20} MiB",
            code="repository-too-large",
            hint="remove large data from the repository; a provision step can download it to another disk than root",
            fields={"repository": mirror.name, "commit": commit, "path": prefix + name.decode(errors="replace")},
        )


def _lfs_pointer(mirror: Mirror, commit: str) -> str | None:
    """The path of the first file of which the commit holds only a Git LFS pointer; None if there is none."""
    if not _search(mirror, commit, "filter=lfs", ":(glob)**/.gitattributes"):
        return None
    for path in _search(mirror, commit, LFS_HEAD):
        size = git(["cat-file", "-s", f"{commit}:{path}"], git_dir=mirror.path, check=False).text
        if size.isdigit() and int(size) <= LFS_BYTES:
            blob = git(["cat-file", "blob", f"{commit}:{path}"], git_dir=mirror.path).stdout
            if blob.startswith(LFS_HEAD.encode()):
                return path
    return None


def _search(mirror: Mirror, commit: str, text: str, *paths: str) -> list[str]:
    """Paths of the files of a commit that contain `text`; `paths` limits the search (git pathspecs)."""
    args = ["grep", "-l", "-z", "--no-color", "--full-name", "-I", "-F", "-e", text, commit, "--", *paths]
    answer = git(args, git_dir=mirror.path, check=False, timeout_s=_SEARCH_TIMEOUT_S)
    names = answer.stdout.decode(errors="surrogateescape").split("\0")
    return [name.partition(":")[2] for name in names if name]
