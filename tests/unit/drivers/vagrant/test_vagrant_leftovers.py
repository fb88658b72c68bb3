"""Objects that Vagrant leaves in libvirt, and their removal, with a script in place of virsh."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import feignedvagrant
import makebox
import makemachine
import ownhome
import pytest
from feignedvagrant import Host

from kimbox import paths
from kimbox.actions import prune
from kimbox.drivers import names
from kimbox.drivers.base import Launch
from kimbox.drivers.vagrant import boxes, libvirt
from kimbox.drivers.vagrant.driver import Vagrant
from kimbox.errors import GuestError
from kimbox.files import locked
from kimbox.image.store import lease
from kimbox.image.store.images import Image
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.render.vagrantfile import KEY_DIGITS, box_name

home = ownhome.home  # a fixture
host, machine = feignedvagrant.host, feignedvagrant.machine  # fixtures


def test_only_objects_of_this_machine_are_removed(host: Host) -> None:
    """Its domain and volumes, but none of a machine whose name begins with its name, or of another $KIMBOX_HOME."""
    mine = names.domain("tiny")
    others = [
        f"{mine}-2.img",
        f"{mine}-two.img",
        f"{mine}-two-vdb.qcow2",
        f"{mine}-vdb.img",
        "kimbox-00000000-tiny.img",
    ]
    listed = "\n".join(f"{volume} /pool/{volume}" for volume in [f"{mine}.img", f"{mine}-vdb.qcow2", *others])
    host.fake(
        "virsh", f'case "$*" in *vol-list*) echo "{listed}" ;; *"list --all"*) echo "{mine}"; echo "{mine}-2" ;; esac'
    )
    libvirt.remove_leftovers("tiny")
    done = [call for call in host.calls if "list" not in call]
    assert [f"undefine {mine} ", f"vol-delete {mine}.img ", f"vol-delete {mine}-vdb.qcow2 "] == [
        next(word for word in ("undefine", "vol-delete") if word in call) + f" {call.split()[5]} " for call in done[1:]
    ]
    assert done[0].endswith(f"destroy {mine}")


FREE, USED = "aaaaaaaa-0000-0000-0000-000000000001", "aaaaaaaa-0000-0000-0000-000000000002"


@pytest.mark.parametrize("has_domain", [True, False])
def test_an_unused_network_is_removed_with_the_machine(host: Host, machine: Machine, has_domain: bool) -> None:
    """Of the networks that Vagrant created for it. A killed Vagrant has no domain, and would leave them."""
    folder = machine.folder / ".vagrant/machines/tiny/libvirt"
    (folder / "created_networks").write_text(f"{FREE}\n{USED}\n--all\n")
    if not has_domain:
        (folder / "id").unlink()
    host.fake("vagrant", f'rm -f "{folder}/created_networks"')
    host.fake("virsh", f'case "$*" in *"net-dumpxml {USED}") echo "<network connections=\'1\'>" ;; esac')
    Vagrant(machine).destroy()
    networks = [call.split()[-2:] for call in host.calls if "net-" in call and "dumpxml" not in call]
    assert [["net-destroy", FREE], ["net-undefine", FREE]] == networks


def test_an_image_in_libvirt_belongs_to_one_home(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume of an image has the name of the Vagrant box, which differs between two homes."""
    image, box = Image("e" * 64, tmp_path / "disk.raw", "raw", {}), makebox.make_box(tmp_path)
    mine = boxes.name_of(box, image)
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "other"))
    theirs = boxes.name_of(box, image)
    names = [f"{name}_vagrant_box_image_0_box.img" for name in (mine, theirs, box_name(box.name, image.key))]
    assert 3 == len(set(names))
    listed = "\n".join(f"{name} /pool/{name}" for name in names)
    host.fake("virsh", f'case "$*" in *vol-list*) echo "{listed}" ;; esac')
    libvirt.remove_image(mine)
    assert [names[0]] == [call.split()[5] for call in host.calls if "vol-delete" in call]


