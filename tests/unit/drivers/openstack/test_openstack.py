"""The driver `openstack` with a cloud of dictionaries: what it creates, what it leaves, and the error of each fault."""

from __future__ import annotations

import attrs
import cloudworld
import makemachine
import pytest
from cloudworld import GIB, KEY, World, fail_at, with_address
from fakecloud import FLAVOR
from refused import refused

from kimbox.drivers import registry
from kimbox.drivers.base import Launch
from kimbox.drivers.openstack import driver as module
from kimbox.drivers.openstack import instance as instances
from kimbox.drivers.openstack.cloud import Address, CloudImage, Limit, Status
from kimbox.drivers.openstack.driver import OpenStack
from kimbox.drivers.openstack.journal import Journal
from kimbox.errors import GuestError, ImageError, KimboxError, SpecError, StateError
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.machine import foreign, keys
from kimbox.machine.record import CLOUD_FILE, Ended
from kimbox.machine.state import State, derive
from kimbox.spec.model import INSTANCE_TIMEOUT_S, Instance, Scratch

world = cloudworld.world  # a fixture


def test_a_new_instance(world: World) -> None:
    """It has the published image, the key and the name; the host key is from the console."""
    record = world.start()
    ((server, order),) = world.cloud.instances.values()
    assert ("10.0.0.7", 22, {}) == (record.ssh_host, record.ssh_port, record.forwards)
    assert makemachine.HOST_KEY == keys.host_key(world.machine)
    assert [order.key] == list(world.cloud.pairs)
    assert {"kimbox_hostname": "tiny"} == order.metadata
    assert (FLAVOR.id, "n1", order.image) == (order.flavor, order.network, next(iter(world.cloud.disks)))
    assert State.BOOTING is derive(world.driver.observe(record))
    assert Status.ACTIVE == server.status
    assert "openstack" == registry.of(world.machine).name


def test_the_image_is_published_once(world: World) -> None:
    """Another box, host or process finds it by its key. `unpublish` removes it."""
    world.start()
    assert 1 == world.cloud.calls.count("upload")
    assert not world.driver.publish(world.box, world.image)[1]
    assert 1 == world.cloud.calls.count("upload")
    assert 1 == world.driver.unpublish(world.box, KEY)
    assert 0 == world.driver.unpublish(world.box, KEY)
    assert world.driver.publish(world.box, world.image)[1]


def test_what_an_interrupted_upload_left_is_replaced(world: World) -> None:
    """An image without its disk, and one with another digest, are not used."""
    world.driver.publish(world.box, world.image)
    ((whole, tags),) = world.cloud.disks.values()
    world.cloud.disks.clear()
    for number, (status, digest) in enumerate([(Status.QUEUED, ""), (Status.SAVING, ""), (Status.ACTIVE, "0" * 128)]):
        world.cloud.disks[str(number)] = CloudImage(str(number), "x", status, digest, whole.announced), tags
    assert world.driver.publish(world.box, world.image)[1]
    assert [whole.announced] == [image.sha512 for image, _ in world.cloud.disks.values()]


def test_an_upload_that_is_cut_off(world: World) -> None:
    """It is tried once more. If the cloud still has other bytes, that is an error, and nothing stays there."""
    world.cloud.received = lambda data: data[:100]
    with refused(ImageError, "checksum-mismatch", name="tiny"):
        world.driver.publish(world.box, world.image)
    assert {} == world.cloud.disks
    cut = iter([100, None])
    world.cloud.received = lambda data: data[: next(cut)]
    assert world.driver.publish(world.box, world.image)[1]


@pytest.mark.parametrize("code", ["image-refused", "cloud-failed", "cloud-quota", "cloud-login"])
def test_an_upload_that_the_cloud_refuses(world: World, code: str) -> None:
    """Glance answers 415, a quota is exhausted, or the token ends: that is the error, and nothing stays there."""
    fail_at(world.cloud, "upload", KimboxError("no", code=code))
    with refused(KimboxError, code):
        world.driver.publish(world.box, world.image)
    assert {} == world.cloud.disks


