"""The forms that private keys have in files, and stores of certificates that look like them. Pure.

Whatever the bytes are, time is linear in them, and no more than a window of them is held. A form that may hold a key
and cannot be read to its end counts as a key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum

from kimbox.image.sanitize import der

#: Formats with a structure are read whole up to this size; a larger one counts as a key.
MAX_STORE_BYTES = 16 << 20


class Kind(StrEnum):
    """What was found."""

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
        """Whether every box may have it."""
        return self is Kind.CERTIFICATES


#: Before and after the words that name a key in PEM (RFC 7468), and in the armour of OpenPGP (RFC 9580).
_MARK, _BEGIN, _DASHES = b"PRIVATE KEY", b"-----BEGIN ", b"-----"
_ARMOUR = b" BLOCK"

#: So many bytes from the mark on decide; the longest label before it.
WINDOW_BYTES = 4096
_LABEL_BYTES = 64

#: A body has at least so many digits of base64; headers before it are no more and no longer than that.
_BODY_DIGITS = 40
_MAX_HEADERS = 16
_MAX_HEADER_BYTES = 512
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")

#: How files begin that hold a private key and nothing else; Dropbear's with the length of a name.
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

#: In the extended format of GnuPG's agent (its doc/keyformat.txt), after names and their values.
_GNUPG_KEY = (b"Key: (private-key", b"Key: (protected-private-key")

#: Java's stores (sun.security.provider.JavaKeyStore, com.sun.crypto.provider.JceKeyStore): magic, version, entries.
_JKS, _JCEKS = 0xFEEDFEED, 0xCECECECE
_JAVA_CERTIFICATE = 2

#: OpenPGP (RFC 9580): the packet of a secret key, versions, the algorithms of public keys, and what may follow it.
_SECRET_KEY, _USER_ID, _SIGNATURE, _SECRET_SUBKEY, _ATTRIBUTE = 5, 13, 2, 7, 17
_VERSIONS = frozenset((3, 4, 5, 6))
_ALGORITHMS = frozenset((*range(1, 4), *range(16, 20), 22, *range(25, 29)))


def of_content(size_bytes: int, pieces: Iterator[bytes]) -> Kind | None:
    """What a file holds, None where that is no key. `pieces`: its content in order; holes may be left out."""
    first = next(pieces, b"")
    if found := of_head(first):
        return found
    if is_store(first):
        return _of_store(size_bytes, first, pieces)
    search = Search()
    if found := search.feed(first):
        return found
    for piece in pieces:
        if found := search.feed(piece):
            return found
    return search.end()


def of_head(head: bytes) -> Kind | None:
    """What begins like a key of one of the plain forms."""
    for start, kind in _HEADS:
        if head.startswith(start):
            return kind
    if any(mark in head[:WINDOW_BYTES] for mark in _GNUPG_KEY) and head[:1].isalpha():
        lines = head[:WINDOW_BYTES].splitlines()
        if any(line.startswith(_GNUPG_KEY) for line in lines):
            return Kind.GNUPG
    return Kind.OPENPGP if _is_openpgp(head) else None


class Search:
    """Looks for PEM and its like in a stream of bytes."""

    def __init__(self) -> None:
        self._held = b""
        self._from = 0

    def feed(self, piece: bytes) -> Kind | None:
        """The next bytes. Returns what is found in those that can be decided by now."""
        held = self._held + piece
        limit = len(held) - WINDOW_BYTES
        found = self._look(held, limit)
        keep = max(0, limit - _LABEL_BYTES)
        self._held = held[keep:]
        self._from = max(self._from, limit) - keep if limit > 0 else self._from
        return found

    def end(self) -> Kind | None:
        """What the last bytes hold."""
        return self._look(self._held, len(self._held))

    def _look(self, held: bytes, limit: int) -> Kind | None:
        """What is at the marks up to `limit`."""
        at = held.find(_MARK, self._from)
        while 0 <= at < limit:
            if found := _at_mark(held, at):
                return found
            at = held.find(_MARK, at + len(_MARK))
        return None


def _at_mark(data: bytes, at: int) -> Kind | None:
    """What the label is around the mark at this place, if a key follows."""
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
    """Whether a break of a line, maybe headers, and then base64 follow; in JSON breaks are written as backslash n."""
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
    """Whether a binary secret key comes first, and what may follow one after it."""
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
    """Tag, start and end of the content of an OpenPGP packet; None where there is none of a known length."""
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
    """Whether it begins like a Java store, or like PKCS#12."""
    if len(head) >= 12 and struct.unpack_from(">I", head)[0] in (_JKS, _JCEKS):
        return struct.unpack_from(">I", head, 4)[0] in (1, 2)
    return der.is_pkcs12(head)


def _of_store(size_bytes: int, first: bytes, pieces: Iterator[bytes]) -> Kind:
    is_java = not der.is_pkcs12(first)
    kind = Kind.JAVA if is_java else Kind.PKCS12
    if size_bytes > MAX_STORE_BYTES:
        return kind
    data = bytearray(first)
    for piece in pieces:
        data += piece
        if len(data) > MAX_STORE_BYTES:
            return kind
    holds_key = _java_holds_key if is_java else der.holds_key
    return kind if holds_key(bytes(data)) else Kind.CERTIFICATES


def _java_holds_key(data: bytes) -> bool:
    """Whether an entry of a Java store is anything but a certificate that is trusted."""
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
