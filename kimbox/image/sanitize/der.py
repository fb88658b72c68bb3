"""PKCS#12 (RFC 7292) in DER (X.690), as far as it takes to say whether a key is in it. Pure: bytes in, a word out.

Nothing is decrypted: an encrypted part counts as a key, as does whatever cannot be read to its end.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Deeper safes in safes are not looked into.
_MAX_DEPTH = 8

_INTEGER, _OCTETS, _OBJECT, _SEQUENCE, _EXPLICIT = 0x02, 0x04, 0x06, 0x30, 0xA0

#: pkcs7-data (RFC 2315), and the kinds of bags that hold no key: certBag, crlBag; safeContentsBag holds other bags.
_DATA = bytes.fromhex("2a864886f70d010701")
_CERTIFICATE = bytes.fromhex("2a864886f70d010c0a0103")
_REVOCATIONS = bytes.fromhex("2a864886f70d010c0a0104")
_SAFE = bytes.fromhex("2a864886f70d010c0a0106")
#: The beginning of every kind of content of PKCS#7.
_PKCS7 = bytes.fromhex("2a864886f70d0107")


class _UnreadableError(Exception):
    """It is not DER, or not of the form."""


def is_pkcs12(head: bytes) -> bool:
    """Whether it begins like a PFX: a sequence of version 3 and of content of PKCS#7; lengths of BER are taken, too."""
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
    """What a ContentInfo of plain data holds; None where it is of another kind."""
    (tag, kind), *rest = _items(content_info)
    if tag != _OBJECT or kind != _DATA or len(rest) != 1 or rest[0][0] != _EXPLICIT:
        return None
    return _only(rest[0][1], _OCTETS)


def _only(data: bytes, tag: int) -> bytes:
    """The content of the one element there is, which has this tag."""
    found = list(_items(data))
    if len(found) != 1 or found[0][0] != tag:
        raise _UnreadableError
    return found[0][1]


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents of the elements in a row. Raises _UnreadableError where their lengths do not fit."""
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise _UnreadableError
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            width = length & 0x7F
            if not 0 < width <= 4 or at + width > len(data):  # 0: a length of BER, unknown until the end
                raise _UnreadableError
            length = int.from_bytes(data[at : at + width], "big")
            at += width
        if at + length > len(data):
            raise _UnreadableError
        yield tag, data[at : at + length]
        at += length
