"""The exchange of a machine's disk: what it leaves, and that it can be cut off anywhere."""

from __future__ import annotations

from pathlib import Path

import attrs
import ownhome
import pytest
from makemachine import make_machine

from kimbox.actions import prune
from kimbox.files import write_json
from kimbox.machine import rebuilt
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended

home = ownhome.home  # a fixture

OLD, NEW = "e" * 64, "a" * 64


class CutOffError(Exception):
    """The process ends here."""


def prepared() -> Machine:
    """A machine with a disk, a snapshot, and a new disk that is complete but not in place."""
    machine = make_machine(image=OLD)
    machine.disk.write_text("old")
    (machine.snapshots / "before").mkdir(parents=True)
    write_json(machine.snapshots / "before/machine.json", machine.record().as_json())
    rebuilt.work(machine).mkdir()
    (rebuilt.work(machine) / rebuilt.DISK).write_text("new")
    (rebuilt.work(machine) / rebuilt.KEPT).write_text("kept")
    return machine


def replace(machine: Machine) -> None:
    rebuilt.replace(machine, attrs.evolve(machine.record(), image=NEW, ended=Ended.HALTED))


def state(machine: Machine) -> tuple[str, str, str | None, bool, bool]:
    """Disk and image of a machine, image of its former disk, and whether it has the old snapshots, and kept files."""
    record, former = machine.record(), rebuilt.former(machine)
    has_snapshot = (machine.snapshots / "before/machine.json").exists()
    has_kept = rebuilt.kept_files(machine).exists()
    return machine.disk.read_text(), record.image, former.image if former else None, has_snapshot, has_kept


BEFORE = ("old", OLD, None, True, False)
AFTER = ("new", NEW, OLD, False, True)
BACK = ("old", OLD, NEW, True, False)
#: As AFTER, when the machine went back before its guest had got the files.
AGAIN = ("new", NEW, OLD, False, False)


def test_the_former_disk_is_set_aside(home: Path) -> None:
    machine = prepared()
    replace(machine)
    assert state(machine) == AFTER
    assert (machine.folder / "former/disk.qcow2").read_text() == "old"
    assert not rebuilt.work(machine).exists()
    rebuilt.go_back(machine)
    assert state(machine) == BACK
    rebuilt.go_back(machine)
    assert state(machine) == AGAIN
    rebuilt.remove_former(machine)
    assert rebuilt.former(machine) is None


def cut_off_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the first `count` changes of the file system pass, and ends at the next one."""
    left = [count]

    def counted(original: object) -> object:
        def call(*arguments: object, **settings: object) -> object:
            if left[0] == 0:
                raise CutOffError
            left[0] -= 1
            return original(*arguments, **settings)  # type: ignore[operator]

        return call

    for name in ("rename", "replace", "mkdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    for name in ("remove_tree", "write_json"):
        monkeypatch.setattr(rebuilt, name, counted(getattr(rebuilt, name)))
    monkeypatch.setattr(rebuilt.os, "link", counted(rebuilt.os.link))


@pytest.mark.parametrize("count", range(14))
def test_it_can_be_cut_off_anywhere(home: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command finds the machine as before, or completes the exchange. So it is on the way back."""
    for exchange, old, new in ((replace, BEFORE, AFTER), (rebuilt.go_back, AFTER, BACK)):
        machine = Machine("tiny") if exchange is rebuilt.go_back else prepared()
        is_cut = False
        with monkeypatch.context() as patch:
            cut_off_after(count, patch)
            try:
                exchange(machine)
            except CutOffError:
                is_cut = True
        rebuilt.finish(machine)
        assert state(machine) in ((old, new) if is_cut else (new,))
        if state(machine) == old:
            exchange(machine)
        assert state(machine) == new
        assert not list(machine.folder.glob("rebuilt"))


def test_a_folder_that_was_being_removed(home: Path) -> None:
    """The last step was cut off after it had removed the record: the folder is removed, and nothing else changes."""
    machine = prepared()
    replace(machine)
    (machine.folder / "rebuilt").mkdir()
    rebuilt.finish(machine)
    assert state(machine) == AFTER
    assert not (machine.folder / "rebuilt").exists()


def test_the_image_of_a_disk_that_is_not_in_place_is_in_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the record of the machine has it."""
    machine = prepared()
    monkeypatch.setattr(rebuilt, "finish", lambda _: None)
    replace(machine)
    assert machine.record().image == OLD
    assert prune.used_images() == {OLD, NEW}
