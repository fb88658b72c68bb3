"""Reads the folders of provisioners/: the files and settings that kimbox adds to an image. All have the same structure:

    provisioner.yaml     packages, units to enable and to mask, ... (schemas/provisioner.schema.json)
    root/                files that are copied to the guest's /
    persistent/          the first content of the persistent volume
    build                optional: a script that runs in the new root file system after all packages are installed
    deliver              optional, only in `provision`: a script that Vagrant runs in a box; not part of an image
    listening            optional, only in `provision`: a script that the host runs over ssh; not part of an image

In the guest, a file has mode 0755 if it is executable on the host, else 0644. Its owner is root, and its time is the
same in every build.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import ImageError
from kimbox.files import read_bounded, read_json

#: The provisioner that removes documents. It is part of an image only if the spec does not have `docs: true`.
STRIP = "strip"

#: The provisioners of every image, in the order in which their build scripts run.
BASE = (
    "boot", "ssh", "provision", "scratch", "mounts", "job", "watchdog", "secure", "identity", "freeze", STRIP, "base",
)  # fmt: skip

#: The provisioner whose files get into a running guest, in place of those of BASE, if kimbox did not build its image.
ADOPTED = "adopted"

#: Maximum size of a file of a provisioner, in bytes.
MAX_FILE_BYTES = 1 << 20

#: Keys of provisioner.yaml that mask files of packages -> the folder in which a link to /dev/null masks such a file.
MASKS = {
    "mask": "etc/systemd/system",
    "mask_generators": "etc/systemd/system-generators",
    "mask_tmpfiles": "etc/tmpfiles.d",
}

#: Drop-in for a unit under `later` in provisioner.yaml: the unit starts when the box is ready, or when its provisioning
#: starts.
LATER = b"# A ready box does not need it.\n[Unit]\nAfter=kimbox-ready.service\n"

#: Folder of the build scripts in the new root during the build.
BUILD_DIR = "usr/lib/kimbox/build.d"


@attrs.frozen
class GuestFile:
    """A file for the guest, or a symbolic link with the target `link`. `path` is relative to the guest's /."""

    path: str
    data: bytes
    mode: int = 0o644
    link: str | None = None


@attrs.frozen
class Provisioner:
    """The content of one folder of provisioners/."""

    name: str
    packages: tuple[str, ...]
    #: Packages for one distribution only: distribution -> names.
    packages_of: dict[str, tuple[str, ...]]
    enable: tuple[str, ...]
    units: tuple[GuestFile, ...]
    files: tuple[GuestFile, ...]
    persistent: tuple[GuestFile, ...]
    build: bytes | None

    def packages_for(self, distribution: str) -> tuple[str, ...]:
        """All packages that it needs in a distribution."""
        return self.packages + self.packages_of.get(distribution, ())


def load(name: str) -> Provisioner:
    """Reads one provisioner. Raises ImageError (`bad-provisioner`) if it is missing or its structure is not valid."""
    folder = paths.provisioners_dir() / name
    try:
        return _load(name, folder)
    except OSError as error:
        raise _invalid(name, folder, f"the provisioner {name} cannot be read: {error}") from None


def load_all() -> tuple[Provisioner, ...]:
    """Reads all provisioners of an image, in the order of BASE. Raises the errors of `load`."""
    return tuple(load(name) for name in BASE)


def _invalid(name: str, path: Path, message: str) -> ImageError:
    """The error of a provisioner that cannot be used; `path` is its folder or file."""
    fields = {"name": name, "path": str(path)}
    return ImageError(message, code="bad-provisioner", hint="reinstall kimbox", fields=fields)


def _load(name: str, folder: Path) -> Provisioner:
    meta = _metadata(name, folder / "provisioner.yaml")
    script = folder / "build"
    return Provisioner(
        name=name,
        packages=tuple(meta.get("packages", ())),
        packages_of={name: tuple(names) for name, names in meta.get("packages_of", {}).items()},
        enable=tuple(meta.get("enable", ())),
        units=tuple(_masks(meta)) + tuple(_later(meta)),
        files=tuple(_tree(folder / "root")),
        persistent=tuple(_tree(folder / "persistent")),
        build=read_bounded(script) if script.exists() else None,
    )


def _metadata(name: str, file: Path) -> dict[str, Any]:
    """The content of a provisioner.yaml. Raises ImageError (`bad-provisioner`) that lists every fault."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        meta = YAML(typ="safe", pure=True).load(read_bounded(file).decode())
    except (YAMLError, ValueError) as error:
        raise _invalid(name, file, f"the provisioner {name} cannot be read: {error}") from None
    faults = sorted(f"{error.json_path}: {error.message}" for error in _validator().iter_errors(meta))
    if faults:
        raise _invalid(name, file, "\n  ".join([f"{file} does not match provisioner.schema.json:", *faults]))
    checked: dict[str, Any] = meta
    return checked


@functools.cache
def _validator() -> Any:
    """The validator of provisioner.yaml."""
    from kimbox.spec.schema import strict_validator

    return strict_validator(read_json(paths.schemas_dir() / "provisioner.schema.json"))


def _masks(meta: dict[str, list[str]]) -> Iterator[GuestFile]:
    """The links to /dev/null that mask units, generators and tmpfiles.d(5) files of packages."""
    for key, folder in MASKS.items():
        for entry in meta.get(key, ()):
            yield GuestFile(f"{folder}/{entry}", b"", link="/dev/null")


def _later(meta: dict[str, list[str]]) -> Iterator[GuestFile]:
    """The drop-ins of the units under `later`."""
    for unit in meta.get("later", ()):
        yield GuestFile(f"etc/systemd/system/{unit}.d/kimbox-later.conf", LATER)


def _tree(folder: Path) -> Iterator[GuestFile]:
    """All files in a folder, by path; none if the folder does not exist."""
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            yield GuestFile(str(path.relative_to(folder)), read_bounded(path, limit_bytes=MAX_FILE_BYTES), mode)


def overlay(provisioners: Sequence[Provisioner]) -> list[GuestFile]:
    """All files of these provisioners for the guest's /, with build scripts and masks, by path."""
    files = [f for p in provisioners for f in p.files]
    for index, provisioner in enumerate(provisioners):
        if provisioner.build is not None:
            files.append(GuestFile(f"{BUILD_DIR}/{index:02}-{provisioner.name}", provisioner.build, 0o755))
        files += provisioner.units
    return sorted(files, key=lambda f: f.path)


def digest(files: list[GuestFile]) -> str:
    """The sha256, as hex digest, of paths, modes, link targets and contents."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.path):
        content_digest = hashlib.sha256(file.data).hexdigest()
        total.update(f"{file.path}\0{file.mode:o}\0{file.link or ''}\0{content_digest}\n".encode())
    return total.hexdigest()


def write_tar(files: list[GuestFile], target: Path, epoch_s: int) -> None:
    """Writes a tar archive of the files: sorted by path, owner root, modification time `epoch_s` (Unix seconds)."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in sorted(files, key=lambda f: f.path):
            info = tarfile.TarInfo(file.path)
            info.mtime, info.mode, info.size = epoch_s, file.mode, len(file.data)
            if file.link is not None:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, file.link, 0o777
            archive.addfile(info, io.BytesIO(file.data))
