"""How far a sweep is, in words; and how many jobs a host bears."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.jobs import capacity
from kimbox.jobs.tally import RATE_OF_LAST, Tally, duration


def test_a_sweep_that_runs() -> None:
    tally = Tally(total=10, began_s=100.0, done=2, failed=1)
    assert "2 of 10 done, 0 running, 1 failed" == tally.text(100)
    tally.running = 2
    tally.end(105, is_ok=True)
    tally.end(110, is_ok=False)
    assert "4 of 10 done, 0 running, 2 failed, 12.0 a minute, 30 s left" == tally.text(110)


def test_the_rate_is_that_of_the_last_jobs() -> None:
    """A slow start is forgotten."""
    tally = Tally(total=1000, began_s=0.0)
    for number in range(RATE_OF_LAST + 1):
        tally.running += 1
        tally.end(1000 + number, is_ok=True)
    assert 1.0 == tally.rate_s(1000 + RATE_OF_LAST)


def test_durations() -> None:
    assert ["0 s", "59 s", "1 min 0 s", "2 h 5 min"] == [duration(s) for s in (0.2, 59, 60, 7500)]


@pytest.mark.parametrize(
    ("processors", "available_mib", "expected"), [(8, 1 << 20, 4), (8, 4096, 3), (1, 1 << 20, 1), (8, 10, 1)]
)
def test_what_a_host_bears(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processors: int, available_mib: int, expected: int
) -> None:
    """Neither processors nor memory are given twice, and one job always runs."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {available_mib << 10} kB\n")
    monkeypatch.setattr(capacity, "MEMINFO", meminfo)
    monkeypatch.setattr(capacity.os, "sched_getaffinity", lambda pid: set(range(processors)))
    assert expected == capacity.at_a_time(2, 1 << 30)
