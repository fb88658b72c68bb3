"""The page of `kimbox report`: every text in it is escaped, and it needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re
from pathlib import Path
from typing import Any

import pytest

from kimbox.render.report import render_report

#: Text that would be markup, a style, a template, a control sequence of a terminal, or reversed text.
HOSTILE = "</style></title><script>alert(1)</script><img src=http://x.example/>\"' {{7*7}} \x1b[31m\u202e\x00\udcff"

#: A report with a value of each kind. tests/integration/test_report_page.py makes the ones of real boxes.
FACTS: dict[str, Any] = {
    "format": 1, "kimbox": "0.1", "made": "2026-11-28T10:00:00Z", "kind": "machine", "name": "study",
    "source": "its record", "state": "ready",
    "package": {"name": "study.box", "sha256": "a" * 64, "size_bytes": 5},
    "image": {
        "key": "b" * 64, "sha256": "c" * 64, "distribution": "debian", "suite": "trixie",
        "bases": [{"key": "d" * 64, "sha256": None, "url": "https://example.org/base"}],
    },
    "lock": {"digest": "e" * 64, "spec_digest": "f" * 64, "packages_as_of": None},
    "repositories": [
        {"name": "setup", "url": "https://example.org/s", "ref": "main", "commit": "1" * 40, "tree": None,
         "date": "2026-01-02T03:04:05+01:00", "pinned": False},
    ],
    "packages": [{"name": "libc6", "version": "2.41", "architecture": "amd64", "sha256": ""}],
    "packages_from": "disk",
    "unpinned": ["file /etc/motd"],
    "lock_mismatch": {"added": {}, "removed": {"gone": "1"}, "moved": {}},
    "stale": {"step": {"setup": "2" * 40}},
    "checks": [{"name": "a check", "outcome": "fail", "evidence": "its evidence"}],
    "audit": {
        "source": "sent by the box", "stale": False, "unsealed": None, "sealed": False, "breaches": ["net.tcp"],
        "counts": {"pass": 1, "fail": 1, "info": 0, "skip": 0},
        "report": {"at": "2026-11-28T09:00:00Z", "boot": "", "role": "", "site": "", "checks": [
            {"id": "net.tcp", "title": "t", "cis": "1.2", "severity": "high", "status": "fail", "expected": "e",
             "found": "22", "remedy": "r"},
            {"id": "net.udp", "title": "t", "cis": "", "severity": "low", "status": "pass", "expected": "e",
             "found": "none", "remedy": ""},
        ]},
    },
    "audit_missing": None,
    "past_audits": [
        {"at": "2026-11-28T08:00:00Z", "boot": "", "counts": {"pass": 1, "fail": 1, "info": 0, "skip": 0},
         "failed": ["net.tcp"], "breaches": [], "appeared": ["net.tcp"], "mended": ["net.udp"]},
    ],
    "start": {
        "stages": [{"name": "system starts", "start_s": 0.0, "end_s": 2.0},
                   {"name": "step 1", "start_s": 2.0, "end_s": 2.0}],
        "left_out": 1, "result": "ready", "total_s": 8.0, "zero": "QEMU",
    },
    "again": {
        "files": {"kimbox.lock": "lock: 1\n"}, "saves": ["kimbox.lock"], "commands": ["kimbox build", "kimbox up"],
        "notes": ["a note"],
    },
}  # fmt: skip

#: Values that kimbox itself chooses, and that select a part of the page.
OWN = {"status", "outcome", "packages_from"}


def with_hostile_texts(value: Any, key: str = "") -> Any:
    """A copy of a report in which every text is hostile, keys of files and steps included."""
    if isinstance(value, dict):
        is_named = key in ("files", "stale", "setup", "removed")
        return {(HOSTILE if is_named else name): with_hostile_texts(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [with_hostile_texts(item, key) for item in value]
    return HOSTILE if isinstance(value, str) and key not in OWN else value


class Page(html.parser.HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def test_no_text_becomes_markup() -> None:
    """With hostile texts the page has the same elements, no attribute of an event, and no address of another host."""
    page = Page(render_report(with_hostile_texts(FACTS)))
    assert Page(render_report(FACTS)).tags() == page.tags()
    assert not {"script", "img", "iframe", "link", "form", "object", "base"} & set(page.tags())
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")]
        href = attributes.get("href") or "#"
        assert href.startswith(("#", "data:text/plain;charset=utf-8;base64,"))


def test_no_character_is_hidden() -> None:
    """Control characters, and those that change the direction of text, become U+FFFD. The page is valid UTF-8."""
    text = render_report(with_hostile_texts(FACTS))
    assert "{{7*7}}" in text  # a template in a value is not evaluated
    assert "\ufffd" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    text.encode()


def test_the_policy_names_the_style_sheet() -> None:
    """The Content Security Policy forbids everything but the style sheet in the page."""
    text = render_report(FACTS)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(a["content"] for tag, a in Page(text).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'" == policy
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_files_can_be_saved() -> None:
    """The link of a file has all of its bytes."""
    links = [a["href"] for tag, a in Page(render_report(FACTS)).elements if "download" in a]
    assert ["lock: 1\n"] == [base64.b64decode((link or "").partition("base64,")[2]).decode() for link in links]


@pytest.mark.parametrize("key", ["package", "state", "audit", "start", "lock"])
def test_without_a_part(key: str) -> None:
    """A report without one of its parts is a page, too."""
    assert Page(render_report(FACTS | {key: None})).tags().count("h2") >= 7


def test_empty_lists() -> None:
    """A report with nothing in its lists is a page, too."""
    empty = {key: type(value)() for key, value in FACTS.items() if isinstance(value, list)}
    again = {"files": {}, "saves": [], "commands": [], "notes": []}
    assert "It has no repositories." in render_report(FACTS | empty | {"again": again})


def test_the_template_names_no_host() -> None:
    """The template is at the top of the repository, and has no address of a host."""
    template = (Path(__file__).resolve().parents[3] / "report.html.j2").read_text()
    assert "://" not in template
