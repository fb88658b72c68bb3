"""`kimbox maintain` in a real guest: a base is changed on a separate disk, committed, and booted as a new box."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Kimbox

pytestmark = pytest.mark.guest

NAME = "based"

#: Manual changes: a package that cannot be configured yet, damage to GRUB's entries, to the initramfs and to the links
#: of the kernel, and files with secrets.
CHANGE = """
set -e
mkdir -p /var/tmp/deb/DEBIAN /var/tmp/deb/opt/extra
(echo Package: kimbox-extra; echo Version: 1.5; echo Architecture: all) >/var/tmp/control
(echo Maintainer: x; echo Description: x) >>/var/tmp/control
mv /var/tmp/control /var/tmp/deb/DEBIAN/
(echo '#!/bin/sh'; echo 'exec test -e /etc/by-hand') >/var/tmp/deb/DEBIAN/postinst
chmod 755 /var/tmp/deb/DEBIAN/postinst
echo extra >/var/tmp/deb/opt/extra/file
dpkg-deb -b /var/tmp/deb /var/tmp/extra.deb >/dev/null
! sudo dpkg -i /var/tmp/extra.deb >/dev/null 2>&1
echo broken | sudo tee /boot/grub/grub.cfg /boot/initrd.img-$(uname -r) >/dev/null
sudo rm /boot/linux
echo secret | sudo tee /persistent/secret /root/.bash_history >/dev/null
sync
"""


def test_a_base_is_changed_and_committed(kimbox: Kimbox, tmp_path: Path) -> None:
    """The changes are recorded, packaged (for VirtualBox) and booted. The files of the single machine are removed."""
    kimbox.spec(NAME)
    started = kimbox.json("maintain")
    assert ("based-maintain", "ready") == (started["name"], started["state"])
    assert "absent" == kimbox.json("status", NAME)["state"]
    assert "/dev/mapper/vagrant--pipeline-root / ext4" in kimbox.sh("based-maintain", "cat /proc/mounts")
    assert 5 == kimbox("up", "based-maintain", check=False).code
    identity = kimbox.sh("based-maintain", "sudo sh -c 'cat /etc/machine-id /persistent/ssh/*.pub'")
    kimbox.sh("based-maintain", CHANGE)

    refused = kimbox.json("maintain", "--commit", "based-2", check=False)
    assert (4, True) == (refused["exit_code"], "kimbox-extra" in refused["message"]), refused
    assert "half installed" in refused["message"]
    kimbox.sh("based-maintain", "echo changed | sudo tee /etc/by-hand >/dev/null")

    done = kimbox.json("maintain", "--commit", "based-2", "--package", "out", "--format", "virtualbox")
    assert [{"name": "kimbox-extra", "old": "", "new": "1.5"}] == done["changes"]["packages"]
    files = done["changes"]["files"]
    assert "/etc/by-hand" in files["added"]
    assert not [path for paths in files.values() for path in paths if "/var/tmp/" in path or "secret" in path]
    assert done["changes"].items() <= json.loads(Path(done["record"]).read_text()).items()
    assert 5 == kimbox("status", "based-maintain", check=False).code

    kimbox("box", "remove", "based-2")
    kimbox("box", "add", "based-3", "out/based-virtualbox.box")
    (tmp_path / "new").mkdir()
    new = Kimbox(kimbox.home, tmp_path / "new")
    (new.folder / "kimbox.yaml").write_text(
        "kimbox: 1\nname: rebased\nbase: [minimal.yaml]\nimage: {box: based-3}\n"
        "provision: [{name: look, script: cp /etc/by-hand /etc/seen}]\n"
    )
    new("up", "--boot", "resnap")
    assert "extra\nchanged\n" == new.sh("rebased", "cat /opt/extra/file /etc/seen")
    assert "rebased\n" == new.sh("rebased", "cat /etc/hostname")
    now = new.sh("rebased", "sudo sh -c 'cat /etc/machine-id /persistent/ssh/*.pub'")
    assert not set(identity.split()) & set(now.split()) - {"ssh-ed25519", "kimbox"}
    new.sh("rebased", "! sudo test -e /persistent/secret && ! sudo test -e /root/.bash_history")
    new("destroy", "-y")
    new("box", "remove", "based-3")


def test_no_maintenance_machine(kimbox: Kimbox) -> None:
    """Without a maintenance machine, --discard succeeds and --commit fails."""
    kimbox.spec(NAME)
    assert 0 == kimbox("maintain", "--discard").code
    assert 5 == kimbox("maintain", "--commit", "based-3", check=False).code
