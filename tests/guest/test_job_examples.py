"""The example source-extractor in a real guest, from an empty folder. aluminium is in test_images.py."""

from __future__ import annotations

import json

import pytest
from conftest import Kimbox

pytestmark = [pytest.mark.guest, pytest.mark.soak]

#: Number of stars that examples/source-extractor/make-image draws.
STARS = 25


def test_the_sources_of_an_image(kimbox: Kimbox) -> None:
    """Every star is in the catalogue, and a second run gives the same one."""
    kimbox("job", "init", "stars", "--example", "source-extractor")
    stars = Kimbox(kimbox.home, kimbox.folder / "stars")
    stars("job", "run", "job")
    lines = (stars.folder / "job.out/output/field.cat").read_text().splitlines()
    sources = [line.split() for line in lines if not line.startswith("#")]
    assert STARS == len(sources)
    assert all(0 < float(x) < 180 and 0 < float(y) < 180 for _, _, x, y in sources)
    record = json.loads((stars.folder / "job.out/job.json").read_text())
    assert ["field.cat"] == [file["path"] for file in record["output"]["files"]]
    assert "source-extractor" == record["provenance"]["name"]
    found = stars.json("job", "rerun", "job.out/job.json")
    assert (True, []) == (found["same"], found["differences"])
