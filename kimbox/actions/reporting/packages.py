"""Opens a package for a report: unpacks it, and reads the files that its author wrote. All of them are untrusted."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from kimbox.errors import KimboxError, StateError
from kimbox.files import parse_json, read_bounded, sha256_file
from kimbox.image import origin
from kimbox.image.formats import sums
from kimbox.image.sources import remote
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.lock.lockfile import Lock, parse_lock
from kimbox.lock.provenance.inputs import Provenance
from kimbox.log import log
from kimbox.spec.model import RemoteImage

#: Maximum size of a file beside a package, in bytes.
MAX_FILE_BYTES = 16 << 20

#: Maximum length of a name in a package's own files, in characters.
MAX_NAME = 100

#: Name of the provenance statement of a package.
STATEMENT = "provenance.intoto.json"

#: A check of a package: name, outcome, evidence.
Check = tuple[str, str, str]


@attrs.frozen
class PackageFile:
    """The file of a package: its name, its sha256 hex digest and its size in bytes."""

    name: str
    sha256: str
    size_bytes: int


@attrs.frozen
class Package:
    """An unpacked package, while its files exist."""

    file: PackageFile
    image: Image
    #: What the files of the package say about it.
    provenance: Provenance
    spec: bytes
    has_lock: bool
    checks: tuple[Check, ...]


@contextmanager
def opened(path: Path, keys: tuple[str, ...]) -> Iterator[Package]:
    """Unpacks a package for the duration of the block.

    Raises StateError if the file does not exist or cannot be read, and the errors of `remote.fetch` and
    `remote.check_signature`.
    """
    if not path.is_file():  # a device may have no end
        code = "file-unreadable" if os.path.lexists(path) else "file-not-found"
        problem = "it is not a file" if code == "file-unreadable" else "there is no such file"
        raise StateError(f"the package {path} cannot be read: {problem}", code=code, fields={"path": str(path)})
    with log.step(f"reading {path.name}"):
        digest = sha256_file(path)
    file = PackageFile(path.name, digest.removeprefix("sha256:"), path.stat().st_size)
    location = os.path.abspath(path)  # noqa: PTH100 - a symbolic link keeps its name
    busy = "another kimbox process is reading this package"
    with images.workspace(f"report-{file.sha256}", busy=busy) as work:
        (work / images.DONE).mkdir()
        facts = remote.fetch(RemoteImage(location, digest), work, keys, None)
        image = Image(file.sha256, work / images.DONE / images.DISKS[facts["format"]], facts["format"], facts)
        if keys:
            remote.check_signature(image, location, keys)
        yield _described(file, image, path, is_signed=bool(keys))


def _described(file: PackageFile, image: Image, path: Path, *, is_signed: bool) -> Package:
    """A package, from its own files: those inside, or those beside it that its checksum file lists."""
    beside = _beside(path, file.sha256)

    def content(name: str) -> bytes | None:
        return images.kept_file(image, name) or beside.get(name)

    about = _json(content("kimbox.json"))
    lock, lock_text = None, content("kimbox.lock")
    if lock_text is not None:
        with contextlib.suppress(KimboxError):
            lock, _ = parse_lock(lock_text.decode("utf-8", "replace"), Path("kimbox.lock"))
    known_lock = lock or Lock("", None, {})
    listed = about.get("unpinned")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    unpinned = [name for name in names if name in known_lock.repositories]
    whole = Provenance(
        _text(about.get("name")) or path.name,
        attrs.evolve(known_lock, unpinned=tuple(unpinned), frozen_digest=known_lock.digest),
        image=_text(about.get("image")) or None,
        image_sha256=sha256_file(image.disk).removeprefix("sha256:"),
        changed=tuple(sorted(origin.changed_in(about.get("changes")))),
        files={file.name: file.sha256},
    )
    subjects = _subjects(_json(content(STATEMENT)))
    checks = (_signature(content(sums.SIGNATURE_NAME), is_signed), _statement(subjects, whole, file.sha256))
    return Package(file, image, whole, content("kimbox.yaml") or b"", lock is not None, checks)


def _signature(signature: bytes | None, is_signed: bool) -> Check:
    name = "The package has a signature of its author"
    if is_signed:
        return name, "pass", "one of the keys of --key has signed its checksums"
    if signature:
        return name, "unknown", "it has a signature that was not verified: `kimbox report --key KEY` verifies it"
    return name, "unknown", "it has no signature, so its own files are claims of whoever wrote it"


def _statement(subjects: set[str], whole: Provenance, sha256: str) -> Check:
    name = "The provenance statement is about these bytes"
    if not subjects:
        return name, "unknown", "the package has no provenance statement"
    if subjects & {sha256, whole.image_sha256}:
        return name, "pass", "the sha256 of the package or of its disk is a subject of the statement"
    return name, "unknown", "its subjects have other digests; a VMDK is converted before it is read"


def _beside(path: Path, sha256: str) -> Mapping[str, bytes]:
    """The files beside a package, without the prefix of the box, if a checksum file lists them and the package.

    Raises ImageError (`checksum-mismatch`) if the checksum file lists another digest of a file.
    """
    prefix = path.name.partition(".")[0]
    listed = _read(path.with_name(f"{prefix}.{sums.NAME}"))
    if listed is None:
        return {}
    digests, found = sums.parse(listed), {path.name: sha256}
    if path.name not in digests:
        return {}
    contents = {}
    for name in ("kimbox.json", "kimbox.yaml", "kimbox.lock", STATEMENT):
        data = _read(path.with_name(f"{prefix}.{name}"))
        if data is not None and f"{prefix}.{name}" in digests:
            contents[name] = data
            found[f"{prefix}.{name}"] = hashlib.sha256(data).hexdigest()
    sums.check(sums.text({name: digests[name] for name in found}), found)
    signature = _read(path.with_name(f"{prefix}.{sums.SIGNATURE_NAME}"))
    return contents | ({sums.SIGNATURE_NAME: signature} if signature else {})


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(OSError, KimboxError):
        return read_bounded(path, limit_bytes=MAX_FILE_BYTES)
    return None


def _json(data: bytes | None) -> dict[str, Any]:
    """The JSON object in a file, or an empty one."""
    with contextlib.suppress(ValueError):
        value = parse_json(data or b"{}")
        return value if isinstance(value, dict) else {}
    return {}


def _subjects(statement: Mapping[str, Any]) -> set[str]:
    """The sha256 hex digests of the subjects of a statement. Values of another form are left out."""
    found, listed = set(), statement.get("subject")
    for subject in listed if isinstance(listed, list) else []:
        digests = subject.get("digest") if isinstance(subject, dict) else None
        if isinstance(digests, dict) and isinstance(digests.get("sha256"), str):
            found.add(digests["sha256"])
    return found


def _text(value: object) -> str:
    """A short text of a package; empty for another value."""
    return value[:MAX_NAME] if isinstance(value, str) else ""
