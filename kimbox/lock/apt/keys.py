"""Reads the keys of apt's option Signed-By, which sign an archive: paths of keyrings, a key in the text, fingerprints.

Formats: sources.list(5), RFC 9580 (OpenPGP packets and ASCII armor).
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from kimbox.errors import ImageError, KimboxError
from kimbox.files import read_bounded

#: Keyring files of the distributions' own packages. Keys in /etc/apt/trusted.gpg.d are accepted too.
KEYRINGS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}

#: Prefixes of the paths of keyrings that a package of the distribution installs, so that a guest has them too.
_DISTRIBUTION_KEYRINGS = ("/usr/share/keyrings/debian-archive-", "/usr/share/keyrings/ubuntu-archive-")

#: Maximum size of the keys of one source, in bytes: they become part of the lock.
MAX_KEY_BYTES = 128 << 10

_BEGIN, _END = b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"-----END PGP PUBLIC KEY BLOCK-----"
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{40,64}!?")

#: Types of OpenPGP packets: a key that is first in a keyring, and secret keys.
_PUBLIC_KEY, _SECRET_KEYS = 6, (5, 7)

#: Initial value and polynomial of the checksum of ASCII armor (RFC 9580, 6.1.1).
_CRC_START, _CRC_POLYNOMIAL = 0xB704CE, 0x1864CFB


def signed_by(value: str, entry: str) -> str:
    """The keys that an option Signed-By accepts, as one armored block or as fingerprints separated by blanks.

    Empty if the value is empty or names keyrings of the distribution, which kimbox accepts for every source. `entry`
    is the entry of the source, for messages. Raises ImageError: `file-not-found`, `file-unreadable`, `file-too-large`,
    `bad-public-key`.
    """
    if "-----BEGIN" in value:
        lines = (line.strip() for line in value.splitlines())
        return armor(keys_in("\n".join("" if line == "." else line for line in lines).encode(), entry))
    items = value.replace(",", " ").split()
    files = [item for item in items if item.startswith("/")]
    fingerprints = [item for item in items if _FINGERPRINT.fullmatch(item)]
    if fingerprints:
        return " ".join(fingerprints)
    if not files or all(file.startswith(_DISTRIBUTION_KEYRINGS) for file in files):
        return ""
    return armor(b"".join(_read(Path(file), entry) for file in files))


def with_distribution(keys: str, distribution: str) -> str:
    """An armored block with the keys of another one and those of the distribution."""
    keyring = Path(KEYRINGS[distribution])
    if not keyring.is_file() or not is_block(keys):
        return keys
    return armor(keys_in(keys.encode(), "") + _read(keyring, ""))


def is_block(keys: str) -> bool:
    """Whether a result of `signed_by` is an armored block."""
    return keys.startswith(_BEGIN.decode())


def _read(file: Path, entry: str) -> bytes:
    """The keys of a keyring file, binary or armored."""
    try:
        return keys_in(read_bounded(file, limit_bytes=MAX_KEY_BYTES), f"{file} (Signed-By of {entry})")
    except (OSError, KimboxError) as error:
        if isinstance(error, ImageError):
            raise
        code = error.code if isinstance(error, KimboxError) else "file-unreadable"
        raise ImageError(
            f"the keyring {file} cannot be read, which {entry} names as Signed-By: "
            f"{error.strerror if isinstance(error, OSError) else error.message}",
            code="file-not-found" if isinstance(error, FileNotFoundError) else code,
            hint="`apt-get update` must work on this host first",
            fields={"path": str(file)},
        ) from None


def keys_in(data: bytes, name: str) -> bytes:
    """The binary keys in a keyring. Raises ImageError (`bad-public-key`) if it is not a keyring of public keys."""
    try:
        keys = b"".join(_dearmor(data)) if _BEGIN in data else data
        if len(keys) > MAX_KEY_BYTES or not is_public_keyring(keys):
            raise ValueError
    except (ValueError, IndexError):
        raise ImageError(
            f"{name} is not a keyring of OpenPGP public keys",
            code="bad-public-key",
            hint="`gpg --export KEY` writes one",
            fields={"path": name},
        ) from None
    return keys


def _dearmor(data: bytes) -> list[bytes]:
    """The binary content of each armored block. Raises ValueError if a block is not valid."""
    blocks: list[bytes] = []
    lines: list[bytes] | None = None
    has_header = True
    for line in map(bytes.strip, data.split(b"\n")):
        if line == _BEGIN:
            lines, has_header = [], True
        elif line == _END and lines is not None:
            blocks.append(base64.b64decode(b"".join(lines), validate=True))
            lines = None
        elif lines is not None and has_header:
            has_header = bool(line)  # the header ends with an empty line
        elif lines is not None and not line.startswith(b"="):
            lines.append(line)
    if lines is not None:
        raise ValueError("the armor has no end")
    return blocks


def is_public_keyring(keys: bytes) -> bool:
    """Whether data is OpenPGP packets, the first of them a public key, and none of them a secret key.

    Raises IndexError if it ends within a packet.
    """
    at = number = 0
    while at < len(keys):
        first, at = keys[at], at + 1
        if first & 0xC0 == 0xC0:
            kind, (size, at) = first & 0x3F, _new_size(keys, at)
        elif first & 0x80 and first & 3 != 3:
            kind, width = first >> 2 & 0xF, 1 << (first & 3)
            size, at = int.from_bytes(keys[at : at + width]), at + width
        else:
            return False
        if kind in _SECRET_KEYS or (number == 0 and kind != _PUBLIC_KEY) or at + size > len(keys):
            return False
        at, number = at + size, number + 1
    return number > 0


def _new_size(keys: bytes, at: int) -> tuple[int, int]:
    """The size of a packet in the current format, and the offset of its content. Partial sizes are not valid here."""
    first = keys[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        return (first - 192 << 8) + keys[at + 1] + 192, at + 2
    if first < 255:
        raise IndexError
    return int.from_bytes(keys[at + 1 : at + 5]), at + 5


def armor(keys: bytes) -> str:
    """Binary keys as one armored block, which ends with a newline. Equal keys give an equal text.

    Raises ImageError (`file-too-large`).
    """
    if len(keys) > MAX_KEY_BYTES:
        raise ImageError(
            f"the keys of an apt source have {len(keys)} bytes; at most {MAX_KEY_BYTES} are allowed",
            code="file-too-large",
            hint="name a keyring with fewer keys in Signed-By",
            fields={"limit": "keys"},
        )
    crc = _CRC_START
    for byte in keys:
        crc ^= byte << 16
        for _ in range(8):
            crc = crc << 1 ^ (_CRC_POLYNOMIAL if crc & 0x800000 else 0)
    text = binascii.b2a_base64(keys, newline=False).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    check = base64.b64encode((crc & 0xFFFFFF).to_bytes(3)).decode()
    return "\n".join([_BEGIN.decode(), "", *lines, f"={check}", _END.decode(), ""])
