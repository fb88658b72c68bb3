"""A box as an instance of a real Nova, which runs QEMU, with a floating address of a real Neutron."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from realcloud import RealCloud
from realkimbox import PROGRAM_PAUSE_S, Kimbox, until

from kimbox import run
from kimbox.guest import cloudinit
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Guest

pytestmark = [pytest.mark.guest, pytest.mark.soak, pytest.mark.usefixtures("logged")]

NAME = "kim"

SPEC = """\
scratch: {size: 512MiB, mount: /mnt/scratch}
provision:
  - {name: mark, script: echo marked >/etc/marked}
openstack: {cloud: test, flavor: scratch, network: private, address: public}
"""

#: What the guest says of itself: name, identity, kind of the config drive, scratch space, manifest.
LOOK = """\
hostname
sudo cat /persistent/kimbox/instance
sudo blkid -p -o value -s TYPE /dev/disk/by-label/config-2
df --output=source /mnt/scratch | tail -n 1
cat /etc/marked
"""


@pytest.fixture(scope="module")
def box(kimbox: Kimbox) -> Kimbox:
    """kimbox with a box that is ready at the start of each test."""
    kimbox.spec(NAME, SPEC)
    kimbox("up", "--provider", "openstack")
    return kimbox


def server(cloud: RealCloud, name: str = NAME) -> Any:
    """Returns the one instance of a machine, as Nova describes it."""
    found = [item for item in cloud.user.compute.servers() if item.name.startswith(f"kimbox-{name}-")]
    assert 1 == len(found)
    return found[0]


def boot_id(kimbox: Kimbox) -> str:
    return kimbox.sh(NAME, "cat /proc/sys/kernel/random/boot_id")


def test_what_an_instance_gets(box: Kimbox, cloud: RealCloud) -> None:
    """Host name, identity, scratch space and manifest are those of the spec and of the cloud; the drive is a CD-ROM."""
    found = server(cloud)
    assert [NAME, found.id, "iso9660", "/dev/vdb", "marked"] == box.sh(NAME, LOOK).split()
    status = box.json("status", NAME)
    assert ("ready", "openstack") == (status["state"], status["provider"])
    assert [NAME] == [item["name"] for item in box.json("list")["boxes"]]
    assert ["address", "instance", "key", "port"] == sorted({text.split()[0] for text in cloud.left()})


def test_ssh_config(box: Kimbox, tmp_path: Path) -> None:
    """ssh itself reaches the box with what the verb prints, and knows its host key."""
    config = tmp_path / "config"
    config.write_text(box("ssh-config", NAME).stdout)
    assert f"{NAME}\n" == run.run(["ssh", "-F", config, f"kimbox-{NAME}", "hostname"], timeout_s=60).stdout


def test_halt_up_and_reload(box: Kimbox, cloud: RealCloud) -> None:
    """Each is another boot of the same instance, with the same disk, address and host key."""
    before, first = server(cloud), boot_id(box)
    known = box.machine(NAME).known_hosts.name
    pinned = (box.home / "machines" / NAME / known).read_text()
    box.sh(NAME, "echo stays | sudo tee /persistent/mark")
    box("halt", NAME)
    assert ("SHUTOFF", "halted") == (server(cloud).status, box.json("status", NAME)["state"])
    box("up")
    second = boot_id(box)
    box("reload", NAME)
    assert 3 == len({first, second, boot_id(box)})
    assert "stays\n" == box.sh(NAME, "cat /persistent/mark")
    assert (before.id, before.addresses) == (server(cloud).id, server(cloud).addresses)
    assert pinned == (box.home / "machines" / NAME / known).read_text()


def test_suspend_and_resume(box: Kimbox, cloud: RealCloud) -> None:
    """The same boot goes on."""
    first = boot_id(box)
    box("suspend", NAME)
    assert ("SUSPENDED", "suspended") == (server(cloud).status, box.json("status", NAME)["state"])
    box("resume", NAME)
    assert first == boot_id(box)


@pytest.fixture
def snapshot(box: Kimbox, cloud: RealCloud) -> Iterator[Any]:
    """The image of a snapshot of the halted box, which runs again."""
    box.sh(NAME, "echo one | sudo tee /persistent/mark; sync")
    box("halt", NAME)
    box("snapshot", "save", "one", NAME)
    image = cloud.user.image.find_image(f"{server(cloud).name}-one", ignore_missing=False)
    yield image
    box("snapshot", "delete", "one", NAME)
    assert cloud.user.image.find_image(image.id) is None


def test_a_snapshot(box: Kimbox, cloud: RealCloud, snapshot: Any, tmp_path: Path) -> None:
    """It becomes the disk of the box again. Another instance of it, without a config drive, is another machine.

    That instance takes name and key from the metadata service, and makes a host key of its own.
    """
    assert ["one"] == box.json("snapshot", "list", NAME)["snapshots"]
    other = tmp_path / "key"
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", other])
    with _instance(cloud, snapshot.id, other.with_suffix(".pub").read_text()) as found:
        key = cloudinit.host_key(_console(cloud, found.id))
        assert key
        known = box.home / "machines" / NAME / box.machine(NAME).known_hosts.name
        assert key.split()[1] not in known.read_text()
        (tmp_path / "known").write_text(f"other {key}\n")
        address = next(iter(found.addresses.values()))[0]["addr"]
        endpoint = Endpoint(address, 22, "vagrant", other, tmp_path / "known", "other")
        with Guest(endpoint) as guest:
            told = guest.run(
                "hostname; sudo cat /persistent/kimbox/instance; cat /persistent/mark", timeout_s=120
            ).stdout
        assert ["other", found.id, "one"] == told.split()
    box("up")
    box.sh(NAME, "echo two | sudo tee /persistent/mark; sync")
    box("halt", NAME)
    box("snapshot", "restore", "one", NAME)
    box("up")
    assert "one\n" == box.sh(NAME, "cat /persistent/mark")


@pytest.mark.parametrize("kind", ["iso9660", "vfat"])
def test_an_address_of_the_network_itself(kimbox: Kimbox, cloud: RealCloud, kind: str) -> None:
    """The box has no floating address. Its config drive has either file system that Nova writes."""
    if kind == "vfat" and kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip("Nova mounts a config drive with vfat, which the kernel of this host does not have")
    kimbox.spec("direct", "openstack: {cloud: test, flavor: small, network: public}\n")
    with cloud.reconfigured(f"config_drive_format = {kind}"):
        kimbox("up", "--provider", "openstack")
    assert f"{kind}\n" == kimbox.sh("direct", "sudo blkid -p -o value -s TYPE /dev/disk/by-label/config-2")
    kimbox("destroy", "-y", "direct")
    assert not [item for item in cloud.left() if "kimbox-direct-" in item]


@contextlib.contextmanager
def _instance(cloud: RealCloud, image: str, public_key: str) -> Iterator[Any]:
    """An instance of an image in the network `public`, without a config drive, whose console has its host key."""
    compute = cloud.user.compute
    compute.create_keypair(name="other", public_key=public_key)
    made = compute.create_server(
        name="other",
        image_id=image,
        flavor_id=compute.find_flavor("small").id,
        networks=[{"uuid": cloud.user.network.find_network("public").id}],
        key_name="other",
        config_drive=False,
    )
    try:
        until("the host key", lambda: bool(cloudinit.host_key(_console(cloud, made.id))), every_s=PROGRAM_PAUSE_S)
        yield compute.get_server(made.id)
    finally:
        compute.delete_server(made)
        compute.wait_for_delete(made, interval=1, wait=120)
        compute.delete_keypair("other")


def _console(cloud: RealCloud, server: str) -> bytes:
    """The output of an instance on its console; empty before it has one."""
    answer = cloud.user.compute.post(f"/servers/{server}/action", json={"os-getConsoleOutput": {}})
    return str(answer.json().get("output") or "").encode()
