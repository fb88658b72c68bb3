"""Documents that are made from the program hold all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.cli.app import VERBS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("verb", VERBS)
def test_the_man_page_has_every_verb(verb: str) -> None:
    """A section for each, so that `script/docs --check` compares something."""
    manual = (ROOT / "docs" / "kimbox.1").read_text()
    section = manual.partition(f"\n.SS \\fBkimbox {verb.replace('-', chr(92) + '-')}\\fR")[2]
    assert "Examples:" in section.partition("\n.SS ")[0]
