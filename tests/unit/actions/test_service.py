"""The units that keep boxes up. systemctl is a double that notes its arguments; a guest test has the real one."""

from __future__ import annotations

import configparser
from pathlib import Path

import attrs
import makebox
import pytest
from makemachine import make_machine, running
from ownhome import home as home
from refused import refused

from kimbox.actions import service, userunits
from kimbox.errors import GuestError, MissingToolError, StateError
from kimbox.machine.folder import Machine
from kimbox.project.project import Project

SHOWN = "ActiveState=active\nResult=success\nNRestarts=2\nUnitFileState=enabled\n"

#: The double. It prints what systemd shows, and a start ends with the status in the file `code`.
PROGRAM = """#!/bin/sh
echo "${0##*/}" "$@" >>FOLDER/calls
case $* in
*" show "*) cat FOLDER/shown ;;
*" start "*) exit "$(cat FOLDER/code)" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with systemd. Returns the file of the calls of systemctl and loginctl."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "shown").write_text(SHOWN)
    (tmp_path / "code").write_text("0")
    (tmp_path / "calls").touch()
    for name in ("systemctl", "loginctl"):
        (programs / name).write_text(PROGRAM.replace("FOLDER", str(tmp_path)))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(userunits, "BOOTED", tmp_path)
    return tmp_path / "calls"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(makebox.make_box(tmp_path), None)


def unit(name: str) -> configparser.SectionProxy:
    """The part [Service] of the unit of a machine."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(service.unit_file(name).read_text())
    return parser["Service"]


def called(calls: Path) -> list[str]:
    return [line.replace("systemctl --user --no-ask-password ", "") for line in calls.read_text().splitlines()]


def test_a_box_has_a_unit(calls: Path, project: Project, home: Path) -> None:
    """Its main process is QEMU. It starts with the host and after a crash, and its stop shuts the guest down."""
    (found,) = service.install(project, None)
    assert ("tiny", "active", 2) == (found.name, found.state, found.restarts)
    assert (True, False) == (found.is_enabled, found.gave_up)
    name = service.unit_of("tiny")
    assert ["daemon-reload", f"enable {name}", "loginctl enable-linger", f"start {name}"] == called(calls)[:4]
    text = unit("tiny")
    assert ("forking", str(Machine("tiny").pid_file)) == (text["Type"], text["PIDFile"])
    assert f'"KIMBOX_HOME={home}" "KIMBOX_SERVICE=tiny"' == text["Environment"]
    assert text["ExecStart"].endswith(f'--quiet "up" "tiny" "--file" "{project.box.source}"')
    assert ("on-failure", False) == (text["Restart"], "ExecStartPre" in text)
    assert ["tiny"] == service.installed()
    assert service.remove("tiny")
    assert not service.remove("tiny")
    assert [] == service.installed()
    assert f"disable --now {name}" in called(calls)


def test_a_pool_has_a_unit_for_each_clone(calls: Path, project: Project) -> None:
    """Each start makes the clone anew. A smaller pool loses its last clones."""
    assert ["tiny-1", "tiny-2", "tiny-3"] == [found.name for found in service.install(project, 3)]
    text = unit("tiny-2")
    assert "always" == text["Restart"]
    assert text["ExecStartPre"].startswith("-")
    assert text["ExecStartPre"].endswith('destroy --yes "tiny-2"')
    assert text["ExecStart"].endswith(f'"clone" "--file" "{project.box.source}" "tiny-2"')
    service.install(project, 1)
    assert ["tiny-1"] == service.installed() == service.names_of("tiny")
    assert [] == service.names_of("tin")


def test_a_machine_that_runs_is_not_taken_over(calls: Path, project: Project, tmp_path: Path) -> None:
    with running(make_machine("tiny")), refused(StateError, "wrong-state", name="tiny"):
        service.install(project, None)
    assert [] == service.installed()


def test_halt_holds(calls: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd is told, but not by the kimbox that systemd itself runs for the unit: it would wait for itself."""
    machine = make_machine("tiny")
    service.rest(machine)
    assert [] == called(calls)
    service.install(project, None)
    calls.write_text("")
    monkeypatch.setenv(service.CALLER, "tiny")
    service.rest(machine)
    assert not service.remove("tiny")
    assert [] == called(calls)
    monkeypatch.setenv(service.CALLER, "other")
    service.rest(machine)
    assert [f"stop {service.unit_of('tiny')}"] == called(calls)


def test_a_start_that_fails(calls: Path, project: Project, tmp_path: Path) -> None:
    """The unit stays, with the command that shows the reason."""
    (tmp_path / "code").write_text("1")
    (tmp_path / "shown").write_text(SHOWN.replace("active", "failed").replace("success", "start-limit-hit"))
    with refused(GuestError, "service-failed", name="tiny") as caught:
        service.install(project, None)
    assert f"journalctl --user -u {service.unit_of('tiny')}" in str(caught.value.hint)
    found = service.service("tiny")
    assert found
    assert (found.gave_up, found.result) == (True, "start-limit-hit")


def test_without_systemd(calls: Path, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(userunits, "BOOTED", tmp_path / "nothing")
    with refused(MissingToolError, "missing-tool", program="systemctl"):
        service.install(project, None)
    assert service.service("tiny") is None


def test_each_home_has_units_of_its_own(
    calls: Path, project: Project, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.install(project, None)
    monkeypatch.setenv("KIMBOX_HOME", str(home / "other"))
    assert [] == service.installed()
    assert service.unit_of("tiny") != f"{service.PREFIX}tiny.service"


def test_a_shipped_box_is_started_by_its_name(tmp_path: Path) -> None:
    project = attrs.evolve(Project(makebox.make_box(tmp_path), None), shipped="tiny")
    assert '"clone" "tiny" "tiny-1"' in service.text_of(project, "tiny-1", is_clone=True)
