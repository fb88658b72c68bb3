"""Tags in the history of a pinned commit, so that `git describe` in the box gives what it gives in a clone.

The lock records them: name, commit and, of an annotated tag, the tag object. A tag that is made, moved or removed on
the server later changes no box. Only tags that point to the commit or to a commit before it are recorded, the nearest
first, because no other tag has an effect on `git describe`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import attrs

from kimbox.lock.git.command import GitError, git
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.git.refs import COMMIT
from kimbox.log import log
from kimbox.spec import rules
from kimbox.spec.nodes import Fault, shown

#: Maximum number of tags of a repository in a lock.
MAX_TAGS = 100

#: Maximum number of commits in which tags are searched, the newest first.
MAX_COMMITS = 200_000

#: A mirror holds the tag objects of locks under this prefix, so that git never deletes them.
_HELD = "refs/kimbox-tag-objects/"

_PREFIX = "refs/tags/"


@attrs.frozen
class Tag:
    """A tag of a commit. Both ids have 40 hex digits."""

    commit: str
    #: The object of an annotated tag; None for a lightweight tag.
    tag_object: str | None = None

    @classmethod
    def parse(cls, text: str) -> Tag:
        """Parses the form of a lock: the commit and, of an annotated tag, a space and the tag object."""
        commit, _, tag_object = text.partition(" ")
        return cls(commit, tag_object or None)

    @property
    def target(self) -> str:
        """The object that the ref of the tag points to."""
        return self.tag_object or self.commit

    def __str__(self) -> str:
        return f"{self.commit} {self.tag_object}" if self.tag_object else self.commit


def check_name(name: str) -> None:
    """Raises Fault for a name that is not a valid tag, or not plain text."""
    rules.ref(name)
    if COMMIT.fullmatch(name) or not name.isprintable() or "\ufffd" in name:
        raise Fault(f"{shown(name)} is not the name of a tag", code="bad-ref")


def collect(mirror: Mirror, commit: str) -> dict[str, Tag]:
    """The tags of the server in the history of a commit that the mirror has, by name. Fetches their tag objects.

    If a spec names a commit, the lock needs no server that answers: then there is a warning, and no tag.
    """
    if mirror.is_folder:
        return {}
    with mirror.opened():
        try:
            tags = _near(mirror, commit)
            _fetch(mirror, tags)
        except GitError as error:
            if not COMMIT.fullmatch(mirror.ref) or error.code not in ("repository-unreachable", "offline", "timeout"):
                raise
            log.warn(f"{error.message}\nso the lock has no tags of it, and `git describe` finds none in the box")
            return {}
        held = _held(mirror, tags)
    return {name: tag for name, tag in sorted(tags.items()) if name in held}


def available(mirror: Mirror, tags: Mapping[str, Tag]) -> dict[str, Tag]:
    """The tags of a lock as the box gets them, with their objects in the mirror. Fetches what is missing.

    If the server no longer has a tag object, because the tag was moved or removed, there is a warning, and the tag is a
    lightweight one of the same commit. Raises GitError, for example `offline`, if the server must be asked and cannot.
    """
    with mirror.opened():
        held = _held(mirror, tags)
        missing = {name: tag for name, tag in tags.items() if name not in held}
        if not missing:
            return dict(tags)
        offered = mirror.offered().tag_objects
        _fetch(mirror, {n: tag for n, tag in missing.items() if offered.get(_PREFIX + n) == tag.tag_object})
        for name, tag in missing.items():
            if offered.get(_PREFIX + name) != tag.tag_object:
                with contextlib.suppress(GitError):  # some servers still have it, and give out every object
                    mirror.fetch([f"+{tag.tag_object}:{_HELD}{tag.tag_object}"])
        held = _held(mirror, tags)
    for name in sorted(set(tags) - held):
        log.warn(
            f"{mirror.where} no longer has the tag object {tags[name].tag_object} of {shown(name)}: the box gets a "
            "lightweight tag of the same commit"
        )
    return {name: tag if name in held else Tag(tag.commit) for name, tag in tags.items()}


def changed(mirror: Mirror, tags: Mapping[str, Tag]) -> list[str]:
    """Texts about the tags of a lock that the server has moved or removed. Raises GitError if it does not answer."""
    if not tags:
        return []
    with mirror.opened():
        offered = mirror.offered()
    texts = []
    for name, tag in sorted(tags.items()):
        ref = _PREFIX + name
        if ref not in offered.refs:
            texts.append(f"repository {mirror.name}: the server no longer has the tag {shown(name)} of the lock")
        elif (offered.refs[ref], offered.tag_objects.get(ref)) != (tag.commit, tag.tag_object):
            now = offered.refs[ref]
            how = f"was moved from {tag.commit} to {now}" if now != tag.commit else "was replaced, at the same commit"
            texts.append(f"repository {mirror.name}: the tag {shown(name)} {how}")
    return texts


def _near(mirror: Mirror, commit: str) -> dict[str, Tag]:
    """The tags that a server offers in the history of a commit, at most MAX_TAGS, those of the newest commits."""
    offered = mirror.offered()
    by_commit: dict[str, list[str]] = {}
    for ref, target in sorted(offered.refs.items()):
        if ref.startswith(_PREFIX):
            with contextlib.suppress(Fault):
                check_name(ref.removeprefix(_PREFIX))
                by_commit.setdefault(target, []).append(ref)
    if not by_commit:
        return {}
    tags: dict[str, Tag] = {}
    listed = git(["rev-list", f"--max-count={MAX_COMMITS}", commit, "--"], git_dir=mirror.path)
    for each in listed.stdout.decode().split():
        for ref in by_commit.get(each, ()):
            if len(tags) < MAX_TAGS:
                tags[ref.removeprefix(_PREFIX)] = Tag(each, offered.tag_objects.get(ref))
    return tags


def _fetch(mirror: Mirror, tags: Mapping[str, Tag]) -> None:
    """Fetches the tag objects that the mirror lacks. What the check of objects refuses is left out, with a warning."""
    held = _held(mirror, tags)
    specs = [f"+{_PREFIX}{name}:{_HELD}{tag.tag_object}" for name, tag in tags.items() if name not in held]
    if not specs:
        return
    try:
        mirror.fetch(specs)
    except GitError as error:
        if "fsck error" not in error.stderr:
            raise
        log.warn(f"{error.message}\nso its annotated tags are left out; {error.hint}")


def _held(mirror: Mirror, tags: Mapping[str, Tag]) -> set[str]:
    """Names of the tags that need no object, or whose object is in the mirror and points to their commit.

    The refs of other objects, which a server gave in place of them, are removed.
    """
    form = "--format=%(objectname) %(refname)"
    for line in git(["for-each-ref", form, _HELD], git_dir=mirror.path).text.splitlines():
        object_id, _, ref = line.partition(" ")
        if ref != _HELD + object_id:
            git(["update-ref", "-d", ref], git_dir=mirror.path)
    annotated = {name: tag for name, tag in tags.items() if tag.tag_object}
    if not annotated:
        return set(tags)
    asked = "".join(f"{tag.tag_object}^{{commit}}\n" for tag in annotated.values())  # hex digits only
    answer = git(["cat-file", "--batch-check=%(objectname)"], git_dir=mirror.path, stdin=asked.encode())
    commits = dict(zip(annotated, answer.text.splitlines(), strict=True))
    held = {name for name, tag in annotated.items() if commits[name] == tag.commit}
    refs = "".join(f"update {_HELD}{annotated[name].tag_object} {annotated[name].tag_object}\n" for name in held)
    git(["update-ref", "--stdin"], git_dir=mirror.path, stdin=refs.encode())
    return held | (set(tags) - set(annotated))
