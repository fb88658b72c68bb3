"""Detects private keys, and stores of keys and certificates, by the content of a file. Pure functions on bytes.

For any input the time is linear in its size. Only a window of it is in memory, or a store of at most MAX_STORE_BYTES. A
store that may hold a key and cannot be read to its end counts as a key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum

from kimbox.image.sanitize import pkcs12

#: Maximum size of a store that is parsed, in bytes. A larger one counts as a key.
MAX_STORE_BYTES = 16 << 20


class Kind(StrEnum):
    """What a file holds, as messages and JSON show it."""

    PEM = "private key (PEM)"
    OPENSSH = "private key (OpenSSH)"
    PUTTY = "private key (PuTTY)"
    DROPBEAR = "private key (Dropbear)"
    OPENPGP = "private key (OpenPGP)"
    GNUPG = "private key (GnuPG)"
    TOR = "private key (Tor)"
    PKCS12 = "private key (PKCS#12 store)"
    JAVA = "private key (Java store)"
    NSS = "private keys (NSS database)"
    SECRET = "shared secret"  # noqa: S105 - the name of a kind
    DATABASE = "database"
    IDENTITY = "identity of a machine"
    CERTIFICATES = "certificates"

    @property
    def is_harmless(self) -> bool:
        """Whether a file of this kind may be in every box."""
        return self is Kind.CERTIFICATES


#: Parts of the line that starts a key in PEM (RFC 7468), and its end in the ASCII armour of OpenPGP (RFC 9580).
_MARK, _BEGIN, _DASHES = b"PRIVATE KEY", b"-----BEGIN ", b"-----"
_ARMOUR = b" BLOCK"

#: Number of bytes from the mark on that are examined, and maximum length of the label before the mark.
WINDOW_BYTES = 4096
_LABEL_BYTES = 64

#: Minimum number of base64 digits of a key; maximum number of headers before them, and maximum length of one in bytes.
_BODY_DIGITS = 40
_MAX_HEADERS = 16
_MAX_HEADER_BYTES = 512
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")

#: First bytes of files that hold a private key and nothing else. Dropbear's begin with the length of a name.
_HEADS = (
    (b"PuTTY-User-Key-File-", Kind.PUTTY),
    (b"== ed25519v1-secret: ", Kind.TOR),
    (b"\0\0\0\x07ssh-rsa\0", Kind.DROPBEAR),
    (b"\0\0\0\x07ssh-dss\0", Kind.DROPBEAR),
    (b"\0\0\0\x0bssh-ed25519\0", Kind.DROPBEAR),
    (b"\0\0\0\x13ecdsa-sha2-nistp", Kind.DROPBEAR),
    (b"(11:private-key", Kind.GNUPG),
    (b"(21:protected-private-key", Kind.GNUPG),
)

#: Start of the line with the key in the extended format of GnuPG's agent (its doc/keyformat.txt). Other lines may
#: come before.
_GNUPG_KEY = (b"Key: (private-key", b"Key: (protected-private-key")

#: Magic numbers of Java's stores (sun.security.provider.JavaKeyStore, com.sun.crypto.provider.JceKeyStore), and the
#: kind of an entry that is a trusted certificate.
_JKS, _JCEKS = 0xFEEDFEED, 0xCECECECE
_JAVA_CERTIFICATE = 2

#: OpenPGP (RFC 9580): types of the packet of a secret key and of those that may follow it, versions, algorithms.
_SECRET_KEY, _USER_ID, _SIGNATURE, _SECRET_SUBKEY, _ATTRIBUTE = 5, 13, 2, 7, 17
_VERSIONS = frozenset((3, 4, 5, 6))
_ALGORITHMS = frozenset((*range(1, 4), *range(16, 20), 22, *range(25, 29)))


def kind_of_content(size_bytes: int, pieces: Iterator[bytes]) -> Kind | None:
    """Returns the kind of key that a file holds, or None. `pieces`: its content in order, with or without holes."""
    first = next(pieces, b"")
    if kind := kind_of_head(first):
        return kind
    if is_store(first):
        return _kind_of_store(size_bytes, first, pieces)
    search = Search()
    if kind := search.feed(first):
        return kind
    for piece in pieces:
        if kind := search.feed(piece):
            return kind
    return search.end()


def kind_of_head(head: bytes) -> Kind | None:
    """Detects a key by the first bytes of a file: PuTTY, Tor, Dropbear, GnuPG, binary OpenPGP."""
    for start, kind in _HEADS:
        if head.startswith(start):
            return kind
    if any(mark in head[:WINDOW_BYTES] for mark in _GNUPG_KEY) and head[:1].isalpha():
        lines = head[:WINDOW_BYTES].splitlines()
        if any(line.startswith(_GNUPG_KEY) for line in lines):
            return Kind.GNUPG
    return Kind.OPENPGP if _is_openpgp(head) else None


class Search:
    """Searches a stream of bytes for PEM, and for OpenPGP keys in ASCII armour."""

    def __init__(self) -> None:
        self._held = b""
        self._from = 0

    def feed(self, piece: bytes) -> Kind | None:
        """Takes the next bytes. Returns the first key that is complete enough to be detected."""
        held = self._held + piece
        limit = len(held) - WINDOW_BYTES
        kind = self._search(held, limit)
        keep = max(0, limit - _LABEL_BYTES)
        self._held = held[keep:]
        self._from = max(self._from, limit) - keep if limit > 0 else self._from
        return kind

    def end(self) -> Kind | None:
        """Ends the stream. Returns a key in its last bytes."""
        return self._search(self._held, len(self._held))

    def _search(self, held: bytes, limit: int) -> Kind | None:
        """Returns the first key whose mark begins before `limit`."""
        at = held.find(_MARK, self._from)
        while 0 <= at < limit:
            if kind := _kind_at_mark(held, at):
                return kind
            at = held.find(_MARK, at + len(_MARK))
        return None


def _kind_at_mark(data: bytes, at: int) -> Kind | None:
    """Returns the kind of the key that begins around the mark at this offset, or None if no key follows."""
    begin = data.rfind(_BEGIN, max(0, at - _LABEL_BYTES), at)
    if begin < 0:
        return None
    label = data[begin + len(_BEGIN) : at]
    end = at + len(_MARK)
    is_armour = data.startswith(_ARMOUR, end)
    end += len(_ARMOUR) * is_armour
    if any(byte < 0x20 or byte > 0x7E for byte in label) or not data.startswith(_DASHES, end):
        return None
    if not _has_body(data[end + len(_DASHES) : at + WINDOW_BYTES]):
        return None
    if is_armour:
        return Kind.OPENPGP
    return Kind.OPENSSH if label == b"OPENSSH " else Kind.PEM


def _has_body(data: bytes) -> bool:
    """Whether the data is a line break, optional headers and base64. JSON has a line break as a backslash and n."""
    lines = (
        data.replace(b"\\r", b"\r").replace(b"\\n", b"\n").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    )
    if len(lines) < 2 or lines[0].strip():
        return False
    digits = 0
    for number, line in enumerate(lines[1:]):
        text = line.strip(b" \t\"'>|#*,")
        if text and all(byte in _BASE64 for byte in text):
            digits += len(text)
            if digits >= _BODY_DIGITS:
                return True
        elif digits or number > _MAX_HEADERS or len(line) > _MAX_HEADER_BYTES or (text and b":" not in text):
            return False
    return False


def _is_openpgp(head: bytes) -> bool:
    """Whether the first packet is a secret key, and the second one may follow a secret key."""
    packet = _packet(head, 0)
    if packet is None or packet[0] != _SECRET_KEY:
        return False
    _, start, end = packet
    if end - start < 20 or start + 8 > len(head) or head[start] not in _VERSIONS:
        return False
    algorithm = head[start + (7 if head[start] == 3 else 5)]
    if algorithm not in _ALGORITHMS or end >= len(head):
        return False
    following = _packet(head, end)
    return following is not None and following[0] in (_USER_ID, _SIGNATURE, _SECRET_SUBKEY, _ATTRIBUTE)


def _packet(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Type, start and end of the content of an OpenPGP packet, or None if there is no packet of a known length."""
    header = data[at : at + 6].ljust(6, b"\0")
    if not header[0] & 0x80:
        return None
    if header[0] & 0x40:
        tag, first = header[0] & 0x3F, header[1]
        if first < 192:
            return tag, at + 2, at + 2 + first
        if first < 224:
            return tag, at + 3, at + 3 + (first - 192) * 256 + header[2] + 192
        return (tag, at + 6, at + 6 + int.from_bytes(header[2:6], "big")) if first == 255 else None
    tag, kind = header[0] >> 2 & 0xF, header[0] & 3
    if kind == 3:
        return None
    width = 1 << kind
    return tag, at + 1 + width, at + 1 + width + int.from_bytes(header[1 : 1 + width], "big")


