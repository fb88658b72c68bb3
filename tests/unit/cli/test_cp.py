"""The arguments of `kimbox cp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import clirun
import pytest
from clirun import Kimbox

from kimbox.actions.copy import Copied
from kimbox.cli import target
from kimbox.guest.copying import Item
from kimbox.machine.folder import Machine

kimbox = clirun.kimbox  # a fixture


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (("in", "box", ["a", "./b:c"], "d"), ["a", "./b:c", "box:d"]),
        (("in", None, ["a"], ""), ["a", ":"]),
        (("out", "box", ["a:b", ""], "c"), ["box:a:b", "box:", "c"]),
        (("out", None, ["~/x"], "/c"), [":~/x", "/c"]),
        (None, ["box:a"]),
        (None, ["a", "b"]),
        (None, ["box:a", "b", "c"]),
        (None, ["box:a", "other:b", "c"]),
        (None, ["box:a", "box:b"]),
    ],
)
def test_cp_separates_boxes_and_paths(
    kimbox: Kimbox,
    monkeypatch: pytest.MonkeyPatch,
    expected: tuple[str, str | None, list[str], str] | None,
    words: list[str],
) -> None:
    """Everything is copied in one direction, to or from one box. A path with `/` before its colon is on this host."""
    calls: list[Any] = []

    def copier(direction: str) -> Callable[..., Copied]:
        def copy(machine: Machine, sources: list[str], to: str) -> Copied:
            calls.append((direction, None if machine.name == "here" else machine.name, sources, to))
            return Copied((Item.of("a", is_folder=False),), "rsync")

        return copy

    monkeypatch.setattr(target, "machine", lambda name, file: Machine(name or "here"))
    monkeypatch.setattr("kimbox.actions.copy.copy_in", copier("in"))
    monkeypatch.setattr("kimbox.actions.copy.copy_out", copier("out"))
    assert (0 if expected else 2) == kimbox("cp", *words)[0]
    assert ([expected] if expected else []) == calls