def test_every_shortfall_is_named_at_once(world: World) -> None:
    """With used, limit and asked. Nothing is created, and nothing is uploaded."""
    with_address(world)
    world.cloud.quotas = {
        "instances": Limit(10, 10), "cores": Limit(19, 20), "ram_mib": Limit(0, -1), "keys": Limit(3, 100),
        "addresses": Limit(2, 2), "ports": Limit(50, 50),
    }  # fmt: skip
    with refused(KimboxError, "cloud-quota", name="tiny") as caught:
        world.start()
    for words in (
        "instances: 10 used, limit 10, 1 asked",
        "processors: 19 used, limit 20, 2 asked",
        "floating addresses: 2 used, limit 2, 1 asked",
        "ports: 50 used, limit 50, 1 asked",
    ):
        assert words in caught.value.message
    assert "memory" not in caught.value.message
    assert "key pairs" not in caught.value.message
    assert [] == world.cloud.changes
    world.cloud.floating["a"] = Address("a", "192.0.2.9", True)
    with refused(KimboxError, "cloud-quota") as caught:
        world.start()
    assert "floating" not in caught.value.message  # the free one is taken


def test_names_that_the_cloud_does_not_know(world: World) -> None:
    """Each one, with the nearest known name, before anything is created."""
    world.box = attrs.evolve(world.box, openstack=Instance("smal", "privat", "nowhere"))
    with refused(KimboxError, "cloud-not-found") as caught:
        world.start()
    assert "no flavor smal (did you mean small?)" in caught.value.message
    assert "no network privat (did you mean private?)" in caught.value.message
    assert "no network nowhere" in caught.value.message
    assert [] == world.cloud.changes


@pytest.mark.parametrize(
    ("ephemeral_gib", "scratch_gib", "words"),
    [(0, 4, "no ephemeral disk"), (3, 4, "ephemeral disk of 3 GiB, and `scratch` needs 4 GiB"), (4, 4, "")],
)
def test_scratch_space_is_the_ephemeral_disk(world: World, ephemeral_gib: int, scratch_gib: int, words: str) -> None:
    """A flavor without one, or with a smaller one, is an error. Else the guest is told where to mount it."""
    scratch = Scratch(scratch_gib * GIB, "/staging")
    world.box = attrs.evolve(world.box, scratch=scratch)
    world.cloud.kinds = [attrs.evolve(FLAVOR, ephemeral_gib=ephemeral_gib)]
    world.machine.write_record(attrs.evolve(world.machine.record(), scratch=scratch))
    if words:
        with refused(KimboxError, "conflicting-settings") as caught:
            world.start()
        assert words in caught.value.message
        return
    world.start()
    ((_, order),) = world.cloud.instances.values()
    assert "/staging" == order.metadata["kimbox_scratch"]


def test_a_flavor_whose_disk_is_too_small(world: World) -> None:
    """The image would not fit."""
    world.cloud.kinds = [attrs.evolve(FLAVOR, disk_gib=0)]
    with refused(KimboxError, "conflicting-settings") as caught:
        world.start()
    assert "a disk of 0 GiB, and the image needs 5 GiB" in caught.value.message


def test_an_image_that_kimbox_did_not_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is uploaded: its guest would never report to this host."""
    monkeypatch.setattr(foreign, "instance", lambda *_: "kimbox-0")
    with refused(StateError, "unsupported-by-image", name="tiny"):
        world.start()
    assert [] == world.cloud.changes


def test_a_spec_without_a_cloud(world: World) -> None:
    """The error names the key that is missing."""
    with refused(SpecError, "missing-key"):
        world.driver.prepare(attrs.evolve(world.box, openstack=None), world.image)


def test_a_free_address_comes_first_and_stays(world: World) -> None:
    """It is the project's: `destroy` does not release it."""
    with_address(world)
    world.cloud.floating["a"] = Address("a", "192.0.2.9", True, "someone's")
    assert "192.0.2.9" == world.start().ssh_host
    world.driver.destroy()
    assert ["192.0.2.9"] == [address.ip for address in world.cloud.floating.values() if address.is_free]
    assert [] == list(world.cloud.instances)


def test_a_new_address_goes_with_the_machine(world: World) -> None:
    """It is allocated only if none is free, and released by `destroy`."""
    with_address(world)
    assert "192.0.2.1" == world.start().ssh_host
    world.driver.destroy()
    assert ([], {}) == (world.cloud.everything(), world.cloud.floating)
    assert not world.machine.folder.exists()


