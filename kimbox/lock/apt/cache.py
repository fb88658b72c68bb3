"""The cache of .deb files: one place for all boxes, each file named by its sha256 and checked against it at every use.

packages/<2 digits>/<sha256>.control   its control fields, as the archive's signed index has them
packages/<2 digits>/<sha256>.deb       the file; once it is there, so are its control fields
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from kimbox import paths
from kimbox.errors import ImageError
from kimbox.files import read_bounded, sha256_file, write_atomic
from kimbox.lock.apt import sources as apt
from kimbox.lock.apt.archive import Archive, Found
from kimbox.lock.apt.packages import LockedPackage, LockedPackages
from kimbox.log import log
from kimbox.spec.model import PackageImage

#: Names archives of the past, one or several URIs; `{time}` in them becomes the time of the lock, as 20260131T235959Z.
SNAPSHOT_SETTING = "KIMBOX_SNAPSHOT_MIRRORS"

#: No control stanza is larger.
MAX_CONTROL_BYTES = 1 << 20

#: Lists that are older than this, in seconds, are fetched anew when they lack what a lock names.
RECENT_S = 60.0

#: How many missing packages a message names.
NAMED = 5


def deb_of(package: LockedPackage) -> Path:
    """Where the cache has the file of a package, or would have it."""
    return paths.packages_dir() / package.sha256[:2] / f"{package.sha256}.deb"


def control_of(package: LockedPackage) -> str:
    """The control fields of a package in the cache. Raises ImageError if it is not there."""
    file = deb_of(package).with_suffix(".control")
    try:
        return read_bounded(file, limit_bytes=MAX_CONTROL_BYTES).decode()
    except OSError:
        raise ImageError(f"the package cache lost {file.name}", hint="run the same command again") from None


def is_whole(package: LockedPackage) -> bool:
    """Whether the cache has a package, byte for byte. What is damaged is removed."""
    file = deb_of(package)
    if not file.is_file() or not file.with_suffix(".control").is_file():
        return False
    if sha256_file(file) == f"sha256:{package.sha256}":
        return True
    log.warn(f"{file} in the package cache was damaged: it is fetched anew")
    file.unlink()
    return False


def ensure(image: PackageImage, locked: LockedPackages, *, offline: bool = False) -> None:
    """Sees to it that the cache has every package of a lock, from wherever it can still be had.

    Raises ImageError naming those that are nowhere, and where they were looked for.
    """
    missing = {name: package for name, package in locked.versions.items() if not is_whole(package)}
    if not missing:
        return
    looked = [f"the cache {paths.packages_dir()}"]
    if not offline:
        for archive in _archives(image, locked):
            looked.append(archive.where)
            try:
                with archive.opened():
                    missing = _take_from(archive, missing)
            except ImageError as error:
                log.warn(error.message)
            if not missing:
                return
    names = ", ".join(f"{name} {package.version}" for name, package in sorted(missing.items())[:NAMED])
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    hint = f"name an archive of the past in {SNAPSHOT_SETTING} (a URI, with {{time}} where it has a time)"
    hint += ", or move on with `kimbox lock --update packages`"
    raise ImageError(
        f"the lock names packages that cannot be had: {names}{more}; looked in {'; '.join(looked)}",
        hint="run it once without --offline" if offline else hint,
    )


def _archives(image: PackageImage, locked: LockedPackages) -> Iterator[Archive]:
    """Where to look, in this order: what this machine or the spec uses, then archives of the past."""
    yield Archive(image.distribution, tuple(apt.sources(image.distribution, image.suite, image.mirror)))
    when = locked.as_of.replace("-", "").replace(":", "")
    for uri in os.environ.get(SNAPSHOT_SETTING, "").split():
        suites = (image.suite, f"{image.suite}-updates", f"{image.suite}-security")
        parts = apt.COMPONENTS[image.distribution]
        uri = uri.replace("{time}", when).rstrip("/")
        yield Archive(image.distribution, tuple(apt.Source(uri, s, parts) for s in suites), is_snapshot=True)


def _take_from(archive: Archive, missing: dict[str, LockedPackage]) -> dict[str, LockedPackage]:
    """Takes from an archive, which is open, what it has of these. Returns what is still missing."""
    archive.refresh()
    found = archive.find(missing)
    if len(found) < len(missing):
        archive.refresh(RECENT_S)
        found = archive.find(missing)
    if found:
        with log.step(f"fetching {len(found)} packages"):
            for name, file in archive.fetch(found):
                _put(found[name], file)
    return {name: package for name, package in missing.items() if not is_whole(package)}


def _put(found: Found, file: Path) -> None:
    """Moves a fetched file into the cache. Raises ImageError if it is not what was asked for."""
    if sha256_file(file) != f"sha256:{found.package.sha256}":
        file.unlink()
        raise ImageError(f"{file.name} came with another content than its archive's index says")
    target = deb_of(found.package)
    write_atomic(target.with_suffix(".control"), found.stanza + "\n")
    file.replace(target)


def _link(file: Path, name: Path) -> None:
    """A second name for a file of the cache; a symbolic one where that is another file system."""
    try:
        os.link(file, name)
    except FileNotFoundError:
        raise ImageError(f"the package cache lost {file.name}", hint="run the same command again") from None
    except OSError:
        name.symlink_to(file)


def repository(versions: Mapping[str, LockedPackage], suite: str, folder: Path) -> None:
    """Makes `folder` an apt repository of these packages and no other, out of the cache, for `deb ... ./`.

    Its Release file names the suite, as tools expect that choose by it. Raises ImageError if the cache lacks one.
    """
    folder.mkdir()
    stanzas = []
    for name, package in sorted(versions.items()):
        file = folder / f"{name}.deb"
        _link(deb_of(package), file)
        fields = control_of(package).rstrip("\n").split("\n")  # a description may hold other separators of lines
        kept = [line for line in fields if not line.startswith(("Filename:", "MD5sum:"))]
        stanzas.append("\n".join([*kept, f"Filename: ./{file.name}", ""]))
    index = "\n".join(stanzas).encode()
    (folder / "Packages").write_bytes(index)
    entry = f"{hashlib.sha256(index).hexdigest()} {len(index)} Packages"
    (folder / "Release").write_text(f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {entry}\n")
