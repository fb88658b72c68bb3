"""os-release: the distribution and the code name of its release, and nothing that is not a plain word."""

from __future__ import annotations

import pytest

from kimbox.image.disk.osrelease import OsRelease, parse


@pytest.mark.parametrize(
    ("text", "distribution", "suite"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_CODENAME=trixie\nID=debian\n', "debian", "trixie"),
        ("ID=\"ubuntu\"\nID_LIKE=debian\nVERSION_CODENAME='noble'\r\n", "ubuntu", "noble"),
        ("ID=first\nID=second\n", "second", ""),
        ("ID=$(id)\nVERSION_CODENAME=a b\n", "", ""),
        ("ID=\"x'\n ID=y\n#ID=z\nID=" + "a" * 65 + "\n", "", ""),
        ("", "", ""),
        ("\0\xff\nID=rocky", "rocky", ""),
    ],
)
def test_values(text: str, distribution: str, suite: str) -> None:
    """Quotes are removed, the last assignment counts, and any other text is left out."""
    assert OsRelease(distribution, suite) == parse(text.encode("latin-1"))
