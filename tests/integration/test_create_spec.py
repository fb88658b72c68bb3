"""The spec of a box that is made of a save: that of the save, or the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import makesaved
import saveverbs
from clirun import Kimbox, result
from clirun import kimbox as kimbox
from clirun import world as world
from saveverbs import refused, saved

from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose

machine, store = saveverbs.machine, saveverbs.store  # fixtures


def test_a_spec_that_needs_files_beside_it(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """The spec in the save lacks them, and the error says so; a spec that has them is taken with -f."""
    spec = {**makesaved.SPEC, "repositories": {"setup": {"url": "./setup"}}}
    (machine.locks / f"{makesaved.MANIFEST}.yaml").write_text(json.dumps(spec))
    saved(kimbox, store)
    assert "-f FILE" in refused(kimbox, "create", "other", "--from", str(store))["hint"]
    own = world / "work/kimbox.yaml"
    (world / "work/setup").mkdir()
    own.write_text(json.dumps({**spec, "name": "another"}))
    assert "name-taken" == refused(kimbox, "create", "other", "--from", str(store), "-f", str(own))["code"]
    own.write_text(json.dumps(spec))
    assert 0 == kimbox("create", "other", "--from", str(store), "-f", str(own))[0]
    assert str(own) == Machine("other").record().source


def test_under_its_own_name(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """On a host that has no such box it is the box, which other verbs know, with the spec of the save."""
    mine = makesaved.get(machine, world, "persistent/mine")
    saved(kimbox, store)
    assert 0 == kimbox("destroy", "-y", "tiny")[0]
    made = result(kimbox("--json", "create", "--from", str(store))[1], "create")
    assert ("tiny", "tiny") == (made["name"], made["box"])
    record = machine.record()
    assert (Purpose.BOX, str(machine.folder / "saved/kimbox.yaml")) == (record.purpose, record.source)
    status = result(kimbox("--json", "status", "tiny")[1], "status")
    assert ("halted", makesaved.IMAGE) == (status["state"], status["image"])
    assert mine == makesaved.get(machine, world, "persistent/mine")
    assert 2 == saved(kimbox, store)["number"]


def test_with_settings(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """They are in the record. Those that the save cannot have are refused, and no box is made."""
    saved(kimbox, store)
    for setting, code in {"disk.size=14MiB": "disk-smaller", "disk.volumes.swap=256MiB": "usage"}.items():
        assert code == refused(kimbox, "create", "other", "--from", str(store), "--set", setting)["code"]
    assert "bad-spec" == refused(kimbox, "create", "other", "--from", str(store), "--set", "cpus=x")["code"]
    assert not Machine("other").exists
    assert 0 == kimbox("create", "other", "--from", str(store), "--set", "cpus=3")[0]
    assert ("cpus=3",) == Machine("other").record().settings
