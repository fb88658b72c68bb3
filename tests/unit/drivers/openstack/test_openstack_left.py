"""What a killed kimbox leaves in a cloud: the next run removes it, whatever was done when it ended."""

from __future__ import annotations

import cloudworld
import makemachine
import pytest
from cloudworld import KEY, World, with_address
from fakecloud import READING, FakeCloud

from kimbox.drivers.openstack import instance as instances
from kimbox.drivers.openstack.cloud import Server, ServerOrder
from kimbox.machine.record import Ended

world = cloudworld.world  # a fixture


class Killed(BaseException):
    """kill -9: nothing of the process runs afterwards."""


def kill_at(cloud: FakeCloud, number: int, *, is_after: bool) -> None:
    """The process ends at the change with this number, before or after the cloud has made it."""
    left = number

    def check(name: str) -> None:
        nonlocal left
        if name not in READING:
            left -= 1
        if left <= 0:
            raise Killed

    cloud.before, cloud.after = (lambda _: None, check) if is_after else (check, lambda _: None)


def go_on(cloud: FakeCloud) -> None:
    """The next process."""
    cloud.before = cloud.after = lambda _: None


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("verb", ["destroy", "up"])
def test_a_kill_at_each_change_of_a_start(world: World, verb: str, is_after: bool) -> None:
    """The next `destroy` leaves nothing, and the next `up` leaves one instance, with its key and its address."""
    with_address(world)
    points = 0
    while True:
        kill_at(world.cloud, points + 1, is_after=is_after)
        try:
            world.start()
        except Killed:
            points += 1
        else:
            break
        go_on(world.cloud)
        if verb == "destroy":
            world.driver.destroy()
            assert [] == world.cloud.everything(), points
            world.driver.unpublish(world.box, KEY)
            makemachine.make_machine(driver="openstack", image=KEY, ended=Ended.NEW)
            world.driver.create(world.machine.folder, world.box, world.image)
        else:
            world.start()
            assert [1, 1, 1, 1] == [
                len(kind)
                for kind in (world.cloud.instances, world.cloud.pairs, world.cloud.floating, world.cloud.disks)
            ], points
            world.driver.destroy()
            assert [] == world.cloud.everything(), points
            world.driver.unpublish(world.box, KEY)
            makemachine.make_machine(driver="openstack", image=KEY, ended=Ended.NEW)
            world.driver.create(world.machine.folder, world.box, world.image)
    assert points >= 6  # image, its disk, key, instance, address, its attachment


def test_an_instance_that_appears_after_the_kill(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cloud still makes it of the request of a process that was killed: `destroy` waits for it, and removes it."""
    monkeypatch.setattr(instances, "ANSWER_S", 60.0)
    late: dict[str, tuple[Server, ServerOrder]] = {}
    looks: list[str] = []

    def killed(name: str) -> None:
        if name == "create_server":
            late.update(world.cloud.instances)
            world.cloud.instances.clear()
            world.cloud.before = killed
        if late:
            raise Killed

    def appear(name: str) -> None:
        looks.append(name)
        if looks.count("servers") == 3:
            world.cloud.instances.update(late)

    world.cloud.after = killed
    with pytest.raises(Killed):
        world.start()
    world.cloud.before, world.cloud.after = appear, lambda _: None
    world.driver.destroy()
    assert ([], False) == (world.cloud.everything(), world.machine.exists)


@pytest.mark.parametrize("is_after", [False, True])
def test_a_kill_at_each_change_of_a_removal(world: World, is_after: bool) -> None:
    """The machine stays until the cloud has nothing of it; the next `destroy` removes the rest."""
    with_address(world)
    for point in range(1, 20):
        world.start()
        world.ended(Ended.HALTED)
        world.driver.save_snapshot("one")
        kill_at(world.cloud, point, is_after=is_after)
        try:
            world.driver.destroy()
        except Killed:
            assert world.machine.exists
        else:
            break
        go_on(world.cloud)
        world.driver.destroy()
        assert [] == world.cloud.everything(), point
        makemachine.make_machine(driver="openstack", image=KEY, ended=Ended.NEW)
        world.driver.create(world.machine.folder, world.box, world.image)
    assert point > 4  # instance, address, key, snapshot
