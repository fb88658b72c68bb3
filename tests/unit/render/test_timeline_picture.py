"""The picture of a start, as SVG and as text."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from kimbox.render.timeline import BLOCK, MIN_BAR, NAMESPACE, PICTURE_WIDTH, bars_of, render_svg, render_text

HOSTILE = "<script>&\"'\x1b[2J\u202e{{7*7}}" + "x" * 99


def start_of(*stages: tuple[str, float, float], total_s: float = 10.0, **changes: Any) -> dict[str, Any]:
    """A timeline of these stages: name, begin and end."""
    named = [{"name": name, "start_s": start_s, "end_s": end_s} for name, start_s, end_s in stages]
    return {"stages": named, "left_out": 0, "result": "ready", "total_s": total_s, "zero": "QEMU"} | changes


@pytest.mark.parametrize("total_s", [0.0, 1.0, 1e9])
def test_bars_stay_inside_the_picture(total_s: float) -> None:
    """Each bar is wide enough to be seen, also at the end, and in a start of 0 s."""
    start = start_of(("x" * 99, total_s, total_s), total_s=total_s)
    (bar,) = bars_of(start)
    assert MIN_BAR <= float(bar["width"])
    assert 0 <= float(bar["x"]) <= PICTURE_WIDTH - float(bar["width"])
    line = render_text(start, 60).splitlines()[1]
    assert (1, True) == (line.count(BLOCK), len(line) <= 60)


def test_the_file_is_a_picture_of_its_own() -> None:
    """It is XML with two bars for each stage, and a hostile name is text of it, without hidden characters."""
    text = render_svg(start_of(("kernel", 0.0, 4.0), (HOSTILE, 4.0, 10.0)), is_file=True)
    picture = ElementTree.fromstring(text)  # noqa: S314 - kimbox itself wrote it
    assert f"{{{NAMESPACE}}}svg" == picture.tag
    names = [element.text or "" for element in picture.iter(f"{{{NAMESPACE}}}text")]
    assert "kernel  4.0 s" == names[0]
    assert names[1].startswith("<script>&\"'\ufffd[2J\ufffd{{7*7}}")
    assert 5 == len([*picture.iter(f"{{{NAMESPACE}}}rect")])
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "xmlns" not in render_svg(start_of())


def test_the_bars_of_a_terminal() -> None:
    """Each begins where the one before ends. Names and times are in columns; hostile names are cleaned and cut."""
    lines = render_text(start_of(("one", 0.0, 4.0), ("two", 4.0, 10.0)), 34).splitlines()
    assert ["ready: 10.0 s since the start of QEMU", "one  4.0 s  " + BLOCK * 9] == lines[:2]
    assert "two  6.0 s  " + " " * 9 + BLOCK * 13 == lines[2].rstrip()
    hostile = render_text(start_of((HOSTILE, 0.0, 1.0), left_out=3, result=None, zero="kernel"), 20)
    assert all(c.isprintable() or c == "\n" for c in hostile)
    assert hostile.startswith("not ready yet: 10.0 s since the start of the guest's kernel\n")
    assert hostile.endswith("\n3 more stages are not shown")