@pytest.mark.parametrize("ended", [Ended.NEW, Ended.HALTED])
def test_the_image_of_a_first_start_is_replaced(host: Host, machine: Machine, ended: Ended) -> None:
    """A killed Vagrant may have left an incomplete image. The image of a box with other machines is complete.

    The host key and the logs of the former disk are removed.
    """
    record = attrs.evolve(machine.record(), ended=ended)
    of_the_disk = [machine.known_hosts, machine.events_file, machine.provision_log, machine.folder / "fetched.json"]
    host.fake("virsh", 'case "$*" in *vol-list*) echo "kimbox-x_vagrant_box_image_0_box.img /pool/x" ;; esac')
    host.fake("vagrant", 'case "$*" in up*) exit 1 ;; esac')
    (machine.folder / "box").write_text("kimbox-x\n")

    def removed_images() -> int:
        for file in of_the_disk:
            file.write_text("{}\n")
        with pytest.raises(GuestError):
            Vagrant(machine).start(Launch(record, None, 1, 1 << 30))
        return sum("vol-delete kimbox-x_" in call for call in host.calls)

    assert (1 if ended is Ended.NEW else 0) == removed_images()
    assert [ended is not Ended.NEW] * 4 == [file.exists() for file in of_the_disk]
    other = makemachine.make_machine("other")
    (other.folder / "box").write_text("kimbox-x\n")
    host.calls_file.unlink()
    assert 0 == removed_images()


def test_leftovers_of_a_killed_process_are_removed(host: Host, tmp_path: Path) -> None:
    """Whole disks, in kimbox's folder and in Vagrant's. Complete boxes stay."""
    image, box = Image("e" * 64, tmp_path / "disk.raw", "raw", {}), makebox.make_box(tmp_path)
    home = paths.vagrant_dir()
    complete = home / "boxes" / boxes.name_of(box, image) / "0/libvirt"
    left = [home / "box-12345678", home / "tmp/vagrant-box-add-temp-2026", home / "tmp/boxdeadbeef"]
    for folder in (complete, *left[:2]):
        folder.mkdir(parents=True)
        (folder / "box.img").touch()
    left[2].touch()
    boxes.ensure(image, box, libvirt, lambda what, _: pytest.fail(what))  # type: ignore[arg-type]
    assert [] == [path for path in left if path.exists()]
    assert (complete / "box.img").exists()


def test_prune_removes_what_a_killed_process_left(host: Host, machine: Machine) -> None:
    """An incomplete box, and a box whose machine was not created. A box with a machine stays."""
    home = paths.vagrant_dir()
    used, unused = (home / "boxes" / f"{names.prefix()}{name}-{'a' * KEY_DIGITS}" for name in ("tiny", "other"))
    foreign, left = home / "boxes/debian", home / "tmp/vagrant-box-add-temp-2026"
    for folder in (used, unused, foreign, left):
        folder.mkdir(parents=True)
        (folder / "box.img").write_bytes(b"x" * 8192)
    (machine.folder / "box").write_text(f"{used.name}\n")
    with locked(home / "kimbox.lock"):
        assert [] == prune.unused()
    items = prune.unused()
    assert [
        (unused, "Vagrant box that no machine uses", "vagrant"),
        (left, "of an interrupted run", "vagrant"),
    ] == [(item.path, item.description, item.driver) for item in items]
    assert all(item.size_bytes >= 8192 for item in items)
    with locked(home / "kimbox.lock"):
        assert [] == prune.remove(items)
    assert items == prune.remove(items)
    assert [True, False, True, False] == [path.exists() for path in (used, unused, foreign, left)]


def test_the_box_of_a_machine_that_is_being_created_stays(host: Host, home: Path) -> None:
    """Until the machine exists, the process that creates it holds the lease on the image."""
    key = "a" * 64
    (paths.images_dir() / key).mkdir(parents=True)
    (paths.images_dir() / key / "image.json").write_text(json.dumps({"key": key, "format": "raw"}))
    box = paths.vagrant_dir() / "boxes" / f"{names.prefix()}tiny-{key[:KEY_DIGITS]}"
    box.mkdir(parents=True)
    with lease.shared(key):
        assert not boxes.remove_remains(box)
    assert boxes.remove_remains(box)
