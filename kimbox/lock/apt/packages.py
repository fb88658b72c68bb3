"""The packages of an image, frozen: every one at a version, with the sha256 of its .deb. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

#: What `kimbox lock --update` calls all packages together.
ALL_PACKAGES = "packages"

#: deb-version(7), an architecture, and the digest: what follows a package's name in the lock.
_LINE = re.compile(r"([0-9][0-9A-Za-z.+:~-]*) ([a-z0-9-]+) ([0-9a-f]{64})")


@attrs.frozen
class LockedPackage:
    """One binary package: Debian version, Debian architecture (or `all`), sha256 hex digest of its .deb."""

    version: str
    architecture: str
    sha256: str

    def __str__(self) -> str:
        """As the lock has it: one line."""
        return f"{self.version} {self.architecture} {self.sha256}"

    @classmethod
    def parse(cls, line: str) -> LockedPackage:
        """From a line of the lock. Raises ValueError for another text."""
        if not (found := _LINE.fullmatch(line)):
            raise ValueError(f"{line!r} is no version, architecture and sha256")
        return cls(*found.groups())


@attrs.frozen
class LockedPackages:
    """Every package of an image, and where they were found."""

    #: `request_digest` of what they were chosen for.
    request: str
    #: When the newest of the archives was made, as ISO 8601 in UTC: what a snapshot archive is asked for.
    as_of: str
    #: Lines of sources.list(5), without credentials: where they came from, and where the guest gets more.
    sources: tuple[str, ...]
    #: By name.
    versions: Mapping[str, LockedPackage]

    def as_tree(self) -> dict[str, Any]:
        """As the lock has it, in its order."""
        return {
            "request": self.request,
            "as_of": self.as_of,
            "sources": list(self.sources),
            "versions": {name: str(self.versions[name]) for name in sorted(self.versions)},
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> LockedPackages:
        """The inverse of `as_tree`, of a tree that lock.schema.json has let pass."""
        versions = {name: LockedPackage.parse(line) for name, line in tree["versions"].items()}
        return cls(tree["request"], tree["as_of"], tuple(tree["sources"]), versions)

    def as_installed(self, found: Mapping[str, tuple[str, str]]) -> LockedPackages:
        """The packages that are really there: name -> version, architecture.

        Those at another version than the lock's, or not in it, have no digest: nobody knows which .deb they came from.
        """
        versions = {
            name: locked
            if (locked := self.versions.get(name)) and locked.version == version
            else LockedPackage(version, architecture, "")
            for name, (version, architecture) in found.items()
        }
        return attrs.evolve(self, versions=versions)

    @property
    def digest(self) -> str:
        """sha256 hex digest of what an image is made of: packages and sources, not when they were looked up."""
        parts = [list(self.sources), {name: str(package) for name, package in self.versions.items()}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def request_digest(distribution: str, suite: str, mirror: str | None, packages: Iterable[str]) -> str:
    """sha256 hex digest of what is asked of the archives: where it changes, packages are chosen anew."""
    parts = [distribution, suite, mirror, sorted(set(packages))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@attrs.frozen
class PackageChanges:
    """What became of the packages between two locks: names, with old and new where both are there."""

    added: Mapping[str, LockedPackage]
    removed: Mapping[str, LockedPackage]
    moved: Mapping[str, tuple[LockedPackage, LockedPackage]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.moved)

    def as_json(self) -> dict[str, Any]:
        """For `--json`: versions alone, and the digest where the version stayed."""
        return {
            "added": {name: package.version for name, package in self.added.items()},
            "removed": {name: package.version for name, package in self.removed.items()},
            "moved": {name: [str(old), str(new)] for name, (old, new) in self.moved.items()},
        }

    def lines(self) -> list[str]:
        """One line a package, by name."""
        told = {name: f"package {name}: new, {package.version}" for name, package in self.added.items()}
        told |= {name: f"package {name}: removed, was {package.version}" for name, package in self.removed.items()}
        for name, (old, new) in self.moved.items():
            same = old.version == new.version
            told[name] = f"package {name}: {old.version} -> {new.version}" + (" (another build of it)" if same else "")
        return [told[name] for name in sorted(told)]


def compare(old: Mapping[str, LockedPackage], new: Mapping[str, LockedPackage]) -> PackageChanges:
    """The changes that lead from `old` to `new`."""
    both = sorted(set(old) & set(new))
    return PackageChanges(
        {name: new[name] for name in sorted(set(new) - set(old))},
        {name: old[name] for name in sorted(set(old) - set(new))},
        {name: (old[name], new[name]) for name in both if old[name] != new[name]},
    )