def test_an_instance_that_fails(world: World) -> None:
    """The reason is that of the cloud, and nothing of the start is left there."""
    world.cloud.next_status, world.cloud.fault = Status.ERROR, "No valid host was found."
    with refused(GuestError, "instance-failed", reason="No valid host was found."):
        world.start()
    assert [] == world.cloud.everything()


def test_a_guest_without_a_host_key(world: World) -> None:
    """The wait has an end. Nothing is left in the cloud, and the console is on this host."""
    world.box = attrs.evolve(world.box, openstack=Instance("small", "private", timeout_s=0))
    world.cloud.text = "kernel panic\n"
    with refused(GuestError, "instance-failed", what="its ssh host key on the console"):
        world.start()
    assert [] == world.cloud.everything()
    assert "kernel panic\n" == world.machine.serial_log.read_text()


@pytest.mark.parametrize(("timeout_s", "expected_s"), [(3600, 3600), (60, INSTANCE_TIMEOUT_S)])
def test_later_verbs_wait_as_long_as_the_last_start(
    world: World, monkeypatch: pytest.MonkeyPatch, timeout_s: int, expected_s: int
) -> None:
    """They have no spec. A limit below the default is for starts alone: a halt must not end before the cloud does."""
    world.box = attrs.evolve(world.box, openstack=Instance("small", "private", timeout_s=timeout_s))
    world.start()
    limits_s = []
    monkeypatch.setattr(instances, "bring_to", lambda *words: limits_s.append(words[-1].timeout_s))
    world.driver.stop(State.READY, force=False, timeout_s=1)
    assert [expected_s] == limits_s


@pytest.mark.parametrize(
    ("method", "code"),
    [("allocate", "no-address"), ("allocate", "cloud-quota"), ("import_key", "cloud-quota"),
     ("create_server", "cloud-quota"), ("servers", "cloud-login"), ("attach", "cloud-failed")],
)  # fmt: skip
def test_a_request_that_is_refused(world: World, method: str, code: str) -> None:
    """No address is free, a quota of each kind, a token that ends: the error is that, and nothing is left."""
    with_address(world)
    world.driver.prepare(world.box, world.image)
    fail_at(world.cloud, method, KimboxError("no", code=code))
    with refused(KimboxError, code):
        world.start()
    assert [] == world.cloud.everything()


def test_a_damaged_record_does_not_hide_what_is_in_the_cloud(world: World) -> None:
    """`destroy` finds it by the journal."""
    world.start()
    world.machine.record_file.write_text("{")
    assert "openstack" == registry.of(world.machine).name
    world.driver.destroy()
    assert [] == world.cloud.everything()


def test_halt_start_suspend_and_resume(world: World) -> None:
    """The state is that of the cloud, whatever the record says; the host key and the address stay."""
    record = world.start()
    world.driver.stop(State.READY, force=False, timeout_s=1)
    assert State.HALTED is derive(world.driver.observe(world.ended(Ended.HALTED)))
    assert record.ssh_host == world.start().ssh_host
    assert 1 == world.cloud.calls.count("create_server")
    world.driver.suspend(lambda: None)
    record = world.ended(Ended.SUSPENDED)
    assert State.SUSPENDED is derive(world.driver.observe(record))
    world.driver.start(Launch(record, None, 1, GIB, resume=True))
    assert [Status.ACTIVE] == [server.status for server, _ in world.cloud.instances.values()]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (Status.ERROR, State.CRASHED), (Status.PAUSED, State.PAUSED), (Status.SHUTOFF, State.HALTED),
        ("SHELVED_OFFLOADED", State.HALTED), ("HARD_REBOOT", State.BOOTING),
    ],
)  # fmt: skip
def test_the_state_follows_from_that_of_the_instance(world: World, status: str, state: State) -> None:
    """Also if someone has changed it in the dashboard."""
    world.start()
    (server,) = world.cloud.instances
    world.cloud.set_status(server, status)
    assert state is derive(world.driver.observe(world.ended(Ended.HALTED)))


def test_an_instance_that_someone_removed(world: World) -> None:
    """The box is halted, and the next `up` creates another instance."""
    world.start()
    world.cloud.instances.clear()
    assert State.HALTED is derive(world.driver.observe(world.ended(Ended.HALTED)))
    world.start()
    assert 1 == len(world.cloud.instances)
    assert 1 == len(world.cloud.pairs)


