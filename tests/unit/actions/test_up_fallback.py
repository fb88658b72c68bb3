"""What the host makes of a box that has gone back to its last good manifest. The world is feigned."""

from __future__ import annotations

import attrs
import feignedworld
import makemachine
import pytest
from feignedworld import World, up
from makemachine import BOOT, NEXT_BOOT, event

from kimbox.actions import stop
from kimbox.actions.observe import state
from kimbox.actions.provision import provision
from kimbox.cli.status import summary_of
from kimbox.errors import GuestError
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.spec.model import Mode, Run, Step

world = feignedworld.world  # a fixture

#: A manifest that was ready once.
GOOD = "9" * 64
THIRD_BOOT = NEXT_BOOT.replace("9", "7")


def fall_back(world: World, answer: str = "ready", **more: str | int) -> list[str]:
    """What a guest tells that has gone back from the manifest of the box."""
    fallback = event("fallback", manifest=GOOD, wanted=world.digest, reason="setup setup: it broke")
    about: dict[str, str | int] = {"manifest": GOOD, "wanted": world.digest}
    return [fallback, event("provisioning", **about), event(answer, **about | more)]


@pytest.mark.parametrize("verb", ["up", "reload"])
def test_what_the_box_has_gone_back_from_is_not_brought_again(world: World, verb: str) -> None:
    """It runs its last good manifest: that is told as a failure, with the reason, and nothing is delivered."""
    up(world)
    world.did.clear()
    if verb == "reload":
        stop.halt(world.machine)
        world.boot = [*world.boot[:-1], *fall_back(world)]
    else:
        makemachine.tell(world.machine, *fall_back(world))
    with pytest.raises(GuestError) as e:
        up(world)
    assert e.value.message.splitlines() == [
        f"tiny: the manifest {world.digest[:12]} failed: setup setup: it broke",
        f"The box is ready with the last good one, {GOOD[:12]}.",
    ]
    assert "kimbox provision tiny" in str(e.value.hint)
    assert "deliver" not in world.did
    assert State.READY is state(world.machine)


def test_after_a_fallback_the_user_decides(world: World) -> None:
    """`provision` tries the same once more; another manifest is brought by `up`, be it the one that it runs."""
    up(world)
    makemachine.tell(world.machine, *fall_back(world))
    world.did.clear()
    provision(Project(world.box))
    assert ["deliver"] == world.did
    assert State.READY is up(world)
    for told in (fall_back(world), [event("ready", manifest=world.digest, wanted=GOOD)]):
        makemachine.tell(world.machine, *told)
        world.did.clear()
        world.box = attrs.evolve(world.box, provision=(Step("more", "true", Mode.SYSTEM, Run.ONCE, 60),))
        world.after = [event("provisioning", manifest=world.digest), event("ready", manifest=world.digest)]
        assert State.READY is up(world)
        assert ["deliver"] == world.did


def test_a_fallback_while_up_waits_ends_it(world: World) -> None:
    """Setup took the box down twice: the third boot of the guest tells what came of it."""
    boots = [[event("provisioning", boot=boot, manifest=world.digest)] for boot in (BOOT, NEXT_BOOT)]
    gone_back = [line.replace(BOOT, THIRD_BOOT) for line in fall_back(world)]
    world.after = [*boots[0], *boots[1], *gone_back]
    with pytest.raises(GuestError, match="it broke"):
        up(world)
    assert 1 == world.did.count("deliver")


def test_a_good_manifest_that_fails_too(world: World) -> None:
    """Both are named; the next `up` does not bring the failed one again."""
    up(world)
    world.did.clear()
    makemachine.tell(world.machine, *fall_back(world, "failed", kind="probe", name="p", exit=1, reason="no"))
    for _ in range(2):
        with pytest.raises(GuestError, match=f"has failed with the last good one, {GOOD[:12]}"):
            up(world)
    assert [] == world.did


def test_status_tells_both(world: World) -> None:
    """What the box runs, what was wanted, and why it is not that; otherwise only the one."""
    up(world)
    assert (world.digest, None, None) == tuple(
        summary_of(world.machine)[key] for key in ("manifest", "wanted", "reason")
    )
    makemachine.tell(world.machine, *fall_back(world))
    told = summary_of(world.machine)
    assert (GOOD, world.digest, "setup setup: it broke") == (told["manifest"], told["wanted"], told["reason"])
    makemachine.tell(world.machine, event("provisioning", manifest=world.digest))
    assert (world.digest, None, None) == tuple(
        summary_of(world.machine)[key] for key in ("manifest", "wanted", "reason")
    )
