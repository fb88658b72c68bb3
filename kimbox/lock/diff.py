"""The differences between two locks. Pure: `lock.git.history` reads the log between two commits."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from kimbox.lock.apt.packages import PackageChanges, compare
from kimbox.lock.git import history
from kimbox.lock.git.history import Between
from kimbox.lock.git.tags import Tag
from kimbox.lock.lockfile import Lock, PinnedRepository, PinnedSubmodule, in_order
from kimbox.spec import urls

#: Maximum number of tags on a line of a difference.
MAX_TAGS_SHOWN = 20


class Kind(StrEnum):
    """How an entry of a lock changed."""

    ADDED = "added"
    REMOVED = "removed"
    MOVED = "moved"  #: both locks have it, with different values


@attrs.frozen
class Change:
    """A value that differs; None on the side that lacks it."""

    old: str | None
    new: str | None


@attrs.frozen
class RepositoryChange:
    """A repository that differs; `old` or `new` is None if that lock does not name it."""

    name: str
    old: PinnedRepository | None
    new: PinnedRepository | None

    @property
    def kind(self) -> Kind:
        return Kind.ADDED if self.old is None else Kind.REMOVED if self.new is None else Kind.MOVED

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder beside the spec. The commits of a folder have no history."""
        return any(urls.is_folder(side.url) for side in (self.old, self.new) if side)

    @property
    def fields(self) -> dict[str, Change]:
        """The fields that differ, by name."""
        sides = [attrs.asdict(side, recurse=False) if side else {} for side in (self.old, self.new)]
        names = list(sides[0] or sides[1])
        pairs = {name: (sides[0].get(name), sides[1].get(name)) for name in names}
        return {name: Change(old, new) for name, (old, new) in pairs.items() if old != new}


@attrs.frozen
class LockDiff:
    """All differences between two locks. False if the locks are equal."""

    spec: Change | None
    image: Change | None
    repositories: tuple[RepositoryChange, ...]
    packages: PackageChanges

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.spec or self.image or self.repositories or self.packages)


def diff(old: Lock, new: Lock) -> LockDiff:
    """Compares two locks. Repositories are in the order of a lock."""
    changed = [
        RepositoryChange(name, old.repositories.get(name), new.repositories.get(name))
        for name in in_order({*old.repositories, *new.repositories})
        if old.repositories.get(name) != new.repositories.get(name)
    ]
    packages = compare(*(side.packages.versions if side.packages else {} for side in (old, new)))
    spec, image = _change(old.spec_digest, new.spec_digest), _change(old.image, new.image)
    return LockDiff(spec, image, tuple(changed), packages)


def as_text(changes: LockDiff, logs: Mapping[str, Between | None]) -> list[str]:
    """The differences as lines of text. `logs`: the commits between old and new, by the name of the repository."""
    lines = []
    for key, change in (("spec", changes.spec), ("image", changes.image)):
        if change:
            lines.append(f"{key}: {_short(change.old)} -> {_short(change.new)}")
    for repository in changes.repositories:
        lines += _repository_lines(repository, logs)
    return lines + changes.packages.lines()


def as_json(changes: LockDiff, logs: Mapping[str, Between | None]) -> dict[str, Any]:
    """The differences for `--json`: null for a value that is equal, an entry for each repository that differs."""
    return {
        "spec": attrs.asdict(changes.spec) if changes.spec else None,
        "image": attrs.asdict(changes.image) if changes.image else None,
        "repositories": {
            change.name: {
                "kind": str(change.kind),
                "old": attrs.asdict(change.old) if change.old else None,
                "new": attrs.asdict(change.new) if change.new else None,
                "log": history.as_json(logs.get(change.name)),
            }
            for change in changes.repositories
        },
        "packages": changes.packages.as_json(),
    }


def _repository_lines(change: RepositoryChange, logs: Mapping[str, Between | None]) -> list[str]:
    pin = change.new or change.old
    if change.kind is not Kind.MOVED and pin:
        return [f"{change.name}: {change.kind}, {pin.url} {pin.ref} at {_short(pin.commit)}"]
    lines: list[str] = []
    for name, field in change.fields.items():
        if name == "submodules" and change.old and change.new:
            lines += _submodule_lines(change.name, change.old.submodules, change.new.submodules)
        elif name == "tags" and change.old and change.new:
            lines += _tag_lines(change.name, change.old.tags, change.new.tags)
        elif name in ("url", "ref"):
            lines.append(f"{change.name}: {name} {field.old} -> {field.new}")
        elif name == "commit":
            lines.append(f"{change.name}: {_short(field.old)} -> {_short(field.new)}")
            if not change.is_folder:
                lines += [f"  {line}" for line in history.describe(logs.get(change.name))]
    return lines or [f"{change.name}: moved"]


def _submodule_lines(name: str, old: Mapping[str, PinnedSubmodule], new: Mapping[str, PinnedSubmodule]) -> list[str]:
    lines = []
    for path in sorted({*old, *new}):
        before, after = old.get(path), new.get(path)
        if before != after:
            commits = " -> ".join(_short(side.commit if side else None) for side in (before, after))
            moved = f" (from {after.url})" if after and (before is None or before.url != after.url) else ""
            lines.append(f"{name}: submodule {path}: {commits}{moved}")
    return lines


def _tag_lines(name: str, old: Mapping[str, Tag], new: Mapping[str, Tag]) -> list[str]:
    """One line: `+` before a tag that came, `-` before one that went, `*` before one that moved."""
    signs = {tag: "+" if tag not in old else "-" if tag not in new else "*" for tag in sorted({*old, *new})}
    changed = [f"{sign}{tag}" for tag, sign in signs.items() if old.get(tag) != new.get(tag)]
    more = f" ({len(changed) - MAX_TAGS_SHOWN} more)" if len(changed) > MAX_TAGS_SHOWN else ""
    return [f"{name}: tags {' '.join(changed[:MAX_TAGS_SHOWN])}{more}"] if changed else []


def _change(old: str | None, new: str | None) -> Change | None:
    return Change(old, new) if old != new else None


def _short(value: str | None) -> str:
    """The first 12 digits of a digest or commit."""
    return value[:12] if value else "none"