def test_a_snapshot(world: World) -> None:
    """It is an image of the instance, whose disk it replaces later. It goes with the machine."""
    world.start()
    world.driver.stop(State.READY, force=False, timeout_s=1)
    record = world.ended(Ended.HALTED)
    world.driver.save_snapshot("one")
    name = Journal.read(world.machine).name
    assert [f"{name}-one"] == [image.name for image, tags in world.cloud.disks.values() if not tags]
    world.driver.restore_snapshot(Launch(record, None, 1, GIB), "one")
    assert "rebuild" in world.cloud.calls
    world.driver.delete_snapshot("one")
    assert [name, *world.cloud.instances] == world.cloud.everything()
    world.driver.save_snapshot("two")
    world.driver.destroy()
    assert [] == world.cloud.everything()


def test_the_cloud_works_on_the_instance(world: World) -> None:
    """Nova refuses each request then, for example while it copies the disk for a snapshot: kimbox waits for the end."""
    world.start()
    (server,) = world.cloud.instances

    def work(status: Status) -> None:
        """The instance is busy until it has been looked at twice."""
        looks = iter(range(2))
        world.cloud.set_status(server, status, is_busy=True)

        def before(name: str) -> None:
            if name == "servers" and next(looks, None) is None:
                world.cloud.before = lambda _: None
                world.cloud.set_status(server, status)

        world.cloud.before = before

    work(Status.ACTIVE)
    world.driver.stop(State.READY, force=False, timeout_s=1)
    record = world.ended(Ended.HALTED)
    work(Status.SHUTOFF)
    world.driver.save_snapshot("one")
    work(Status.SHUTOFF)
    world.driver.restore_snapshot(Launch(record, None, 1, GIB), "one")
    work(Status.SHUTOFF)
    world.start()
    assert [Status.ACTIVE] == [server.status for server, _ in world.cloud.instances.values()]


def test_a_snapshot_that_fails_leaves_no_image(world: World) -> None:
    """Its image stays incomplete until the timeout."""
    world.start()
    fail_at(world.cloud, "images", KimboxError("no", code="cloud-failed"))
    with refused(KimboxError, "cloud-failed"):
        world.driver.save_snapshot("one")
    assert [] == [image for image, tags in world.cloud.disks.values() if not tags]


@pytest.mark.parametrize(("size", "is_sent"), [(10240, True), (51200, False)])
def test_a_small_manifest_goes_with_the_instance(world: World, size: int, is_sent: bool) -> None:
    """As user data that the guest recognizes; a larger one is sent over ssh later."""
    world.machine.delivery.write_bytes(bytes(size))
    disk = DeliveryDisk.of("d" * 64, world.machine.delivery)
    world.start(delivery=disk)
    ((_, order),) = world.cloud.instances.values()
    assert (f"#kimbox-manifest {disk.credential()}\n".encode() + bytes(size) if is_sent else b"") == order.user_data


def test_two_machines_of_one_name_are_two_instances(world: World) -> None:
    """Another host may use the same project: it has another name there, so neither touches the other."""
    first = Journal.read(world.machine).name
    world.driver.create(world.machine.folder, world.box, world.image)
    assert first != Journal.read(world.machine).name
    assert first.startswith("kimbox-tiny-")


def test_a_damaged_journal(world: World) -> None:
    """Nothing is guessed from it."""
    for text in ("[]", '{"name": 1, "made": []}', '{"name": "x", "made": ["key", 1]}', '{"name": "x"}'):
        (world.machine.folder / CLOUD_FILE).write_text(text)
        with pytest.raises(KimboxError) as caught:
            Journal.read(world.machine)
        assert "file-damaged" == caught.value.code


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kimbox doctor` shows the command that installs it, on a host that has a cloud in its environment."""
    monkeypatch.setattr(module.sdk, "is_installed", lambda: False)
    assert [] == OpenStack.check_host()
    monkeypatch.setenv("OS_CLOUD", "arbutus")
    (check,) = OpenStack.check_host()
    assert ("slow", "pip install 'kimbox[openstack]'") == (check.outcome, check.repair)
