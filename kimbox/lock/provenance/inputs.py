"""The inputs of a disk: what the provenance documents describe.

Equal inputs give equal documents: they contain no time of their making, no random number and no path of this host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from kimbox.lock.apt.packages import LockedPackage, LockedPackages, PackageChanges, compare
from kimbox.lock.lockfile import Lock, in_order

#: Maximum number of changed files that the documents name. The record of the changes has all of them.
MAX_CHANGED = 1000


@attrs.frozen
class BaseImage:
    """An image that kimbox did not build from packages, on which a disk is based."""

    #: Key of the image in the store.
    key: str
    #: sha256 hex digest of the file of the image; None if it is not known.
    sha256: str | None = None
    #: URL of the file; empty if it came from a file of a host.
    url: str = ""


@attrs.frozen
class Provenance:
    """A box and all of its inputs."""

    name: str
    lock: Lock
    #: Key of the image, and the sha256 hex digest of its bytes; None if not known.
    image: str | None = None
    image_sha256: str | None = None
    distribution: str = ""
    suite: str = ""
    #: Steps that ran at other commits than those of the lock: step -> repository -> the commit at which it ran.
    stale: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    #: The packages that dpkg on the disk lists: name -> version, architecture; None if the disk was not read.
    installed: Mapping[str, tuple[str, str]] | None = None
    #: The images on which the disk is based, the direct base first.
    bases: tuple[BaseImage, ...] = ()
    #: Changes that were made by hand, such as `file /etc/motd`: no lock pins them.
    changed: tuple[str, ...] = ()
    #: Files that were made of the disk: name -> sha256 hex digest.
    files: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def locked(self) -> Mapping[str, LockedPackage]:
        """The packages of the lock, by name; empty without them."""
        return self.lock.packages.versions if self.lock.packages else {}

    @property
    def packages(self) -> Mapping[str, LockedPackage]:
        """Every package of the disk, by name. If the disk was not read, they are those of the lock.

        A package whose .deb the lock does not have has an empty digest.
        """
        if self.installed is None:
            return self.locked
        locked = self.lock.packages or LockedPackages("", "", (), {})
        return locked.as_installed(self.installed).versions

    @property
    def mismatch(self) -> PackageChanges:
        """The packages in which lock and disk differ; empty if one of them has none."""
        return compare(self.locked, self.packages) if self.locked and self.installed else PackageChanges({}, {}, {})

    @property
    def unpinned(self) -> list[str]:
        """The inputs that no lock pins: repositories, `package NAME VERSION`, `file PATH`."""
        mismatch = self.mismatch
        moved = {name: new for name, (_, new) in mismatch.moved.items()}
        packages = [
            f"package {name} {package.version}" for name, package in sorted({**mismatch.added, **moved}.items())
        ]
        more = len(self.changed) - MAX_CHANGED
        files = [*self.changed[:MAX_CHANGED], *([f"{more} more files"] if more > 0 else [])]
        return [*self.lock.unpinned, *packages, *files]

    def purl(self, name: str) -> str:
        """The package URL of a package (purl-spec, type deb)."""
        from packageurl import PackageURL

        package = self.packages[name]
        about = {"arch": package.architecture, "distro": self.suite}
        plain_name = name.partition(":")[0]
        return str(PackageURL("deb", self.distribution or None, plain_name, package.version, about).to_string())


def commits(lock: Lock) -> Iterator[tuple[str, str, str, str | None]]:
    """Name, URL, commit and tree of each repository. The name of a submodule is NAME:PATH.

    The tree is None for a submodule (the lock does not have it), and for a commit that the box fetched itself.
    """
    for name in in_order(lock.repositories):
        pin = lock.repositories[name]
        yield name, pin.url, pin.commit, pin.tree or None
        for path in sorted(pin.submodules):
            yield f"{name}:{path}", pin.submodules[path].url, pin.submodules[path].commit, None


def git_uri(url: str, commit: str) -> str:
    """The URI of a commit in the form of SPDX and pip. `host:path` becomes `ssh://host/path`."""
    if "://" not in url:
        host, _, path = url.partition(":")
        url = f"ssh://{host}/{path.lstrip('/')}"
    return f"git+{url}@{commit}"
