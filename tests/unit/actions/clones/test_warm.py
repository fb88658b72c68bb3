"""When `kimbox up` starts a new machine from the template of its box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from kimbox import paths
from kimbox.actions.up import UpRequest, _is_warm
from kimbox.machine.bootmode import Choice
from kimbox.machine.record import Purpose
from kimbox.project.project import Project
from kimbox.spec.load import load_box
from kimbox.spec.model import BootMode, Box


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    return attrs.evolve(load_box(paths.boxes_dir() / "minimal.yaml"), warm=True)


def test_a_warm_box_continues_its_template(box: Box) -> None:
    assert _is_warm(UpRequest(Project(box)))
    assert _is_warm(UpRequest(Project(box), driver="qemu"))
    assert not _is_warm(UpRequest(Project(attrs.evolve(box, warm=False))))


@pytest.mark.parametrize(
    "change",
    [
        {"cold": True},
        {"provision": False},
        {"boot": Choice(BootMode.RESNAP)},
        {"driver": "vagrant"},
        {"purpose": Purpose.MAINTENANCE},
    ],
    ids=str,
)
def test_other_starts_boot(box: Box, change: dict[str, Any]) -> None:
    """A template has another boot mode, is provisioned, and runs under QEMU."""
    assert not _is_warm(UpRequest(Project(box), **change))
