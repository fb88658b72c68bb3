"""Box archives of Vagrant, valid and invalid."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

from kimbox import run

#: Size of the disk in an archive.
DISK_BYTES = 4 << 20


def raw_disk(path: Path) -> Path:
    """Writes a small raw disk with a partition signature and some data. Returns its path."""
    content = bytearray(DISK_BYTES)
    content[510:512] = b"\x55\xaa"
    content[1 << 20 : (1 << 20) + 4000] = b"kimbox! " * 500
    path.write_bytes(content)
    return path


def converted(raw: Path, kind: str, *options: str) -> bytes:
    """Returns the content of a raw disk in another format."""
    target = raw.with_name(f"converted.{kind}")
    run.run(["qemu-img", "convert", "-f", "raw", "-O", kind, *options, raw, target])
    data = target.read_bytes()
    target.unlink()
    return data


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Returns the header of a member of any kind."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def archive(*members: tuple[str | tarfile.TarInfo, bytes], compress: str = "") -> bytes:
    """Returns a tar archive with these members. `compress` is `gzip`, `xz` or empty."""
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for head, data in members:
            info = member(head, len(data)) if isinstance(head, str) else head
            tar.addfile(info, io.BytesIO(data) if data else None)
    if compress == "gzip":
        return gzip.compress(buffer.getvalue(), mtime=0)
    return lzma.compress(buffer.getvalue()) if compress == "xz" else buffer.getvalue()


def metadata(provider: str = "libvirt", **more: object) -> tuple[str, bytes]:
    """Returns the name and content of metadata.json of a box for a provider."""
    value = {"provider": provider} | ({"format": "qcow2", "virtual_size": 1} if provider == "libvirt" else {})
    return "metadata.json", json.dumps(value | more).encode()
