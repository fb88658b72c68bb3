"""A real virtiofsd for a folder of the host: what it sees, and that it ends with its connection. No guest runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import makemachine
import pytest
from refused import refused
from waiting import until

from kimbox import run
from kimbox.drivers.qemu import confine, virtiofs
from kimbox.errors import KimboxError
from kimbox.machine import mounts
from kimbox.machine.folder import Machine
from kimbox.spec.model import Mount


def usable() -> bool:
    """Whether this host can share folders."""
    try:
        virtiofs.check()
    except (KimboxError, KeyError):
        return False
    return True


pytestmark = pytest.mark.skipif(not usable(), reason="this user cannot share folders here")

#: Serves a folder until it is killed.
SERVE = """
import sys, time
from pathlib import Path
from kimbox.drivers.qemu import virtiofs
from kimbox.machine.folder import Machine
from kimbox.spec.model import Mount
with virtiofs.serve(Machine("tiny"), (Mount(Path(sys.argv[1]), "/work"),)):
    print("serves", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine, whose folder has a longer path than a socket may have."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / ("long" * 30)))
    return makemachine.make_machine()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the host."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "file").write_text("text")
    (folder / "up").symlink_to("../../../../../../../../..")
    return folder


def server(machine: Machine) -> int:
    """The process that serves the first folder, and that has entered it: it has no children."""
    lock = os.path.realpath(mounts.lock_file(machine, 0))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = {os.path.realpath(file) for file in (process / "fd").iterdir()}
            children = (process / f"task/{process.name}/children").read_text()
        except OSError:
            continue
        if lock in files and not children and process.name != str(os.getpid()):
            return int(process.name)
    raise AssertionError("no process serves the folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into the namespace of the server")
@pytest.mark.parametrize("writable", [False, True])
def test_there_is_nothing_but_the_folder(machine: Machine, folder: Path, writable: bool) -> None:
    """It is the root of the server, who is no user of the host, and read-only unless it is writable."""
    with virtiofs.serve(machine, (Mount(folder, "/work", writable),)):
        assert mounts.is_served(machine, 0)
        process = Path("/proc", str(server(machine)))
        assert {"file", "up"} == {entry.name for entry in (process / "root").iterdir()}
        options = next(line.split()[5] for line in (process / "mountinfo").read_text().splitlines())
        assert {"rw" if writable else "ro", "nosuid", "nodev"} <= set(options.split(","))
        assert virtiofs.UNASSIGNED_IDS == process.stat().st_uid
        limit = next(line.split()[3] for line in (process / "limits").read_text().splitlines() if "open files" in line)
        assert confine.most_open_files() == int(limit) > 1024
        own = folder.stat()
        maps = [(process / kind).read_text().split() for kind in ("uid_map", "gid_map")]
        assert [["1000", str(own.st_uid), "1"], ["1000", str(own.st_gid), "1"]] == [ids[3:6] for ids in maps]
    until("the end of the server", lambda: not mounts.is_served(machine, 0))
    assert not (machine.folder / virtiofs.SOCKET).exists()


def test_a_server_ends_with_a_kimbox_that_is_killed(machine: Machine, folder: Path) -> None:
    """Before QEMU has the connection, only kimbox has it. Nothing has to find the process and to end it."""
    words = ["env", f"KIMBOX_HOME={os.environ['KIMBOX_HOME']}", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
    with run.background([*words, sys.executable, "-c", SERVE, str(folder)]) as kimbox:
        until("the server", lambda: "serves" in kimbox.output())
        assert mounts.is_served(machine, 0)
        kimbox.send_signal(signal.SIGKILL)
        until("the end of the server", lambda: not mounts.is_served(machine, 0))


def test_a_failure_has_the_words_of_the_program(
    machine: Machine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder, and no process is left."""
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho this is why >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(virtiofs, "program", lambda: str(program))
    with (
        refused(KimboxError, "mount-failed", name="tiny", path=str(folder)) as caught,
        virtiofs.serve(machine, (Mount(folder, "/work"),)),
    ):
        pass
    assert caught.value.message.endswith("this is why")
    assert not mounts.is_served(machine, 0)


def test_a_link_that_takes_the_place_of_the_folder(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that has the folder above it can put one there after kimbox has looked. It is not followed."""
    link = folder.with_name("link")
    link.symlink_to(folder, target_is_directory=True)
    monkeypatch.setattr(virtiofs, "real_folder", lambda *_: link)
    with refused(KimboxError, "mount-failed"), virtiofs.serve(machine, (Mount(folder, "/work"),)):
        pass
