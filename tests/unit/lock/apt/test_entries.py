"""Options of entries in apt's sources, in both styles."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.lock.apt import entries

LINES = """\
# deb [signed-by=/no] http://a.example.org/debian trixie main

deb [arch=amd64 signed-by=/a.gpg,/b.gpg Check-Valid-Until=no] http://a.example.org/debian trixie main
deb http://b.example.org/debian trixie main
\tdeb-src [ lang+=de signed-by=/c.gpg ] http://c.example.org/debian trixie main
deb [ http://d.example.org/debian trixie main
"""

STANZAS = """\
# A stanza that is off counts, too.
Enabled: no
Types: deb
URIs: http://a.example.org/debian

\t

# Only a comment: it does not count.

types: deb deb-src
URIs: http://b.example.org/debian
 http://c.example.org/debian
# a comment in a value
Suites:trixie
SIGNED-BY:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abcd
 -----END PGP PUBLIC KEY BLOCK-----
#last

Types: deb
Signed-By: /a.gpg
  /b.gpg
not a field
Check-Valid-Until: no
"""


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, {}), (1, {}), (2, {}), (4, {}), (6, {}), (7, {}), (99, {}),
        (3, {"arch": "amd64", "signed-by": "/a.gpg,/b.gpg", "check-valid-until": "no"}),
        (5, {"lang": "de", "signed-by": "/c.gpg"}),
    ],
)  # fmt: skip
def test_a_line(number: int, expected: dict[str, str]) -> None:
    """The options in its brackets; none for a comment or a line that is not valid."""
    assert expected == entries.line_options(LINES, number)


def test_a_stanza() -> None:
    """Names of fields in any case, values of several lines, and comments anywhere."""
    second = entries.stanza_options(STANZAS, 2)
    assert {"types", "uris", "suites", "signed-by"} == second.keys()
    assert "http://b.example.org/debian\n http://c.example.org/debian" == second["uris"]
    assert "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abcd\n -----END PGP PUBLIC KEY BLOCK-----" == second["signed-by"]
    assert {"types": "deb", "signed-by": "/a.gpg\n  /b.gpg", "check-valid-until": "no"} == {
        name: value.replace("\nnot a field", "") for name, value in entries.stanza_options(STANZAS, 3).items()
    }
    assert {} == entries.stanza_options(STANZAS, 4) == entries.stanza_options("", 1)


@pytest.mark.parametrize("number", ["", "x", "-1", "9" * 20])
def test_an_entry_that_cannot_be_read(tmp_path: Path, number: str) -> None:
    """It has no options, because apt reads it itself and reports what is wrong."""
    (tmp_path / "x.sources").write_text(STANZAS)
    assert {} == entries.options_of(f"{tmp_path}/x.sources:{number}")
    assert {} == entries.options_of(f"{tmp_path}/y.sources:1") == entries.options_of("")
    assert "/a.gpg\n  /b.gpg" == entries.options_of(f"{tmp_path}/x.sources:3")["signed-by"]
