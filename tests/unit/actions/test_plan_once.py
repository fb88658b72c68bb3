"""A command computes its plan once: the manifest is rendered once, and each provisioner is read once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import feignedworld
import pytest
import tinyimage
from feignedworld import World, up

from kimbox.actions import vagrant_export
from kimbox.actions.lifecycle import readiness
from kimbox.actions.provision import provision
from kimbox.guest.delivery import Payload
from kimbox.image import obtain
from kimbox.image.inputs import provisioners
from kimbox.image.store.images import Image
from kimbox.project import pins, plan
from kimbox.project.project import Project

world = feignedworld.world  # a fixture

#: The real functions, which the double replaces.
KEY_OF, LOCK_FOR = obtain.key_of, pins.lock_for

#: Maximum counts of one command.
ONCE = Counter({"render": 1} | dict.fromkeys(provisioners.BASE, 1))


@pytest.fixture
def counted(world: World, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often the manifest is rendered and each provisioner is read. The lock is real, the driver a double."""
    count: Counter[str] = Counter()
    load, render, leased = provisioners.load, plan.render_manifest, obtain.leased

    def count_load(name: str) -> provisioners.Provisioner:
        count[name] += 1
        return load(name)

    def count_render(*arguments: Any) -> Any:
        count["render"] += 1
        return render(*arguments)

    @contextlib.contextmanager
    def leased_of_recipe(box: Any, packages: Any, **_: Any) -> Iterator[Image]:
        with leased() as image:
            yield attrs.evolve(image, key=KEY_OF(box, packages))

    def deliver(_: object, payload: Payload, *__: object) -> None:
        words = [feignedworld.event(kind, manifest=payload.digest) for kind in ("provisioning", "ready")]
        world.after = words
        world.deliver()

    monkeypatch.setattr(provisioners, "load", count_load)
    monkeypatch.setattr(plan, "render_manifest", count_render)
    monkeypatch.setattr(plan, "lock_for", LOCK_FOR)
    monkeypatch.setattr(pins, "choose", tinyimage.choose)
    monkeypatch.setattr(obtain, "key_of", KEY_OF)
    monkeypatch.setattr(obtain, "leased", leased_of_recipe)
    monkeypatch.setattr(readiness, "deliver", deliver)
    return count


def test_up(world: World, counted: Counter[str]) -> None:
    """The first one creates lock, image and machine. The second one uses them."""
    up(world)
    assert ["image", "disk", "start", "deliver"] == world.did
    assert counted == ONCE
    counted.clear()
    up(world)
    assert counted == ONCE


def test_up_with_a_frozen_lock(world: World, counted: Counter[str]) -> None:
    """The check of the lock reads no provisioner a second time."""
    pins.lock_for(Project(world.box))
    counted.clear()
    up(world, project=Project(world.box, frozen=True))
    assert counted == ONCE


def test_provision(world: World, counted: Counter[str]) -> None:
    """The delivery uses the manifest of the plan."""
    up(world)
    counted.clear()
    provision(Project(world.box), timeout_s=5)
    assert counted == ONCE


def test_render(world: World, counted: Counter[str], tmp_path: Path) -> None:
    """The folder of the Vagrantfile is written from the plan, and `--check` compares with the plan."""
    request = vagrant_export.ExportRequest(Project(world.box))
    vagrant_export.render([request], tmp_path / "vagrant")
    assert counted == ONCE
    counted.clear()
    vagrant_export.check([request], tmp_path / "vagrant")
    assert counted == ONCE


def test_nothing_else_renders_a_manifest() -> None:
    """Otherwise the counts above would be incomplete."""
    package = Path(plan.__file__).parents[1]
    modules = [path for path in package.rglob("*.py") if "render_manifest" in path.read_text()]
    assert {"project/plan.py", "render/manifest.py"} == {str(path.relative_to(package)) for path in modules}
