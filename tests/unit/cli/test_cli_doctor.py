"""kimbox doctor on a host with many faults: every check is reported, with the command that fixes the fault."""

from __future__ import annotations

from pathlib import Path

import clirun
import pytest
from clirun import Kimbox, result

from kimbox.actions import doctor
from kimbox.errors import KimboxError

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def _poor_host(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without programs on PATH, without ids for builds, with an unreadable apt configuration and a full disk."""

    def no_ids() -> None:
        raise KimboxError("no ids for builds", hint="sudo usermod --add-subuids 100000-165535 $USER")

    def no_apt() -> None:
        raise PermissionError(13, "Permission denied", "/etc/apt")

    monkeypatch.setenv("PATH", str(world / "nothing"))
    monkeypatch.setattr(doctor, "_building", no_ids)
    monkeypatch.setattr(doctor, "_packages", no_apt)
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 80)


@pytest.mark.usefixtures("_poor_host")
def test_everything_is_reported(kimbox: Kimbox) -> None:
    """A failed check does not hide another one. The exit status is that of a missing program."""
    code, out, err = kimbox("doctor", "--json")
    assert (6, "") == (code, err)
    checks = {check["what"]: check for check in result(out, "doctor")["checks"]}
    assert {"git": "bad", "building": "bad", "packages": "bad", "space": "slow"} == {
        what: checks[what]["verdict"] for what in ("git", "building", "packages", "space")
    }
    assert "sudo apt-get install git" == checks["git"]["mend"]
    assert "no ids for builds" == checks["building"]["found"]
    assert checks["building"]["mend"].startswith("sudo usermod")
    assert None is checks["packages"]["mend"]
    assert "Permission denied" in checks["packages"]["found"]


@pytest.mark.usefixtures("_poor_host")
def test_text(kimbox: Kimbox) -> None:
    """Each check has one line, and below it the command, if there is one."""
    code, out, _ = kimbox("doctor")
    assert 6 == code
    lines = out.splitlines()
    index = next(number for number, line in enumerate(lines) if line.startswith("bad   git: "))
    assert "      fix: sudo apt-get install git" == lines[index + 1]
