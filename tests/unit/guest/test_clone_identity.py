"""The line with the identity of a clone."""

from __future__ import annotations

import time

from kimbox.guest.identity import SEED_BYTES, Identity

IDENTITY = Identity(
    name="one",
    uuid="00000000-0000-4000-8000-000000000001",
    host_key="-----BEGIN KEY-----\nsecret\n",
    host_public="ssh-ed25519 AAAA kimbox\n",
    authorized_key="ssh-ed25519 BBBB kimbox-one",
)


def parsed(line: bytes) -> dict[str, bytes]:
    """Parses a line as the guest does: words KEY=HEX."""
    assert line.endswith(b"\n")
    assert 1 == line.count(b"\n")
    words = [word.partition("=") for word in line.decode().split()]
    return {key: bytes.fromhex(value) for key, _, value in words}


def test_a_line_has_everything_that_the_guest_reads() -> None:
    before_ns = time.time_ns()
    values = parsed(IDENTITY.line())
    assert {"name", "uuid", "host_key", "host_public", "authorized_key", "boot_id", "seed", "wall_ns"} == set(values)
    assert IDENTITY.host_key.encode() == values["host_key"]
    assert SEED_BYTES == len(values["seed"])
    assert before_ns <= int(values["wall_ns"]) <= time.time_ns()


def test_a_seed_is_used_once() -> None:
    first, second = parsed(IDENTITY.line()), parsed(IDENTITY.line())
    assert first["seed"] != second["seed"]
    assert first["boot_id"] == second["boot_id"]


def test_the_private_key_is_not_printed() -> None:
    assert "secret" not in repr(IDENTITY)
