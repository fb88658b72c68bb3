"""A real box is saved, and another one is made of the save: it has the files, and is another machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Kimbox

pytestmark = pytest.mark.guest

#: Prints what must differ between the two boxes, one line each.
IDENTITY = """
cat /etc/machine-id
sudo cat /persistent/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2
cut -d' ' -f2 /run/kimbox/authorized_keys/vagrant
hostname
"""


def test_a_box_is_made_of_a_save(kimbox: Kimbox, tmp_path: Path) -> None:
    """It boots with a user's files of root and /persistent, and is not provisioned again; the second save is small."""
    kimbox.spec("kept", "boot: keep\nprovision: [{name: count, script: echo ran >>/root/runs}]\n")
    kimbox("up")
    kimbox.sh("kept", "echo mine >notes; sudo sh -c 'echo more >/persistent/notes'; sync")
    first = kimbox.sh("kept", IDENTITY).split()
    store = tmp_path / "store"
    saved = kimbox.json("stop", "kept", "--url", store)
    assert ("ready", "halted") == (saved["before"], kimbox.json("status", "kept")["state"])
    started = kimbox.json("start", store, "--name", "other")
    assert (saved["number"], "other", "kept") == (started["saved"]["number"], started["name"], started["box"])
    assert ["mine", "more", "ran"] == kimbox.sh("other", "cat notes /persistent/notes; sudo cat /root/runs").split()
    second = kimbox.sh("other", IDENTITY).split()
    assert len(first) == len(second) == 4
    assert not set(first) & set(second)
    kimbox("halt", "other")
    assert kimbox.json("save", "other", store)["uploaded_bytes"] < saved["uploaded_bytes"]
    kimbox("destroy", "-y", "other")
