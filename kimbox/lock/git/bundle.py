"""Bundles of pinned commits, which a guest receives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.mirror import TRANSFER_TIMEOUT_S, Mirror

#: The ref of a bundle that points to the commit that the bundle delivers.
PIN_REF = "refs/kimbox/pin"

NO_TAGS: Mapping[str, str] = MappingProxyType({})


def write_bundle(mirror: Mirror, commit: str, path: Path, tags: Mapping[str, str] = NO_TAGS) -> None:
    """Writes a git bundle of `commit` and its history, under refs/kimbox/pin. The file appears only when complete.

    `tags`: tags to write into the bundle, by name, and the objects of the mirror that they point to.

    If the mirror is damaged, the commit is fetched again. Raises GitError: `commit-not-found` if the mirror lacks the
    commit, `mirror-damaged` if it cannot be fetched again, `lock-disagrees` for a tag that is not in its history.
    """
    try:
        _write(mirror, commit, path, tags)
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
        _write(mirror, commit, path, tags)


def _write(mirror: Mirror, commit: str, path: Path, tags: Mapping[str, str]) -> None:
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
            args = ["bundle", "create", "--quiet", str(temporary), PIN_REF, *_set_tags(mirror, commit, tags)]
            git(args, git_dir=mirror.path, timeout_s=TRANSFER_TIMEOUT_S)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            git(["update-ref", "-d", PIN_REF], git_dir=mirror.path, check=False)


def _set_tags(mirror: Mirror, commit: str, tags: Mapping[str, str]) -> list[str]:
    """Makes these tags the only ones of the mirror, whose own are not used otherwise. Returns their refs."""
    if not tags:
        return []
    old = git(["for-each-ref", "--format=%(refname)", "refs/tags/"], git_dir=mirror.path).stdout.splitlines()
    refs = {f"refs/tags/{name}": target for name, target in sorted(tags.items())}
    update = ["update-ref", "-z", "--stdin"]
    git(update, git_dir=mirror.path, stdin=b"".join(b"delete " + ref + b"\0\0" for ref in old))
    new = "".join(f"update {ref}\0{target}\0\0" for ref, target in refs.items())
    git(update, git_dir=mirror.path, stdin=new.encode())
    args = ["rev-list", "--max-count=1", *refs, "--not", commit, "--"]
    if git(args, git_dir=mirror.path, timeout_s=TRANSFER_TIMEOUT_S).text:
        raise GitError(
            f"{mirror.where}: the lock has a tag that is not in the history of the commit {commit}",
            code="lock-disagrees",
            hint=f"`kimbox lock --update {mirror.name}` corrects it",
            fields={"repository": mirror.name, "commit": commit},
        )
    return list(refs)
