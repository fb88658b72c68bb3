"""Reads the folders of provisioners/: what each brings into a guest at build time. All have one shape:

    provisioner.yaml     what schemas/provisioner.schema.json says: packages, units to enable, what to mask
    root/                files copied onto the guest's /
    persistent/          the first content of the persistent volume
    build                optional: runs in the new root file system once every package is there
    deliver              optional, of `provision` alone: what Vagrant runs in a box; no part of an image

A file has mode 0755 if it is executable here, else 0644; owner root; the same time in every build.
"""

from __future__ import annotations

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

#: The provisioners of every image, in the order in which their build scripts run.
BASE = ("boot", "ssh", "provision", "scratch", "secure", "identity", "base")

#: No file of a provisioner is larger.
MAX_FILE_BYTES = 1 << 20

#: Keys of provisioner.yaml that mask something of a package, and where a link to /dev/null does so.
MASKS = {
    "mask": "etc/systemd/system",
    "mask_generators": "etc/systemd/system-generators",
    "mask_tmpfiles": "etc/tmpfiles.d",
}

#: A unit named under `later` in provisioner.yaml waits until the box is ready, or its provisioning begins.
LATER = b"# A ready box does not need it.\n[Unit]\nAfter=kimbox-ready.service\n"

#: Where build scripts lie in the new root while it is built.
BUILD_DIR = "usr/lib/kimbox/build.d"


@attrs.frozen
class GuestFile:
    """A file (or, with `link`, a symbolic link) for the guest; `path` is relative to its /."""

    path: str
    data: bytes
    mode: int = 0o644
    link: str | None = None


@attrs.frozen
class Provisioner:
    """One folder of provisioners/, read."""

    name: str
    packages: tuple[str, ...]
    #: Packages whose names differ: distribution -> names.
    packages_of: dict[str, tuple[str, ...]]
    enable: tuple[str, ...]
    units: tuple[GuestFile, ...]
    files: tuple[GuestFile, ...]
    persistent: tuple[GuestFile, ...]
    build: bytes | None

    def packages_for(self, distribution: str) -> tuple[str, ...]:
        """Every package it needs in a distribution."""
        return self.packages + self.packages_of.get(distribution, ())


def load(name: str) -> Provisioner:
    """Reads one provisioner. Raises ImageError if it is not there or not of the shape."""
    folder = paths.provisioners_dir() / name
    try:
        return _load(name, folder)
    except OSError as error:
        raise ImageError(f"the provisioner {name} cannot be read: {error}", hint="install kimbox anew") from None


def load_all() -> tuple[Provisioner, ...]:
    """Reads every provisioner of an image, in the order of BASE. Raises what `load` raises."""
    return tuple(load(name) for name in BASE)


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
    """provisioner.yaml, checked. Raises ImageError with every fault."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from kimbox.spec.schema import strict_validator

    try:
        meta = YAML(typ="safe", pure=True).load(read_bounded(file).decode())
    except (YAMLError, ValueError) as error:
        raise ImageError(f"the provisioner {name} cannot be read: {error}") from None
    schema = read_json(paths.schemas_dir() / "provisioner.schema.json")
    faults = sorted(f"{error.json_path}: {error.message}" for error in strict_validator(schema).iter_errors(meta))
    if faults:
        raise ImageError("\n  ".join([f"{file} is not as provisioner.schema.json has it:", *faults]))
    checked: dict[str, Any] = meta
    return checked


def _masks(meta: dict[str, list[str]]) -> Iterator[GuestFile]:
    for key, folder in MASKS.items():
        for entry in meta.get(key, ()):
            yield GuestFile(f"{folder}/{entry}", b"", link="/dev/null")


def _later(meta: dict[str, list[str]]) -> Iterator[GuestFile]:
    for unit in meta.get("later", ()):
        yield GuestFile(f"etc/systemd/system/{unit}.d/kimbox-later.conf", LATER)


def _tree(folder: Path) -> Iterator[GuestFile]:
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            yield GuestFile(str(path.relative_to(folder)), read_bounded(path, limit_bytes=MAX_FILE_BYTES), mode)


def overlay(provisioners: Sequence[Provisioner]) -> list[GuestFile]:
    """Every file of these provisioners for the guest's /, its build scripts and masked units included."""
    files = [f for p in provisioners for f in p.files]
    for index, provisioner in enumerate(provisioners):
        if provisioner.build is not None:
            files.append(GuestFile(f"{BUILD_DIR}/{index:02}-{provisioner.name}", provisioner.build, 0o755))
        files += provisioner.units
    return sorted(files, key=lambda f: f.path)


def digest(files: list[GuestFile]) -> str:
    """sha256 hex digest over names, modes and contents."""
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.path):
        body = hashlib.sha256(file.data).hexdigest()
        whole.update(f"{file.path}\0{file.mode:o}\0{file.link or ''}\0{body}\n".encode())
    return whole.hexdigest()


def write_tar(files: list[GuestFile], target: Path, epoch_s: int) -> None:
    """Writes the files as a tar archive: owned by root, sorted, all of the time `epoch_s` (Unix seconds)."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in sorted(files, key=lambda f: f.path):
            info = tarfile.TarInfo(file.path)
            info.mtime, info.mode, info.size = epoch_s, file.mode, len(file.data)
            if file.link is not None:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, file.link, 0o777
            archive.addfile(info, io.BytesIO(file.data))
