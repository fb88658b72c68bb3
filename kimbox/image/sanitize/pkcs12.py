"""Detects whether a PKCS#12 store (RFC 7292, encoded in DER, X.690) may hold a key. Pure functions on bytes.

kimbox decrypts nothing: an encrypted part counts as a key. So does a store that cannot be read to its end.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Maximum depth of bags in bags (safeContentsBag). A deeper one counts as a key.
_MAX_DEPTH = 8

#: Tags of DER: types, and the explicit tag [0].
_INTEGER, _OCTETS, _OBJECT, _SEQUENCE, _EXPLICIT = 0x02, 0x04, 0x06, 0x30, 0xA0

#: Object identifiers: pkcs7-data (RFC 2315); the bags that hold no key, certBag and crlBag; safeContentsBag, which
#: holds other bags.
_DATA = bytes.fromhex("2a864886f70d010701")
_CERTIFICATE = bytes.fromhex("2a864886f70d010c0a0103")
_REVOCATIONS = bytes.fromhex("2a864886f70d010c0a0104")
_SAFE = bytes.fromhex("2a864886f70d010c0a0106")
#: Common prefix of the object identifiers of all PKCS#7 content types.
_PKCS7 = bytes.fromhex("2a864886f70d0107")


class _UnreadableError(Exception):
    """The data is not DER, or does not have the structure of PKCS#12."""


def is_pkcs12(head: bytes) -> bool:
    """Whether a file begins like a PFX: a sequence with version 3 and PKCS#7 content. Lengths may be BER."""
    if len(head) < 24 or head[0] != _SEQUENCE:
        return False
    at = 2 + (head[1] & 0x7F if head[1] & 0x80 else 0)
    if at > 6 or head[at : at + 3] != b"\x02\x01\x03" or head[at + 3] != _SEQUENCE:
        return False
    at += 5 + (head[at + 4] & 0x7F if head[at + 4] & 0x80 else 0)
    return head[at : at + 1] == bytes([_OBJECT]) and head[at + 2 : at + 2 + len(_PKCS7)] == _PKCS7


def holds_key(data: bytes) -> bool:
    """Whether a PFX may hold a private key or another secret."""
    try:
        pfx = _only(data, _SEQUENCE)
        _, (_, safe), *_ = _items(pfx)
        inner = _data_of(safe)
        if inner is None:
            return True
        for tag, content in _items(_only(inner, _SEQUENCE)):
            bags = _data_of(content) if tag == _SEQUENCE else None
            if bags is None or _bags_hold_key(_only(bags, _SEQUENCE), _MAX_DEPTH):
                return True
    except (_UnreadableError, ValueError):
        return True
    return False


def _bags_hold_key(data: bytes, depth: int) -> bool:
    for tag, bag in _items(data):
        parts = list(_items(bag)) if tag == _SEQUENCE else []
        if len(parts) < 2 or parts[0][0] != _OBJECT:
            return True
        kind = parts[0][1]
        if kind == _SAFE and depth and parts[1][0] == _EXPLICIT:
            if _bags_hold_key(_only(parts[1][1], _SEQUENCE), depth - 1):
                return True
        elif kind not in (_CERTIFICATE, _REVOCATIONS):
            return True
    return False


def _data_of(content_info: bytes) -> bytes | None:
    """The content of a ContentInfo of type pkcs7-data, or None if it has another type."""
    (tag, kind), *rest = _items(content_info)
    if tag != _OBJECT or kind != _DATA or len(rest) != 1 or rest[0][0] != _EXPLICIT:
        return None
    return _only(rest[0][1], _OCTETS)


def _only(data: bytes, tag: int) -> bytes:
    """The content of the only element. Raises _UnreadableError for several elements or another tag."""
    items = list(_items(data))
    if len(items) != 1 or items[0][0] != tag:
        raise _UnreadableError
    return items[0][1]


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields tag and content of consecutive elements. Raises _UnreadableError if a length exceeds the data."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise _UnreadableError
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            width = length & 0x7F
            if not 0 < width <= 4 or at + width > len(data):  # width 0 is BER's indefinite length
                raise _UnreadableError
            length = int.from_bytes(data[at : at + width], "big")
            at += width
        if at + length > len(data):
            raise _UnreadableError
        yield tag, data[at : at + length]
        at += length
