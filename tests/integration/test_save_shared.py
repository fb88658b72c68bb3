"""A saved box in place of a spec: its disk is an image, from which machines start that share nothing private."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makesaved
import pytest
import saveverbs
from clirun import Kimbox
from clirun import kimbox as kimbox
from clirun import world as world

from kimbox.actions.lifecycle.create import create
from kimbox.actions.saves import shared
from kimbox.actions.saves.restore import RestoreRequest
from kimbox.errors import KimboxError
from kimbox.image.saves import packs
from kimbox.image.store import images
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose
from kimbox.project.plan import Plan, make_plan
from kimbox.spec.model import SavedImage

machine, store = saveverbs.machine, saveverbs.store  # fixtures


def plan_of(store: Path) -> Plan:
    return make_plan(shared.project(RestoreRequest(str(store))))


def made(plan: Plan, name: str) -> Machine:
    """A machine of a plan, as a job with --cold has it."""
    new = Machine(name)
    with new.locked():
        create(new, plan, purpose=Purpose.CLONE)
    return new


def test_machines_of_a_saved_box(
    kimbox: Kimbox, machine: Machine, store: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has what was saved, a machine-id and seeds of its own, and the manifest that the guest has already."""
    assert 0 == kimbox("save", "tiny", str(store))[0]
    mine = makesaved.get(machine, world, "persistent/mine")
    plan = plan_of(store)
    image = plan.box.image
    assert isinstance(image, SavedImage)
    assert (image.key, makesaved.IMAGE) == (plan.image_key, image.below)
    found = images.find(image.key)
    assert found
    assert images.check(found)
    monkeypatch.setattr(packs, "fetch", None)  # the image is here: nothing is fetched
    one, two = made(plan_of(store), "one"), made(plan, "two")
    assert [mine, mine] == [makesaved.get(each, world, "persistent/mine") for each in (one, two)]
    for path in ("root/etc/machine-id", "root/var/lib/systemd/random-seed"):
        values = {makesaved.get(each, world, path) for each in (machine, one, two)}
        assert 3 == len(values - {b""})
    assert image.key == one.record().image == two.record().image
    below = make_plan(plan.project, made_from=makesaved.IMAGE)
    assert below.digest == plan.digest


def test_an_interrupted_fetch_continues(
    kimbox: Kimbox, machine: Machine, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched is not fetched again, and no image is there before it is whole."""
    assert 0 == kimbox("save", "tiny", str(store))[0]
    real, fetched = packs.fetch, [0]

    def cut(*arguments: Any) -> Iterator[tuple[int, bytes]]:
        for count, one in enumerate(real(*arguments)):
            if len(fetched) == 1 and count == 2:
                fetched.append(0)
                raise KimboxError("the network is gone", code="store-failed")
            fetched[-1] += 1
            yield one

    monkeypatch.setattr(packs, "fetch", cut)
    before = images.stored()
    with pytest.raises(KimboxError, match="network"):
        shared.project(RestoreRequest(str(store)))
    assert before == images.stored()
    shared.project(RestoreRequest(str(store)))
    assert len(before) + 1 == len(images.stored())
    assert (2, True) == (fetched[0], fetched[1] > 0)
    assert not list(Path(machine.place).glob("*saved-*/disk.qcow2"))


def test_a_store_without_a_save_is_refused(kimbox: Kimbox, world: Path) -> None:
    """Clone and job run say that there is no save."""
    for words in (("clone", str(world / "none"), "-n", "2"), ("job", "run", str(world), "--box", str(world / "none"))):
        assert "save-not-found" == saveverbs.refused(kimbox, *words)["code"]
