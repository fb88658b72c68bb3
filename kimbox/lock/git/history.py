"""Facts about commits, read from the mirrors of this host: those between two others, and dates. Uses no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.lock.git.bare import slug
from kimbox.lock.git.command import git
from kimbox.lock.git.mirror import Mirror, Pin
from kimbox.lock.git.refs import COMMIT

#: Maximum number of commits that are listed. The others are only counted.
MAX_LINES = 40

#: Maximum length of a commit's subject, in characters; the rest is cut off.
SUBJECT_CHARACTERS = 100

#: A date of git in the form of ISO 8601 (`%cI`). A commit can contain any text as its date.
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})")


@attrs.frozen
class Between:
    """The commits that differ between an old and a new commit.

    `came` are only in the history of the new one, `went` only in that of the old one (after a force-push, for example).
    """

    #: Abbreviated commit and subject, newest first; MAX_LINES at most, both lists together.
    came: tuple[str, ...]
    went: tuple[str, ...]
    #: Number of commits, listed or not.
    came_count: int
    went_count: int

    @property
    def left_out(self) -> int:
        """Number of commits that are not listed."""
        return self.came_count + self.went_count - len(self.came) - len(self.went)


def between(url: str, old: str, new: str) -> Between | None:
    """The commits between two others of a repository. None if no mirror has both.

    Any mirror that has the commits gives the same answer.
    """
    if not (COMMIT.fullmatch(old) and COMMIT.fullmatch(new)):
        return None
    return next((commits for path in _mirrors(url) if (commits := _between(path, old, new))), None)


def date_of(url: str, commit: str) -> str | None:
    """The date on which a commit of a repository was made, in ISO 8601. None if no mirror has the commit."""
    if COMMIT.fullmatch(commit):
        for path in _mirrors(url):
            shown = git(["log", "-1", "--format=%cI", commit, "--"], git_dir=path, check=False)
            if shown.code == 0 and _DATE.fullmatch(shown.text):
                return shown.text
    return None


def _mirrors(url: str) -> list[Path]:
    """The mirrors that may be that of a URL in a lock.

    A lock's URL lacks the credentials of the mirror's URL, so the mirror's exact name is not known: these are all
    mirrors with the same slug.
    """
    return sorted(paths.mirrors_dir().glob(f"{slug(url)}-*.git"))


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
    """A warning if a tag moved, or a branch was force-pushed, from `old` to `new`. None for any other move."""
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
    """Whether `ancestor` is in the history of `commit`. The mirror must have `commit`."""
    answer = git(["merge-base", "--is-ancestor", ancestor, commit], git_dir=mirror.path, check=False)
    return answer.code == 0


def describe(commits: Between | None) -> list[str]:
    """The commits as lines of text: `+` before those that came, `-` before those that went."""
    if commits is None:
        return ["(the log between them is not in this machine's mirror)"]
    lines = [f"+ {line}" for line in commits.came] + [f"- {line}" for line in commits.went]
    return lines + ([f"({commits.left_out} more)"] if commits.left_out else [])


def as_json(commits: Between | None) -> Mapping[str, object] | None:
    """The commits for `--json`."""
    return attrs.asdict(commits) | {"left_out": commits.left_out} if commits else None


def _shown(text: str) -> str:
    """A line of untrusted text, shortened, without control characters."""
    return "".join(c if c.isprintable() else "�" for c in text.strip())[:SUBJECT_CHARACTERS]
