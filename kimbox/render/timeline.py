"""Renders the timeline of a start: as an SVG picture, and as text for a terminal.

Names of stages are texts of a guest. A character that is not printable becomes U+FFFD, and markup is escaped. The
picture has attributes and no style sheet, because the page of a report allows none but its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from kimbox.log import printable

#: Units of the picture: its width, the height of a stage, the minimum width of a bar, and the margin of a file.
PICTURE_WIDTH = 340
STAGE_HEIGHT = 30
MIN_BAR = 2
MARGIN = 10

#: Maximum length of a name in the picture and on a terminal, in characters.
MAX_LABEL = 38

#: Minimum width of the bars on a terminal, in characters.
MIN_COLUMNS = 10

#: What a bar consists of on a terminal.
BLOCK = "\N{FULL BLOCK}"

#: `zero` of a timeline -> words for it.
ZERO = {"QEMU": "the start of QEMU", "kernel": "the start of the guest's kernel"}

NAMESPACE = "http://www.w3.org/2000/svg"


def seconds(value: float) -> str:
    """A duration as text."""
    return f"{value:.1f} s"


def render_svg(start: Mapping[str, Any], *, is_file: bool = False) -> str:
    """Returns the picture of a timeline as an element. `start`: the timeline, as kimbox/machine/timeline.py makes it.

    `is_file`: the picture is a file of its own, with a background.
    """
    bars = bars_of(start)
    height = len(bars) * STAGE_HEIGHT
    box = f"0 0 {PICTURE_WIDTH} {height}"
    attributes = ""
    if is_file:
        box = f"{-MARGIN} {-MARGIN} {PICTURE_WIDTH + 2 * MARGIN} {height + 2 * MARGIN}"
        attributes = f'xmlns="{NAMESPACE}" width="{2 * (PICTURE_WIDTH + 2 * MARGIN)}" '
    shown = f"{len(bars)} stages in {seconds(start['total_s'])}"
    lines = [
        f'<svg {attributes}viewBox="{box}" role="img" aria-labelledby="picture-title" aria-describedby="picture-text" '
        'font-family="system-ui, sans-serif" font-size="11">',
        '<title id="picture-title">Timeline of the last start</title>',
        f'<desc id="picture-text">{shown}, since {escape(ZERO.get(start["zero"], "its start"))}.</desc>',
    ]
    if is_file:
        lines.append(f'<rect x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%" fill="#ffffff"/>')
    for bar in bars:
        y = bar["y"] + 16
        lines += [
            f'<text x="0" y="{bar["y"] + 11}" fill="#1a1a1a">{escape(bar["label"])}</text>',
            f'<rect x="0" y="{y}" width="{PICTURE_WIDTH}" height="8" fill="#e4e4e4"/>',
            f'<rect x="{bar["x"]}" y="{y}" width="{bar["width"]}" height="8" fill="#1f5a99"/>',
        ]
    return "\n".join([*lines, "</svg>"])


def bars_of(start: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The label and the place of the bar of each stage in the picture."""
    scale = PICTURE_WIDTH / max(start["total_s"], 0.1)
    bars = []
    for number, stage in enumerate(start["stages"]):
        duration_s = stage["end_s"] - stage["start_s"]
        width = min(max(duration_s * scale, MIN_BAR), PICTURE_WIDTH)
        left = min(stage["start_s"] * scale, PICTURE_WIDTH - width)
        label = f"{_label(stage['name'])}  {seconds(duration_s)}"
        bars.append({"label": label, "x": f"{left:.1f}", "y": number * STAGE_HEIGHT, "width": f"{width:.1f}"})
    return bars


def render_text(start: Mapping[str, Any], columns: int) -> str:
    """Returns a timeline as lines of at most `columns` characters, if these are enough for names and short bars."""
    stages = [(_label(stage["name"]), stage["start_s"], stage["end_s"]) for stage in start["stages"]]
    name_columns = max((len(name) for name, _, _ in stages), default=0)
    time_columns = max((len(seconds(end_s - start_s)) for _, start_s, end_s in stages), default=0)
    bar_columns = max(columns - name_columns - time_columns - 4, MIN_COLUMNS)
    scale = bar_columns / max(start["total_s"], 0.1)
    lines = [f"{start['result'] or 'not ready yet'}: {seconds(start['total_s'])} since {ZERO[start['zero']]}"]
    for name, start_s, end_s in stages:
        left = min(round(start_s * scale), bar_columns - 1)
        length = min(max(round(end_s * scale) - left, 1), bar_columns - left)
        duration = seconds(end_s - start_s)
        lines.append(f"{name:<{name_columns}}  {duration:>{time_columns}}  {' ' * left}{BLOCK * length}")
    if start["left_out"]:
        lines.append(f"{start['left_out']} more stages are not shown")
    return "\n".join(lines)


def _label(name: str) -> str:
    text = printable(name)
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"
