"""The cache of .deb files, shared by all boxes. A file's name is its sha256, which is checked at every use.

packages/<2 digits>/<sha256>.control   the control fields, from the archive's signed index
packages/<2 digits>/<sha256>.deb       the file; it is written after the control fields
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
from kimbox.lock.apt.archive import Archive, IndexEntry
from kimbox.lock.apt.packages import LockedPackage, LockedPackages
from kimbox.log import log
from kimbox.spec.model import PackageImage

#: Environment variable with the URIs of snapshot archives, separated by blanks. In a URI, `{time}` is replaced by the
#: lock's time, in the form 20260131T235959Z.
SNAPSHOT_SETTING = "KIMBOX_SNAPSHOT_MIRRORS"

#: Maximum size of the control fields of a package, in bytes.
MAX_CONTROL_BYTES = 1 << 20

#: If package lists lack a locked package and are older than this, in seconds, they are fetched again.
RECENT_S = 60.0

#: Maximum number of missing packages that a message names.
NAMED = 5


def deb_of(package: LockedPackage) -> Path:
    """The path of a package's file in the cache, whether it exists or not."""
    return paths.packages_dir() / package.sha256[:2] / f"{package.sha256}.deb"


def control_of(package: LockedPackage) -> str:
    """The control fields of a package in the cache. Raises ImageError (`cache-incomplete`) if they are missing."""
    file = deb_of(package).with_suffix(".control")
    try:
        return read_bounded(file, limit_bytes=MAX_CONTROL_BYTES).decode()
    except OSError:
        raise _incomplete(file) from None


def _incomplete(file: Path) -> ImageError:
    return ImageError(
        f"the package cache no longer has {file.name}",
        code="cache-incomplete",
        hint="run the same command again: it fetches the file again",
        fields={"path": str(file)},
    )


def is_cached(package: LockedPackage) -> bool:
    """Whether the cache has a package with the right digest. A damaged file is removed."""
    file = deb_of(package)
    if not file.is_file() or not file.with_suffix(".control").is_file():
        return False
    if sha256_file(file) == f"sha256:{package.sha256}":
        return True
    log.warn(f"{file} in the package cache is damaged; it is fetched again")
    file.unlink()
    return False


def ensure(image: PackageImage, locked: LockedPackages, *, offline: bool = False) -> None:
    """Makes sure that the cache has every package of a lock. Downloads those that are missing.

    Raises ImageError (`package-not-found`, or `offline`) that names the packages and the archives that were tried.
    """
    missing = {name: package for name, package in locked.versions.items() if not is_cached(package)}
    if not missing:
        return
    tried = [f"the cache {paths.packages_dir()}"]
    if not offline:
        for archive in archives(image, locked):
            tried.append(archive.where)
            try:
                with archive.opened():
                    missing = _download(archive, missing)
            except ImageError as error:
                log.warn(error.message)
            if not missing:
                return
    names = ", ".join(f"{name} {package.version}" for name, package in sorted(missing.items())[:NAMED])
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    hint = f"name a snapshot archive in {SNAPSHOT_SETTING} (a URI, with {{time}} in place of the time)"
    hint += ", or lock newer packages with `kimbox lock --update packages`"
    raise ImageError(
        f"packages of the lock are not available: {names}{more}; looked in {'; '.join(tried)}",
        code="offline" if offline else "package-not-found",
        hint="run it once without --offline" if offline else hint,
        fields={"packages": " ".join(sorted(missing))},
    )


def archives(image: PackageImage, locked: LockedPackages) -> Iterator[Archive]:
    """The archives to try, in order: those of this machine or the spec, then snapshot archives."""
    yield Archive(image.distribution, tuple(apt.sources(image.distribution, image.suite, image.mirror)))
    when = locked.as_of.replace("-", "").replace(":", "")
    for uri in os.environ.get(SNAPSHOT_SETTING, "").split():
        suites = (image.suite, f"{image.suite}-updates", f"{image.suite}-security")
        parts = apt.COMPONENTS[image.distribution]
        uri = uri.replace("{time}", when).rstrip("/")
        yield Archive(image.distribution, tuple(apt.Source(uri, s, parts) for s in suites), is_snapshot=True)


def _download(archive: Archive, missing: dict[str, LockedPackage]) -> dict[str, LockedPackage]:
    """Downloads those packages that an opened archive has. Returns the packages that are still missing."""
    archive.refresh()
    entries = archive.find(missing)
    if len(entries) < len(missing):
        archive.refresh(RECENT_S)
        entries = archive.find(missing)
    if entries:
        with log.step(f"fetching {len(entries)} packages"):
            for name, file in archive.fetch(entries):
                _put(entries[name], file)
    return {name: package for name, package in missing.items() if not is_cached(package)}


def _put(entry: IndexEntry, file: Path) -> None:
    """Moves a downloaded file into the cache. Raises ImageError (`checksum-mismatch`) if its digest is wrong."""
    if sha256_file(file) != f"sha256:{entry.package.sha256}":
        file.unlink()
        raise ImageError(
            f"{file.name} has another sha256 digest than the archive's index says",
            code="checksum-mismatch",
            hint="run the same command again; if it fails again, the mirror or a proxy is damaged",
            fields={"file": file.name, "sha256": entry.package.sha256},
        )
    target = deb_of(entry.package)
    write_atomic(target.with_suffix(".control"), entry.stanza + "\n")
    file.replace(target)


def _link(file: Path, name: Path) -> None:
    """Makes a hard link to a file of the cache, or a symbolic link if `name` is on another file system."""
    try:
        os.link(file, name)
    except FileNotFoundError:
        raise _incomplete(file) from None
    except OSError:
        name.symlink_to(file)


def repository(versions: Mapping[str, LockedPackage], suite: str, folder: Path) -> None:
    """Makes `folder` an apt repository of exactly these packages, from the cache. Its line is `deb ... ./`.

    Its Release file names the suite, because tools select archives by it. Raises ImageError (`cache-incomplete`) if the
    cache lacks a package.
    """
    folder.mkdir()
    stanzas = []
    for name, package in sorted(versions.items()):
        file = folder / f"{name}.deb"
        _link(deb_of(package), file)
        fields = control_of(package).rstrip("\n").split("\n")  # not splitlines(): a description may contain U+2028
        kept = [line for line in fields if not line.startswith(("Filename:", "MD5sum:"))]
        stanzas.append("\n".join([*kept, f"Filename: ./{file.name}", ""]))
    index = "\n".join(stanzas).encode()
    (folder / "Packages").write_bytes(index)
    entry = f"{hashlib.sha256(index).hexdigest()} {len(index)} Packages"
    (folder / "Release").write_text(f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {entry}\n")
