"""What lies between two commits, from a mirror alone: no server is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.lock.git.command import git
from kimbox.lock.git.mirror import Mirror, Pin, slug
from kimbox.lock.git.refs import COMMIT

#: No more commits than this are listed between two others; the rest is a number.
MAX_LINES = 40

#: Characters of a commit's subject that are shown.
SUBJECT_CHARACTERS = 100


@attrs.frozen
class Between:
    """The way from one commit to another: what came, and what went away (after a force-push, or on the way back)."""

    #: Abbreviated commit and subject, newest first; MAX_LINES of them at most, both together.
    came: tuple[str, ...]
    went: tuple[str, ...]
    #: How many there are in all.
    came_count: int
    went_count: int

    @property
    def left_out(self) -> int:
        """How many of them are not listed."""
        return self.came_count + self.went_count - len(self.came) - len(self.went)


def between(url: str, old: str, new: str) -> Between | None:
    """The commits between two others of a repository that a lock names; None where no mirror of it has both.

    A lock's URL lacks the credentials that the mirror was made with, so mirrors of a like name are looked through: a
    commit's name is its content, whichever mirror has it.
    """
    if not (COMMIT.fullmatch(old) and COMMIT.fullmatch(new)):
        return None
    candidates = sorted(paths.mirrors_dir().glob(f"{slug(url)}-*.git"))
    return next((found for path in candidates if (found := _between(path, old, new))), None)


def _between(git_dir: Path, old: str, new: str) -> Between | None:
    span = f"{old}...{new}"
    counted = git(["rev-list", "--count", "--left-right", span, "--"], git_dir=git_dir, check=False)
    if counted.code != 0:
        return None
    went_count, came_count = map(int, counted.text.split())
    form = ["--left-right", "--no-commit-header", "--format=%m%h %s"]
    listed = git(["rev-list", *form, f"--max-count={MAX_LINES}", span, "--"], git_dir=git_dir)
    came: list[str] = []
    went: list[str] = []
    for line in listed.stdout.decode(errors="replace").split("\n"):
        if line:
            (came if line[0] == ">" else went).append(_shown(line[1:]))
    return Between(tuple(came), tuple(went), came_count, went_count)


def rewritten(mirror: Mirror, ref: str, old: str, new: Pin) -> str | None:
    """What is not as it should be where `ref` meant `old` and now means `new`, in words; None for an ordinary move.

    A tag is made to stay, and a branch to grow.
    """
    if old == new.commit or new.ref is None:
        return None
    where = f"repository {mirror.name}"
    if new.ref.startswith("refs/tags/"):
        return f"{where}: the tag {ref} was moved from {old} to {new.commit}"
    if contains(mirror, new.commit, old):
        return None
    branch = "the default branch" if ref == "HEAD" else f"the branch {ref}"
    return f"{where}: {branch} was force-pushed: {old} is no longer part of it, it is at {new.commit}"


def contains(mirror: Mirror, commit: str, ancestor: str) -> bool:
    """Whether `ancestor` is part of the history of `commit`, all of which the mirror holds."""
    answer = git(["merge-base", "--is-ancestor", ancestor, commit], git_dir=mirror.path, check=False)
    return answer.code == 0


def describe(found: Between | None) -> list[str]:
    """The commits as lines of text: `+` for what came, `-` for what went away."""
    if found is None:
        return ["(the log between them is not in this machine's mirror)"]
    lines = [f"+ {line}" for line in found.came] + [f"- {line}" for line in found.went]
    return lines + ([f"({found.left_out} more)"] if found.left_out else [])


def as_json(found: Between | None) -> Mapping[str, object] | None:
    """The same for --json."""
    return attrs.asdict(found) | {"left_out": found.left_out} if found else None


def _shown(text: str) -> str:
    """One line of a stranger's text, short and without what could steer a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text.strip())[:SUBJECT_CHARACTERS]
