"""A plugin of pytest for `script/test coverage`: a kimbox that a test starts as a process of its own is measured too.

kimbox.run passes on few variables of the environment; this adds the one by which coverage.py finds its configuration.
"""

from __future__ import annotations


def pytest_sessionstart() -> None:
    """Not at import: kimbox would be loaded before it is measured."""
    from kimbox import run

    run.PASSED_ENV = (*run.PASSED_ENV, "COVERAGE_PROCESS_CONFIG")