def is_store(head: bytes) -> bool:
    """Whether a file begins like a Java store or a PKCS#12 store."""
    if len(head) >= 12 and struct.unpack_from(">I", head)[0] in (_JKS, _JCEKS):
        return struct.unpack_from(">I", head, 4)[0] in (1, 2)
    return pkcs12.is_pkcs12(head)


def _kind_of_store(size_bytes: int, first: bytes, pieces: Iterator[bytes]) -> Kind:
    """Returns CERTIFICATES if a store certainly holds no key, else the kind of the store."""
    is_java = not pkcs12.is_pkcs12(first)
    kind = Kind.JAVA if is_java else Kind.PKCS12
    if size_bytes > MAX_STORE_BYTES:
        return kind
    data = bytearray(first)
    for piece in pieces:
        data += piece
        if len(data) > MAX_STORE_BYTES:
            return kind
    holds_key = _java_holds_key if is_java else pkcs12.holds_key
    return kind if holds_key(bytes(data)) else Kind.CERTIFICATES


def _java_holds_key(data: bytes) -> bool:
    """Whether an entry of a Java store is not a trusted certificate."""
    _, version, count = struct.unpack_from(">III", data)
    at = 12
    try:
        for _ in range(count):
            (kind,) = struct.unpack_from(">I", data, at)
            if kind != _JAVA_CERTIFICATE:
                return True
            at += 4 + 2 + struct.unpack_from(">H", data, at + 4)[0] + 8
            if version == 2:  # the type of the certificate
                at += 2 + struct.unpack_from(">H", data, at)[0]
            at += 4 + struct.unpack_from(">I", data, at)[0]
    except struct.error:
        return True
    return at > len(data)
