"""Renders a report as one HTML page, which needs no script, no network and no other file.

Every value may be a text of others: of a spec, a repository, a package, a guest. It is escaped, and a character that is
not printable, such as one that changes the direction of text, becomes U+FFFD. The page has a Content Security Policy
(W3C, Content Security Policy Level 3) that forbids everything but its own style sheet, which it names by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from kimbox import paths
from kimbox.log import printable_lines

#: Units of the picture of a start: the width of the picture, the height of a stage, and the minimum width of a bar.
PICTURE_WIDTH = 340
STAGE_HEIGHT = 30
MIN_BAR = 2

#: Maximum length of a name in the picture, in characters. The table below the picture has the whole name.
MAX_LABEL = 38

#: Media types of the files that a reader can save from the page.
_DATA = "data:text/plain;charset=utf-8;base64,"


def render_report(facts: Mapping[str, Any]) -> str:
    """Returns the page of a report. `facts`: the content of the report, as `kimbox report --json` has it."""
    import jinja2
    from markupsafe import Markup

    def clean(value: Any) -> Any:
        """A value for the page; Jinja escapes it afterwards."""
        if isinstance(value, Markup):
            return value
        return printable_lines(str(value)) if value is not None else "unknown"

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, finalize=clean, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["csp_source"] = _csp_source
    environment.filters["data_url"] = _data_url
    environment.filters["seconds"] = _seconds
    template = environment.from_string((paths.data_dir() / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(**facts, picture=_picture(facts["start"]) if facts["start"] else None) + "\n"


def _csp_source(style: str) -> str:
    """The source expression of the Content Security Policy for an inline style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(style).encode()).digest()).decode()}"


def _data_url(text: str) -> str:
    """A URL that contains a text (RFC 2397)."""
    return _DATA + base64.b64encode(text.encode("utf-8", "replace")).decode()


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _picture(start: Mapping[str, Any]) -> dict[str, Any]:
    """The places of all parts of the picture of a start: a label and a bar for each stage, and marks of the time."""
    total_s = max(start["total_s"], 0.1)
    scale = PICTURE_WIDTH / total_s
    bars = []
    for number, stage in enumerate(start["stages"]):
        name, duration_s = stage["name"], stage["end_s"] - stage["start_s"]
        label = name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"
        width = min(max(duration_s * scale, MIN_BAR), PICTURE_WIDTH)
        left = min(stage["start_s"] * scale, PICTURE_WIDTH - width)
        label += f"  {_seconds(duration_s)}"
        bars.append({"label": label, "x": f"{left:.1f}", "y": number * STAGE_HEIGHT, "width": f"{width:.1f}"})
    return {"width": PICTURE_WIDTH, "height": len(bars) * STAGE_HEIGHT, "bars": bars}
