"""A save that is interrupted continues with what it has uploaded, also if the disk has changed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

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
