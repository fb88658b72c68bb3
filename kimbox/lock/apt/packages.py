"""The locked packages of an image: each with its version and the sha256 of its .deb. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

#: Argument of `kimbox lock --update` that means all packages.
ALL_PACKAGES = "packages"

#: The value of a package in the lock: version (deb-version(7)), architecture, sha256 hex digest.
_LINE = re.compile(r"([0-9][0-9A-Za-z.+:~-]*) ([a-z0-9-]+) ([0-9a-f]{64})")


@attrs.frozen
class LockedPackage:
    """A binary package: Debian version, Debian architecture (or `all`), sha256 hex digest of its .deb."""

    version: str
    architecture: str
    sha256: str

    def __str__(self) -> str:
        """The value in the lock."""
        return f"{self.version} {self.architecture} {self.sha256}"

    @classmethod
    def parse(cls, line: str) -> LockedPackage:
        """Parses the value in the lock. Raises ValueError for any other text."""
        if not (match := _LINE.fullmatch(line)):
            raise ValueError(f"{line!r} is not a version, an architecture and a sha256 digest")
        return cls(*match.groups())


@attrs.frozen
class LockedPackages:
    """All packages of an image, and the archives that they come from."""

    #: `request_digest` of the spec's request, for which they were chosen.
    request: str
    #: Date of the newest Release file, ISO 8601, UTC. A snapshot archive has the same packages at this time.
    as_of: str
    #: Lines of sources.list(5), without credentials. The guest gets them as its sources.
    sources: tuple[str, ...]
    #: By package name.
    versions: Mapping[str, LockedPackage]
    #: Armored public keys that `sources` refer to, by file name.
    keys: Mapping[str, str] = attrs.field(factory=dict)
    #: `digest` when they were chosen, as the lock has it; None in a lock of an older kimbox.
    chosen_digest: str | None = attrs.field(default=None, eq=False)

    @property
    def is_edited(self) -> bool:
        """Whether a package, source or key was removed from the lock, added or changed after kimbox wrote it."""
        return self.chosen_digest is not None and self.chosen_digest != self.digest

    def fault(self, requested: Iterable[str]) -> str | None:
        """What is wrong with an edited lock for an image that requests these packages, as a text; None if nothing is.

        In a lock without `chosen_digest` only a requested package can be missed.
        """
        if self.chosen_digest == self.digest:
            return None
        missing = ", ".join(sorted(set(requested) - set(self.versions)))
        if missing:
            return f"the lock lacks packages that the image asks for: {missing}"
        return "the lock was edited: its packages are not those that kimbox chose" if self.is_edited else None

    def as_chosen(self) -> LockedPackages:
        """A copy that is not edited."""
        return attrs.evolve(self, chosen_digest=self.digest)

    def as_tree(self) -> dict[str, Any]:
        """The `packages` value of a lock."""
        return {
            "request": self.request,
            "as_of": self.as_of,
            **({"digest": self.chosen_digest} if self.chosen_digest else {}),
            "sources": list(self.sources),
            **({"keys": dict(sorted(self.keys.items()))} if self.keys else {}),
            "versions": {name: str(self.versions[name]) for name in sorted(self.versions)},
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> LockedPackages:
        """The inverse of `as_tree`. The tree must be valid by lock.schema.json."""
        versions = {name: LockedPackage.parse(line) for name, line in tree["versions"].items()}
        sources, keys = tuple(tree["sources"]), tree.get("keys", {})
        return cls(tree["request"], tree["as_of"], sources, versions, keys, tree.get("digest"))

    def as_installed(self, installed: Mapping[str, tuple[str, str]]) -> LockedPackages:
        """A copy with the packages that are installed: name -> version, architecture.

        A package that the lock lacks, or has at another version, gets an empty digest: its .deb is not known.
        """
        versions = {
            name: locked
            if (locked := self.versions.get(name)) and locked.version == version
            else LockedPackage(version, architecture, "")
            for name, (version, architecture) in installed.items()
        }
        return attrs.evolve(self, versions=versions)

    @property
    def digest(self) -> str:
        """sha256 hex digest of packages, sources and keys. It does not depend on `request` and `as_of`."""
        parts: list[object] = [list(self.sources), {name: str(package) for name, package in self.versions.items()}]
        parts += [dict(self.keys)] if self.keys else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def request_digest(
    distribution: str, suite: str, mirror: str | None, packages: Iterable[str], *, recommends: bool = False
) -> str:
    """sha256 hex digest of what the spec requests. If it changes, packages are chosen again."""
    parts = [distribution, suite, mirror, sorted(set(packages)), *(["recommends"] if recommends else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@attrs.frozen
class PackageChanges:
    """The packages that differ between two locks, by name; `moved` has old and new."""

    added: Mapping[str, LockedPackage]
    removed: Mapping[str, LockedPackage]
    moved: Mapping[str, tuple[LockedPackage, LockedPackage]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.moved)

    def as_json(self) -> dict[str, Any]:
        """For `--json`: versions; for moved packages also architecture and digest, which can differ alone."""
        return {
            "added": {name: package.version for name, package in self.added.items()},
            "removed": {name: package.version for name, package in self.removed.items()},
            "moved": {name: [str(old), str(new)] for name, (old, new) in self.moved.items()},
        }

    def lines(self) -> list[str]:
        """One line for each package, sorted by name."""
        texts = {name: f"package {name}: new, {package.version}" for name, package in self.added.items()}
        texts |= {name: f"package {name}: removed, was {package.version}" for name, package in self.removed.items()}
        for name, (old, new) in self.moved.items():
            rebuilt = " (another build of it)" if old.version == new.version else ""
            texts[name] = f"package {name}: {old.version} -> {new.version}{rebuilt}"
        return [texts[name] for name in sorted(texts)]


def compare(old: Mapping[str, LockedPackage], new: Mapping[str, LockedPackage]) -> PackageChanges:
    """The changes that lead from `old` to `new`."""
    both = sorted(set(old) & set(new))
    return PackageChanges(
        {name: new[name] for name in sorted(set(new) - set(old))},
        {name: old[name] for name in sorted(set(old) - set(new))},
        {name: (old[name], new[name]) for name in both if old[name] != new[name]},
    )
