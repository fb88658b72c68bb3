"""The keys of workers at a director: what counts as a key, and which connections end when one is removed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import makepipeline
import pytest
from realsshd import make_key
from waiting import until

from kimbox.run import background

PROGRAM = makepipeline.SETUP / "pipeline-keys"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program as a module. It writes no byte code into the folder, because the folder is shipped."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader = importlib.machinery.SourceFileLoader("pipeline_keys", str(PROGRAM))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module
    finally:
        sys.dont_write_bytecode = before


def test_only_plain_files_with_one_key_count(program: ModuleType, tmp_path: Path) -> None:
    """Neither links, pipes, folders, options, second lines, long files nor other names are keys of a worker."""
    folder, key = tmp_path / "keys", make_key(tmp_path / "own")
    folder.mkdir()
    (folder / "hand-1a2b.pub").write_text(f"{key} hand\n")
    (folder / "bare.pub").write_text(key)
    (tmp_path / "elsewhere").write_text(key)
    (folder / "link.pub").symlink_to(tmp_path / "elsewhere")
    (folder / "second.pub").hardlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.pub")
    (folder / "folder.pub").mkdir()
    for name, text in {
        "options": f'command="id" {key}', "two": f"{key}\n{key}", "long": f"{key} {'x' * 2000}", "empty": "",
        "other": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQC", "control": f"{key} \x1b[2J", "line": f"{key} x\ny",
        "a b": key, "a\nb": key, ".hidden": key,
    }.items():  # fmt: skip
        (folder / f"{name}.pub").write_text(text)
    (folder / "hand.pub.part").write_text(key)
    assert program.read_keys(folder) == {"bare": key, "hand-1a2b": key}


def test_sshd_gets_the_keys_and_loses_a_removed_one(program: ModuleType, tmp_path: Path) -> None:
    """The file is replaced as a whole, with the options that allow a tunnel to the queue alone."""
    (tmp_path / "keys").mkdir()
    for name in ("one", "two"):
        (tmp_path / "keys" / f"{name}.pub").write_text(make_key(tmp_path / name))
    target, first = tmp_path / "authorized", (tmp_path / "keys/one.pub").read_text()
    with background([sys.executable, "-B", PROGRAM, tmp_path / "keys", target]):
        until("both are there", lambda: target.exists() and target.read_text().count("\n") == 2)
        assert f"{program.OPTIONS} {first} one\n" in target.read_text()
        assert program.OPTIONS == 'restrict,port-forwarding,permitopen="127.0.0.1:11300"'
        (tmp_path / "keys/two.pub").unlink()
        until("one is left", lambda: target.read_text() == f"{program.OPTIONS} {first} one\n")
    assert target.stat().st_mode & 0o777 == 0o644


def test_connections_that_began_before_the_removal_are_found(program: ModuleType, tmp_path: Path) -> None:
    """Of the account of the workers alone, by the start of the process that checked the key."""
    ticks = os.sysconf("SC_CLK_TCK")

    def process(pid: int, name: str, parent: int, began_s: float) -> None:
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "comm").write_text(f"{name}\n")
        fields = ["S", str(parent), *["0"] * 17, str(int(began_s * ticks)), "0"]
        (folder / "stat").write_text(f"{pid} ({name} ) x) {' '.join(fields)}\n")

    process(10, "sshd-session", 1, 50)
    process(11, "sshd-session", 10, 70)  # the key was checked before, the session began after
    process(20, "sshd", 1, 65)
    process(21, "sshd", 20, 70)
    process(30, "python3", 10, 50)
    process(41, "sshd-session", 40, 50)  # its parent has ended
    uid = tmp_path.stat().st_uid
    assert sorted(program.connections(tmp_path, uid, 60.0)) == [11]
    assert sorted(program.connections(tmp_path, uid, 66.0)) == [11, 21]
    assert program.connections(tmp_path, uid + 1, 66.0) == []
    assert program.connections(Path("/proc"), uid + 4242, time.clock_gettime(time.CLOCK_BOOTTIME)) == []
