"""Reads the on-disk format of LVM2. It is written from the format's description and shares no code with the writer."""

from __future__ import annotations

import re
import struct
from typing import Any

TOKEN = re.compile(r'\s*(?:#[^\n]*\s*)*("(?:[^"\\]|\\.)*"|[\[\]{}=,]|[^\s\[\]{}=,"#]+)')

#: CRC-32 table of the polynomial 0xEDB88320, four bits at a time, as in lib/misc/crc.c.
CRC_TABLE = [
    0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
    0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C,
]  # fmt: skip


def checksum(data: bytes) -> int:
    """Returns LVM's checksum, computed like calc_crc in lib/misc/crc.c."""
    crc = 0xF597A6CF
    for byte in data:
        crc ^= byte
        crc = (crc >> 4) ^ CRC_TABLE[crc & 0xF]
        crc = (crc >> 4) ^ CRC_TABLE[crc & 0xF]
    return crc


def parse(text: str) -> dict[str, Any]:
    """Parses LVM's text format: sections, numbers, quoted texts, lists."""
    tokens = [m[1] for m in TOKEN.finditer(text)]
    value, rest = _section(tokens, 0)
    assert rest == len(tokens)
    return value


def _section(tokens: list[str], at: int) -> tuple[dict[str, Any], int]:
    fields: dict[str, Any] = {}
    while at < len(tokens) and tokens[at] != "}":
        name, sign = tokens[at], tokens[at + 1]
        assert name not in fields, f"{name} occurs twice"
        if sign == "{":
            fields[name], at = _section(tokens, at + 2)
            assert tokens[at] == "}"
            at += 1
        else:
            assert sign == "="
            fields[name], at = _value(tokens, at + 2)
    return fields, at


def _value(tokens: list[str], at: int) -> tuple[Any, int]:
    if tokens[at] != "[":
        return _scalar(tokens[at]), at + 1
    end = tokens.index("]", at)
    return [_scalar(t) for t in tokens[at + 1 : end] if t != ","], end + 1


def _scalar(token: str) -> str | int:
    return token[1:-1] if token[0] == '"' else int(token)


def _locations(data: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """Returns a list of (offset, size) that ends with zeros, and the position after it."""
    pairs = []
    while (pair := struct.unpack_from("<QQ", data, at)) != (0, 0):
        pairs.append(pair)
        at += 16
    return pairs, at + 16


def read(pv: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the facts in the label of a physical volume, and its volume group. Checks every checksum."""
    label = pv[512:1024]
    name, sector, crc, offset, kind = struct.unpack_from("<8sQII8s", label)
    assert (name, sector, kind) == (b"LABELONE", 1, b"LVM2 001")
    assert crc == checksum(label[20:])
    uuid, size = struct.unpack_from("<32sQ", label, offset)
    data_areas, after = _locations(label, offset + 40)
    metadata_areas, after = _locations(label, after)
    version, flags = struct.unpack_from("<II", label, after)
    [(start, length)] = metadata_areas
    header = pv[start : start + 512]
    crc, magic, header_version, own_start, own_length = struct.unpack_from("<I16sIQQ", header)
    assert (magic, header_version, own_start, own_length) == (b"\x20LVM2\x20x[5A%r0N*>", 1, start, length)
    assert crc == checksum(header[4:])
    text_at, text_length, text_crc, _ = struct.unpack_from("<QQII", header, 40)
    assert (0, 0) == struct.unpack_from("<QQ", header, 64), "a pre-committed text"
    text = pv[start + text_at : start + text_at + text_length]
    assert text_crc == checksum(text)
    assert text.endswith(b"\n\n\0")
    facts = {"uuid": uuid.decode(), "size": size, "data": data_areas, "version": version, "flags": flags}
    return facts, parse(text[:-1].decode())
