"""A pytest plugin for `script/test coverage`. With it, coverage.py also measures a kimbox in a process of its own.

kimbox.run passes few variables of the environment to programs. The plugin adds the variable that names the
configuration of coverage.py.
"""

from __future__ import annotations


def pytest_sessionstart() -> None:
    """Adds the variable. At the import of this module, kimbox would be loaded before coverage.py measures it."""
    from kimbox import run

    run.PASSED_ENV = (*run.PASSED_ENV, "COVERAGE_PROCESS_CONFIG")
