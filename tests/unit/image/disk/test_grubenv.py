"""GRUB's environment block in memory: reading, changes, and blocks that a guest damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from madedisk import CREATED
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.disk.grubenv import BLOCK_BYTES, NEXT, SAVED, SIGNATURE, changed, values


def block(text: bytes) -> bytes:
    """Returns a block with these lines."""
    return (SIGNATURE + text).ljust(BLOCK_BYTES, b"#")


NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12).map(str.encode)
VARIABLES = st.dictionaries(NAMES, st.binary(max_size=40).filter(lambda v: b"\0" not in v), max_size=6)


@given(before=VARIABLES, changes=st.dictionaries(NAMES, st.sampled_from([None, b"keep", b"a\\b\nc#"]), max_size=3))
def test_other_variables_survive(before: dict[bytes, bytes], changes: dict[bytes, bytes | None]) -> None:
    """Variables with any value stay, changed ones have the new value, removed ones are missing. The format is valid."""
    original = changed(CREATED, dict(before))
    assert before == values(original)
    after = changed(original, changes)
    expected = {name: value for name, value in (before | changes).items() if value is not None}
    assert expected == values(after)
    assert (BLOCK_BYTES, True) == (len(after), after.startswith(CREATED[: CREATED.index(b"!!!\n") + 4]))


def test_a_change_keeps_all_other_lines() -> None:
    """Comments, order and escapes of other lines stay, byte for byte."""
    before = block(b"# mine\na=1\\\\2\nsaved_entry=keep\nb=x\\\ny\nsaved_entry=resnap\n")
    assert {b"a": b"1\\2", b"b": b"x\ny", SAVED: b"resnap"} == values(before)
    assert block(b"# mine\na=1\\\\2\nb=x\\\ny\nsaved_entry=maintain\n") == changed(before, {SAVED: b"maintain"})
    assert block(b"# mine\na=1\\\\2\nb=x\\\ny\n") == changed(before, {SAVED: None, NEXT: None})


DAMAGED = {
    "empty": b"",
    "short": block(b"")[:-1],
    "long": block(b"") + b"#",
    "zeros": bytes(BLOCK_BYTES),
    "no signature": b"a=b\n".ljust(BLOCK_BYTES, b"#"),
    "no line end": block(b"a=b"),
    "an escaped line end": block(b"a=b\\\n"),
    "no variable": block(b"a\n"),
    "no name": block(b"=a\n"),
    "zeros after it": SIGNATURE.ljust(BLOCK_BYTES, b"\0"),
    "binary": SIGNATURE + bytes(range(256)) * 3 + b"x" * (BLOCK_BYTES - len(SIGNATURE) - 768),
    "backslashes": SIGNATURE + b"\\" * (BLOCK_BYTES - len(SIGNATURE)),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_block_is_replaced(damaged: bytes) -> None:
    """GRUB would read other values from it, or would not read it."""
    assert values(damaged) is None
    assert block(b"saved_entry=keep\n") == changed(damaged, {SAVED: b"keep"})


@given(st.binary(max_size=BLOCK_BYTES).map(block))
def test_any_bytes_are_accepted(damaged: bytes) -> None:
    """The mode can be set in a block with any content, unless the block is full."""
    try:
        after = changed(damaged[:BLOCK_BYTES], {SAVED: b"keep"})
    except ImageError:
        assert len(damaged) >= BLOCK_BYTES - len(b"saved_entry=keep\n")
        return
    variables = values(after)
    assert variables is not None
    assert variables[SAVED] == b"keep"


def test_no_room() -> None:
    """The hint has the command that makes room in a full block."""
    full = block(b"a=" + b"x" * (BLOCK_BYTES - len(SIGNATURE) - 4) + b"\n")
    assert values(full) is not None
    with refused(ImageError, "grub-environment-full") as caught:
        changed(full, {SAVED: b"keep"})
    assert "grub-editenv" in str(caught.value.hint)
