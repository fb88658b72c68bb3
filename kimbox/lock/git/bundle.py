"""Bundles of pinned commits, which a guest receives."""

from __future__ import annotations

from pathlib import Path

from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.mirror import TRANSFER_TIMEOUT_S, Mirror

#: The ref of a bundle that points to the commit that the bundle delivers.
PIN_REF = "refs/kimbox/pin"


def write_bundle(mirror: Mirror, commit: str, path: Path) -> None:
    """Writes a git bundle of `commit` and its history, under refs/kimbox/pin. The file appears only when complete.

    If the mirror is damaged, the commit is fetched again. Raises GitError: `commit-not-found` if the mirror lacks the
    commit, `mirror-damaged` if it cannot be fetched again.
    """
    try:
        _write(mirror, commit, path)
    except GitError as error:
        if error.code != "git-failed" or mirror.is_whole(commit):
            raise
        try:
            mirror.repair(commit)
        except GitError as reason:
            raise GitError(
                f"{mirror.where}: this machine's mirror is damaged, and the commit {commit} cannot be fetched again: "
                f"{reason.message}",
                code="mirror-damaged",
                hint=f"remove {mirror.path}; the next command fetches everything again",
                fields={"repository": mirror.name, "commit": commit},
                stderr=error.stderr,
            ) from None
        _write(mirror, commit, path)


def _write(mirror: Mirror, commit: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with mirror.opened():
        if not mirror.holds(commit):
            raise GitError(
                f"{mirror.where}: the mirror does not hold commit {commit}",
                code="commit-not-found",
                hint="run `kimbox lock` to fetch it",
                fields={"repository": mirror.name, "commit": commit},
            )
        git(["update-ref", "--no-deref", PIN_REF, commit], git_dir=mirror.path)
        try:
            args = ["bundle", "create", "--quiet", str(temporary), PIN_REF]
            git(args, git_dir=mirror.path, timeout_s=TRANSFER_TIMEOUT_S)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            git(["update-ref", "-d", PIN_REF], git_dir=mirror.path, check=False)
