"""What Vagrant runs in a box, `deliver`: it ends well only where the box is then what was delivered."""

from __future__ import annotations

import shutil
from pathlib import Path

import fakeguest
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, step

from kimbox import paths
from kimbox.run import Completed
from kimbox.spec.model import Box

pytestmark = needs_namespace

#: systemd, as far as it is needed: one that starts provisiond, and waits for it.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>/run/systemctl.log
[ "$*" != "restart provisiond.service" ] || exec /usr/lib/kimbox/provisiond
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    """A guest under Vagrant, which has no port to the host: what it tells is kept on /persistent."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    guest = fakeguest.FakeGuest(tmp_path / "guest")
    shutil.rmtree(guest.ports)
    programs = {"systemctl": SYSTEMCTL, "grub-editenv": '#!/bin/sh\necho "$*" >>/run/grubenv.log\n'}
    for name, text in programs.items():
        (guest.path("/usr/local/sbin") / name).write_text(text)
        (guest.path("/usr/local/sbin") / name).chmod(0o755)
    shutil.copy(paths.provisioners_dir() / "provision/deliver", guest.path("/tmp/deliver"))
    return guest


def deliver(guest: FakeGuest, folder: Path, box: Box, *, damage: bool = False) -> Completed:
    """Has a box delivered, its archive cut off where told so."""
    digest, tar = delivery(folder, box)
    content = tar.read_bytes()
    guest.path("/root/box.tar").write_bytes(content[:5000] if damage else content)
    return guest.run("/tmp/deliver", digest, "resnap", "/root/box.tar")


def test_the_box_is_what_was_delivered(guest: FakeGuest, tmp_path: Path) -> None:
    """It ends well, shows what provisioning says, sets the root of later boots, and leaves no archive."""
    done = deliver(guest, tmp_path, box_with(tmp_path, step("greet", "echo hello from the step >&2")))
    assert done.ok, done.stderr
    assert "hello from the step" in done.stdout
    assert "/boot/grub/grubenv set saved_entry=resnap\n" == guest.path("/run/grubenv.log").read_text()
    assert "start boot.mount\n" in guest.path("/run/systemctl.log").read_text()
    assert not guest.path("/root/box.tar").exists()


def test_a_step_that_fails(guest: FakeGuest, tmp_path: Path) -> None:
    """The failure is Vagrant's, and tells which step it was; mended, the box is what was delivered."""
    failed = deliver(guest, tmp_path, box_with(tmp_path, step("breaks", "echo no luck; exit 7")))
    assert (1, True) == (failed.code, "no luck" in failed.stdout)
    assert "does not report this manifest as ready" in failed.stderr
    assert '"name":"breaks"' in failed.stderr
    assert deliver(guest, tmp_path, box_with(tmp_path, step("mended", "true"))).ok


def test_what_is_cut_off_changes_nothing(guest: FakeGuest, tmp_path: Path) -> None:
    """An archive that is not whole is refused before anything of it counts."""
    assert deliver(guest, tmp_path, box_with(tmp_path, step("one", "true"))).ok
    refused = deliver(guest, tmp_path, box_with(tmp_path, step("two", "echo two >/root/two")), damage=True)
    assert not refused.ok
    assert "what the host sent is not whole" in guest.path("/persistent/status.json").read_text()
    assert guest.run("/usr/lib/kimbox/provisiond").ok
    assert not guest.path("/root/two").exists()


def test_a_box_that_kimbox_did_not_make(guest: FakeGuest, tmp_path: Path) -> None:
    """It is told so, and nothing is done to it."""
    guest.path("/usr/lib/kimbox/receive").unlink()
    refused = deliver(guest, tmp_path, box_with(tmp_path))
    assert (1, True) == (refused.code, "was not made by kimbox" in refused.stderr)
    assert not guest.path("/run/grubenv.log").exists()
