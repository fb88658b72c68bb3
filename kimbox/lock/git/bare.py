"""The bare repositories of mirrors on disk: creation, and what an interrupted or older kimbox left in them."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path

from kimbox import paths
from kimbox.errors import StateError
from kimbox.files import is_locked, locked, remove_tree, sync_folder
from kimbox.lock.git.command import git

#: Timeout of a walk through the history of all commits, in seconds.
WALK_TIMEOUT_S = 3600

#: A file of a mirror in which every commit under refs/kimbox is known to have its history.
_CHECKED = "kimbox-whole"

#: Prefix of a mirror that is being created. The name of the mirror, a hyphen and a random suffix follow.
_NEW = ".new-"

#: What git renames or removes in a mirror at the end of a command (see git-prune(1)). A pack may be large.
_UNFINISHED = ("objects/pack/tmp_*", "objects/??/tmp_obj_*", "objects/tmp_objdir-*")

_SEPARATOR = re.compile(r"[/:]")
_NOT_IN_A_SLUG = re.compile(r"[^A-Za-z0-9._-]")


def slug(url: str) -> str:
    """The first part of a mirror's file name: the last component of its URL."""
    last = _SEPARATOR.split(url.rstrip("/"))[-1].removesuffix(".git")
    return _NOT_IN_A_SLUG.sub("-", last).lstrip(".-")[:40] or "repository"


def lock_file(mirror: Path) -> Path:
    """The lock file of a mirror, locked while a process works on it."""
    return mirror.with_suffix(".lock")


def remains() -> list[Path]:
    """What killed processes left: mirrors, packs and objects that are not complete. Without those in use now."""
    folder = paths.mirrors_dir()
    found = [*folder.glob(f"{_NEW}*"), *(path for mirror in folder.glob("*.git") for path in _unfinished(mirror))]
    return sorted(path for path in found if not is_locked(lock_file(_mirror_of(path))))


def remove(path: Path) -> bool:
    """Removes a path that `remains` returned, unless a process works on its mirror. True if it was removed."""
    try:
        with locked(lock_file(_mirror_of(path))):
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except StateError:
        return False
    return True


def _unfinished(mirror: Path) -> list[Path]:
    return [path for pattern in _UNFINISHED for path in mirror.glob(pattern)]


def _mirror_of(path: Path) -> Path:
    """The mirror to which a path that `remains` found belongs."""
    name = path.relative_to(paths.mirrors_dir()).parts[0]
    return paths.mirrors_dir() / (name.removeprefix(_NEW).rpartition("-")[0] if name.startswith(_NEW) else name)


def prepare(path: Path) -> None:
    """Creates the repository if it is missing, removes what a killed git left, and checks what an older kimbox wrote.

    The caller holds the lock of `path`.
    """
    if not all((path / part).exists() for part in ("HEAD", "config", "objects", "refs")):
        _create(path)
    _sweep(path)
    if not is_checked(path):
        _check_history(path)


def is_checked(path: Path) -> bool:
    """Whether each commit under refs/kimbox has its history for certain."""
    return (path / _CHECKED).exists()


def has_history(path: Path, revisions: list[str]) -> bool:
    """Whether a repository has all commits of those revisions (see git-rev-list(1))."""
    args = ["rev-list", "--quiet", *revisions, "--"]
    return git(args, git_dir=path, check=False, timeout_s=WALK_TIMEOUT_S).code == 0


def _check_history(path: Path) -> None:
    """Removes the refs of commits without their history. An older kimbox kept such commits of shallow clones."""
    (path / "shallow").unlink(missing_ok=True)  # git takes a history that is cut off there as complete
    if not has_history(path, ["--glob=refs/kimbox/*"]):
        for ref in git(["for-each-ref", "--format=%(refname)", "refs/kimbox/"], git_dir=path).text.split():
            if not has_history(path, [ref]):
                git(["update-ref", "-d", ref], git_dir=path)
    (path / _CHECKED).touch()


def _create(path: Path) -> None:
    """Creates an empty bare repository at `path`, by one rename. The caller holds the lock of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{_NEW}{path.name}-"
    for leftover in path.parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # its git process may still be ending; `prune` removes the rest
            remove_tree(leftover)
    remove_tree(path)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        git(["init", "--quiet", "--bare", "--template=", temporary])
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def _sweep(path: Path) -> None:
    """Removes git's lock files and what is not complete. No process uses them: the caller holds the mirror's lock."""
    stale = [*path.glob("*.lock"), *(path / "refs").rglob("*.lock"), *path.glob("objects/pack/*.lock")]
    for left in [*stale, *_unfinished(path)]:
        with contextlib.suppress(OSError):
            remove_tree(left) if left.is_dir() else left.unlink()
