"""A save that is interrupted continues with what it has uploaded, also if the disk has changed meanwhile."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import davserver
import makesaved
import pytest
import saveverbs
from clirun import Kimbox
from clirun import kimbox as kimbox
from clirun import world as world
from makesaved import MIB
from saveverbs import refused, saved

from kimbox.image.saves import packs
from kimbox.machine.folder import Machine
from kimbox.run import run
from kimbox.transfer.stores import requests
from kimbox.transfer.stores.base import failed
from kimbox.transfer.stores.folder import FolderStore

machine, store = saveverbs.machine, saveverbs.store  # fixtures


def test_the_image_of_a_fat_save_is_not_sent_again(
    kimbox: Kimbox, machine: Machine, store: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packs do not depend on the disk. The result is whole."""
    monkeypatch.setattr(packs, "PACK_BYTES", MIB)
    real, written = FolderStore.write, []

    def write(self: FolderStore, name: str, source: Path) -> None:
        if len(written) == limit:
            raise failed(self.url, f"writing {name}", "the network is gone")
        written.append(name)
        real(self, name, source)

    monkeypatch.setattr(FolderStore, "write", write)
    limit = -1
    whole = saved(kimbox, world / "whole", "--fat")
    names = [name for name in written if name.startswith("packs/")]
    assert len(names) >= 4
    written.clear()
    limit = len(names) - 1
    assert "store-failed" == refused(kimbox, "save", "tiny", str(store), "--fat")["code"]
    first, limit = written[:], -1
    assert names[:-1] == first
    written.clear()
    more = os.urandom(MIB)
    makesaved.write(machine, world, {"persistent/more": more})
    done = saved(kimbox, store, "--fat")
    assert names[0] not in written
    assert not set(first) & set(written)
    assert done["uploaded_bytes"] < whole["added_bytes"]
    assert 0 == kimbox("create", "other", "--from", str(store))[0]
    assert more == makesaved.get(Machine("other"), world, "persistent/more")


def test_a_save_again_after_each_upload(
    kimbox: Kimbox, machine: Machine, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is interrupted, every object is uploaded once."""
    monkeypatch.setattr(packs, "PACK_BYTES", MIB)
    real, written = FolderStore.write, []

    def write(self: FolderStore, name: str, source: Path) -> None:
        real(self, name, source)
        written.append(name)
        if name.startswith("packs/"):
            raise failed(self.url, f"writing {name}", "the network is gone")

    monkeypatch.setattr(FolderStore, "write", write)
    for _ in range(50):
        code = kimbox("save", "tiny", str(store))[0]
        if code == 0:
            break
    assert 0 == code
    assert len(set(written)) == len(written) > 3


def test_a_server_that_dies_in_a_save(
    kimbox: Kimbox, machine: Machine, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former save is as it was, the next attempt completes, and no password is in what was stored."""
    monkeypatch.setattr(requests, "PAUSES_S", (0.01,))
    monkeypatch.setenv("HOME", str(world))
    (world / ".netrc").write_text("machine 127.0.0.1 login me password Correct-Horse\n")
    (world / ".netrc").chmod(0o600)
    with davserver.serving(world / "served") as dav:
        dav.authorization = f"Basic {base64.b64encode(b'me:Correct-Horse').decode()}"
        assert 0 == kimbox("save", "tiny", dav.url)[0]
        before = {path: path.read_bytes() for path in dav.folder.rglob("*-*") if path.is_file()}
        makesaved.write(machine, world, {"persistent/more": os.urandom(2 * MIB)})
        dav.dies_after = MIB
        assert "store-failed" == refused(kimbox, "save", "tiny", dav.url)["code"]
        assert before == {path: path.read_bytes() for path in before}
        assert 0 == kimbox("create", "old", "--from", dav.url)[0]
        dav.dies_after = None
        assert 0 == kimbox("save", "tiny", dav.url)[0]
        assert 0 == kimbox("create", "new", "--from", dav.url)[0]
        assert [0, 2 * MIB] == [len(makesaved.get(Machine(name), world, "persistent/more")) for name in ("old", "new")]
        for path in dav.folder.rglob("*"):
            assert not path.is_file() or b"Correct-Horse" not in path.read_bytes()


def test_a_full_disk_of_the_host(kimbox: Kimbox, world: Path) -> None:
    """Neither a save nor a box of a save is made of less than all. With space, the same commands work."""
    small = world / "home/machines"
    small.mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "-o", "size=9m", "none", small])
    try:
        machine, store = makesaved.make_saved(world), world / "store"
        disk = machine.disk.read_bytes()
        assert "no-space" == refused(kimbox, "save", "tiny", str(store))["code"]
        assert disk == machine.disk.read_bytes()
        assert not list(store.rglob("*.json"))
        run(["mount", "-o", "remount,size=64m", small])
        assert 0 == kimbox("save", "tiny", str(store))[0]
        used = sum(path.stat().st_blocks * 512 for path in small.rglob("*"))
        run(["mount", "-o", f"remount,size={used + 2 * MIB}", small])
        problem = refused(kimbox, "create", "other", "--from", str(store))
        assert not Machine("other").exists, problem
        run(["mount", "-o", "remount,size=64m", small])
        assert 0 == kimbox("create", "other", "--from", str(store))[0]
        assert 3 * MIB == len(makesaved.get(Machine("other"), world, "persistent/mine"))
    finally:
        run(["umount", small])
