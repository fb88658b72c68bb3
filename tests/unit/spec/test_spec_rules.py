"""Rules for single values of a spec."""

from __future__ import annotations

import pytest

from kimbox.spec import rules
from kimbox.spec.nodes import Fault


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "Etc/GMT+5", "America/Argentina/ComodRivadavia"])
def test_a_time_zone(zone: str) -> None:
    assert zone == rules.time_zone(zone)


@pytest.mark.parametrize(
    "zone", ["", "../../etc/passwd", "/etc/localtime", "Europe/", "Europe/../x", "a/b/c/d", "U'TC", "UTC\n", "x" * 65]
)
def test_no_time_zone(zone: str) -> None:
    """The guest makes a path of the name."""
    with pytest.raises(Fault):
        rules.time_zone(zone)
