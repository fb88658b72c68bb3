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
from kimbox.render.timeline import ZERO, render_svg, seconds

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
    environment.filters["seconds"] = seconds
    template = environment.from_string((paths.data_dir() / "report.html.j2").read_text(encoding="utf-8"))
    start = facts["start"]
    picture = Markup(render_svg(start)) if start else None  # noqa: S704 - render_svg escapes all texts
    zero = ZERO.get(start["zero"], "its start") if start else None
    return template.render(**facts, picture=picture, zero=zero) + "\n"


def _csp_source(style: str) -> str:
    """The source expression of the Content Security Policy for an inline style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(style).encode()).digest()).decode()}"


def _data_url(text: str) -> str:
    """A URL that contains a text (RFC 2397)."""
    return _DATA + base64.b64encode(text.encode("utf-8", "replace")).decode()
