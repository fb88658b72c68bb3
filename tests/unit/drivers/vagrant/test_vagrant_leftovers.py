"""What Vagrant leaves in libvirt, and what of it is removed, against a virsh that is the test's."""

from __future__ import annotations

from pathlib import Path

import attrs
import feignedvagrant
import makebox
import makemachine
import pytest
from feignedvagrant import Host

from kimbox import paths
from kimbox.drivers.base import Launch
from kimbox.drivers.vagrant import boxes, libvirt, names
from kimbox.drivers.vagrant.driver import Vagrant
from kimbox.errors import GuestError
from kimbox.image.store.images import Image
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.render.vagrantfile import box_name

host, machine = feignedvagrant.host, feignedvagrant.machine  # fixtures


def test_only_what_is_of_this_box_is_swept(host: Host) -> None:
    """The domain and the volumes of a box, and none of another whose name begins so, or of another home."""
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
    libvirt.sweep("tiny")
    done = [call for call in host.calls if "list" not in call]
    assert [f"undefine {mine} ", f"vol-delete {mine}.img ", f"vol-delete {mine}-vdb.qcow2 "] == [
        next(word for word in ("undefine", "vol-delete") if word in call) + f" {call.split()[5]} " for call in done[1:]
    ]
    assert done[0].endswith(f"destroy {mine}")


FREE, USED = "aaaaaaaa-0000-0000-0000-000000000001", "aaaaaaaa-0000-0000-0000-000000000002"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_network_that_nobody_is_in_goes_with_the_machine(host: Host, machine: Machine, is_there: bool) -> None:
    """Of those that Vagrant made for it; a Vagrant that was killed has lost the domain, and would leave them."""
    folder = machine.folder / ".vagrant/machines/tiny/libvirt"
    (folder / "created_networks").write_text(f"{FREE}\n{USED}\n--all\n")
    if not is_there:
        (folder / "id").unlink()
    host.fake("vagrant", f'rm -f "{folder}/created_networks"')
    host.fake("virsh", f'case "$*" in *"net-dumpxml {USED}") echo "<network connections=\'1\'>" ;; esac')
    Vagrant(machine).destroy()
    networks = [call.split()[-2:] for call in host.calls if "net-" in call and "dumpxml" not in call]
    assert [["net-destroy", FREE], ["net-undefine", FREE]] == networks


def test_an_image_in_libvirt_is_of_one_home(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes of images bear the name of the Vagrant box: what one home removes is nobody else's."""
    image, box = Image("e" * 64, tmp_path / "disk.raw", "raw", {}), makebox.make_box(tmp_path)
    mine = boxes.name_of(box, image)
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "other"))
    theirs = boxes.name_of(box, image)
    names = [f"{name}_vagrant_box_image_0_box.img" for name in (mine, theirs, box_name(box.name, image.key))]
    assert 3 == len(set(names))
    listed = "\n".join(f"{name} /pool/{name}" for name in names)
    host.fake("virsh", f'case "$*" in *vol-list*) echo "{listed}" ;; esac')
    libvirt.drop_image(mine)
    assert [names[0]] == [call.split()[5] for call in host.calls if "vol-delete" in call]


@pytest.mark.parametrize("ended", [Ended.NEW, Ended.HALTED])
def test_the_image_of_a_first_start_is_made_anew(host: Host, machine: Machine, ended: Ended) -> None:
    """A Vagrant that was killed may have left its beginning alone; that of a box with other machines is whole.

    What was known of the former disk, its host key and what its guest told, is forgotten.
    """
    record = attrs.evolve(machine.record(), ended=ended)
    of_the_disk = [machine.known_hosts, machine.events_file, machine.provision_log, machine.folder / "fetched.json"]
    host.fake("virsh", 'case "$*" in *vol-list*) echo "kimbox-x_vagrant_box_image_0_box.img /pool/x" ;; esac')
    host.fake("vagrant", 'case "$*" in up*) exit 1 ;; esac')
    (machine.folder / "box").write_text("kimbox-x\n")

    def dropped() -> int:
        for file in of_the_disk:
            file.write_text("{}\n")
        with pytest.raises(GuestError):
            Vagrant(machine).start(Launch(record, None, 1, 1 << 30))
        return sum("vol-delete kimbox-x_" in call for call in host.calls)

    assert (1 if ended is Ended.NEW else 0) == dropped()
    assert [ended is not Ended.NEW] * 4 == [file.exists() for file in of_the_disk]
    other = makemachine.make_machine("other")
    (other.folder / "box").write_text("kimbox-x\n")
    host.calls_file.unlink()
    assert 0 == dropped()


def test_what_a_killed_one_left_of_a_box_goes_with_the_next(host: Host, tmp_path: Path) -> None:
    """Whole disks, in kimbox's folder and in Vagrant's own; boxes that are there stay."""
    image, box = Image("e" * 64, tmp_path / "disk.raw", "raw", {}), makebox.make_box(tmp_path)
    home = paths.vagrant_dir()
    there = home / "boxes" / boxes.name_of(box, image) / "0/libvirt"
    left = [home / "box-12345678", home / "tmp/vagrant-box-add-temp-2026", home / "tmp/boxdeadbeef"]
    for folder in (there, *left[:2]):
        folder.mkdir(parents=True)
        (folder / "box.img").touch()
    left[2].touch()
    boxes.ensure(image, box, libvirt, lambda what, _: pytest.fail(what))  # type: ignore[arg-type]
    assert [] == [path for path in left if path.exists()]
    assert (there / "box.img").exists()
