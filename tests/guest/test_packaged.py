"""A package of a real box comes back as a box."""

from __future__ import annotations

import pytest
from conftest import Kimbox

pytestmark = pytest.mark.guest


def test_a_package_comes_back_as_a_box(kimbox: Kimbox) -> None:
    """What a maintainer left in the root is in the package; a box made from it boots, provisions and is another one."""
    kimbox.spec("packed", "boot: maintain\n")
    kimbox("up")
    kimbox.sh(
        "packed", "echo kept | sudo tee /etc/kept; echo old | sudo tee /var/log/old /root/.bash_history; cp /etc/kept ."
    )
    machine_id = kimbox.sh("packed", "cat /etc/machine-id").strip()
    kimbox("halt")
    answer = kimbox.json("package", "-o", "out")
    assert "machine" == answer["from"]
    assert {"/root/.bash_history", "/var/log/old"} <= set(answer["cleaned"])
    kimbox("destroy", "-y", "packed")
    kimbox("box", "add", "from/package", "out/packed-libvirt.box")
    (kimbox.folder / "kimbox.lock").unlink()
    (kimbox.folder / "kimbox.yaml").write_text(
        "kimbox: 1\nname: unpacked\nimage: {box: from/package}\nmemory: 1GiB\ncpus: 1\n"
        "provision: [{name: look, script: test ! -e /var/log/old && cp /etc/kept /etc/seen}]\n"
    )
    assert "ready" == kimbox.json("up")["state"]
    assert "kept" == kimbox.sh("unpacked", "cat /etc/seen /home/vagrant/kept").split()[0]
    assert machine_id != kimbox.sh("unpacked", "cat /etc/machine-id").strip()
    kimbox("destroy", "-y", "unpacked")
    kimbox("box", "remove", "from/package")
