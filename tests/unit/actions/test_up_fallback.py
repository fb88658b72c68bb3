"""`up` and `provision` with a box that has fallen back to its last good manifest. Driver and ssh are doubles."""

from __future__ import annotations

import attrs
import feignedworld
import makemachine
import pytest
from fakedriver import FakeDriver
from feignedworld import World, up
from makemachine import BOOT, NEXT_BOOT, event
from refused import refused

from kimbox.actions import stop
from kimbox.actions.observe import state
from kimbox.actions.provision import provision
from kimbox.cli.status import summary_of
from kimbox.errors import GuestError
from kimbox.log import log
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.spec.model import Mode, Run, Step

world = feignedworld.world  # a fixture

#: Digest of a manifest that was ready once.
GOOD = "9" * 64
THIRD_BOOT = NEXT_BOOT.replace("9", "7")


def fall_back(world: World, answer: str = "ready", **more: str | int) -> list[str]:
    """The events of a guest that has fallen back from the manifest of the box."""
    fallback = event("fallback", manifest=GOOD, wanted=world.digest, reason="setup setup: it broke")
    about: dict[str, str | int] = {"manifest": GOOD, "wanted": world.digest}
    return [fallback, event("provisioning", **about), event(answer, **about | more)]


@pytest.mark.parametrize("verb", ["up", "reload"])
def test_a_manifest_that_failed_is_not_sent_again(world: World, verb: str) -> None:
    """The box runs its last good manifest. The error has the reason, and nothing is sent."""
    up(world)
    world.did.clear()
    if verb == "reload":
        stop.halt(world.machine)
        world.boot = [*world.boot[:-1], *fall_back(world)]
    else:
        makemachine.tell(world.machine, *fall_back(world))
    fields = {"name": "tiny", "manifest": world.digest, "good_manifest": GOOD, "state": "ready"}
    with refused(GuestError, "manifest-failed", **fields, reason="setup setup: it broke") as e:
        up(world)
    assert e.value.message.splitlines() == [
        f"tiny: the manifest {world.digest[:12]} failed: setup setup: it broke",
        f"The box is ready with the last good one, {GOOD[:12]}.",
    ]
    assert "kimbox provision tiny" in str(e.value.hint)
    assert "deliver" not in world.did
    assert State.READY is state(world.machine)


def test_the_user_decides_after_a_fallback(world: World) -> None:
    """`provision` sends the failed manifest again. `up` sends another one, also the one that the box runs."""
    up(world)
    makemachine.tell(world.machine, *fall_back(world))
    world.did.clear()
    provision(Project(world.box))
    assert ["deliver"] == world.did
    assert State.READY is up(world)
    for events in (fall_back(world), [event("ready", manifest=world.digest, wanted=GOOD)]):
        makemachine.tell(world.machine, *events)
        world.did.clear()
        world.box = attrs.evolve(world.box, provision=(Step("more", "true", Mode.SYSTEM, Run.ONCE, 60),))
        world.after = [event("provisioning", manifest=world.digest), event("ready", manifest=world.digest)]
        assert State.READY is up(world)
        assert ["deliver"] == world.did


def test_a_fallback_before_a_delivery_is_not_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a part, `up` sends the manifest again. What the box does until then says nothing about the result."""
    up(world)
    makemachine.tell(world.machine, event("ready", manifest=world.digest, part="only more"))
    stop.halt(world.machine)
    world.did.clear()
    world.boot, later = world.boot[:-1], fall_back(world)

    def listen(driver: FakeDriver) -> bool:
        makemachine.tell(world.machine, *later)
        later.clear()
        return driver.machine.running

    monkeypatch.setattr(FakeDriver, "listen", listen)
    warnings: list[str] = []
    monkeypatch.setattr(log, "warn", warnings.append)
    up(world)
    assert "deliver" in world.did
    assert [] == [text for text in warnings if "falls back" in text]


def test_a_fallback_during_up_ends_the_wait(world: World) -> None:
    """Setup crashed the box twice. The third boot of the guest reports the fallback."""
    boots = [[event("provisioning", boot=boot, manifest=world.digest)] for boot in (BOOT, NEXT_BOOT)]
    fallback = [line.replace(BOOT, THIRD_BOOT) for line in fall_back(world)]
    world.after = [*boots[0], *boots[1], *fallback]
    with refused(GuestError, "manifest-failed", manifest=world.digest, reason="setup setup: it broke"):
        up(world)
    assert 1 == world.did.count("deliver")


def test_the_last_good_manifest_fails_too(world: World) -> None:
    """The error names both. The next `up` does not send the failed one again."""
    up(world)
    world.did.clear()
    makemachine.tell(world.machine, *fall_back(world, "failed", kind="probe", name="p", exit=1, reason="no"))
    for _ in range(2):
        with refused(GuestError, "manifest-failed", good_manifest=GOOD, state="failed") as failed:
            up(world)
        assert f"has failed with the last good one, {GOOD[:12]}" in failed.value.message
    assert [] == world.did


def test_status_has_both_manifests(world: World) -> None:
    """The one that runs, the one that failed, and the reason. Without a fallback it has one."""
    up(world)
    assert (world.digest, None, None) == tuple(
        summary_of(world.machine)[key] for key in ("manifest", "wanted", "reason")
    )
    makemachine.tell(world.machine, *fall_back(world))
    summary = summary_of(world.machine)
    assert (GOOD, world.digest, "setup setup: it broke") == (
        summary["manifest"], summary["wanted"], summary["reason"]
    )  # fmt: skip
    makemachine.tell(world.machine, event("provisioning", manifest=world.digest))
    assert (world.digest, None, None) == tuple(
        summary_of(world.machine)[key] for key in ("manifest", "wanted", "reason")
    )
