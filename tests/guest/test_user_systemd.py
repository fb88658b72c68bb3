"""Boxes under a real systemd of the user: `kimbox service`, and the timer of lifetimes. `script/test soak` runs it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Kimbox, state_of, until
from usersystemd import is_possible, user_systemd

from kimbox.drivers.qemu import process
from kimbox.machine.folder import Machine
from kimbox.machine.life import read_life

pytestmark = [
    pytest.mark.guest,
    pytest.mark.soak,
    pytest.mark.skipif(not is_possible(), reason="needs root and the program systemd"),
]

#: Pause between two requests of the state of a service, in seconds: each starts a program.
PAUSE_S = 1.0


def services(kimbox: Kimbox) -> dict[str, dict[str, Any]]:
    """Returns the services, by the names of their machines."""
    return {service["name"]: service for service in kimbox.json("service", "status")["services"]}


def kill(name: str) -> int:
    """Kills the QEMU of a machine, and returns its process id."""
    pid = process.pid(Machine(name))
    assert pid
    os.kill(pid, signal.SIGKILL)
    return pid


def until_active(kimbox: Kimbox, name: str, restarts: int) -> None:
    """Waits until systemd has started a machine again so many times, and its start has ended."""

    def is_active() -> bool:
        service = services(kimbox)[name]
        return (service["state"], service["restarts"]) == ("active", restarts)

    until(f"start {restarts} of {name}", is_active, every_s=PAUSE_S)


def test_a_box_stays_up(kimbox: Kimbox, tmp_path: Path) -> None:
    """systemd starts it with the host and after a crash, and not after a halt."""
    kimbox.spec("kept")
    with user_systemd(kimbox, tmp_path / "user") as session:
        assert "kept is kept up" in session("service", "install").stdout
        assert [("active", True)] == [(of["state"], of["is_enabled"]) for of in services(session).values()]
        assert "ready" == state_of("kept")
        session.sh("kept", "echo mine >~/mine; sync")
        pid = kill("kept")
        until_active(session, "kept", 1)
        assert pid != process.pid(Machine("kept"))
        assert "mine\n" == session.sh("kept", "cat ~/mine")
        assert (1, False) == tuple(session.json("status")["service"][key] for key in ("restarts", "gave_up"))
        session("halt")
        assert ("halted", "inactive") == (state_of("kept"), services(session)["kept"]["state"])
        session("service", "install")
        assert "ready" == state_of("kept")
    assert "halted" == state_of("kept")
    with user_systemd(kimbox, tmp_path / "user") as session:  # the next start of the host
        until_active(session, "kept", 0)
        assert "mine\n" == session.sh("kept", "cat ~/mine")
        session("service", "remove")
        assert ("halted", {}) == (state_of("kept"), services(session))
        assert [] == list((tmp_path / "user/config/systemd/user").glob("kimbox-box-*"))
    kimbox("destroy", "-y", "kept")


def test_a_pool_stays_up(kimbox: Kimbox, tmp_path: Path) -> None:
    """Clones start again after a crash and after a shutdown from inside, each as a new one. Their number can change."""
    kimbox.spec("pool", "memory: 512MiB\n")
    with user_systemd(kimbox, tmp_path / "user") as session:
        session("service", "install", "--count", "2")
        names = ["pool-1", "pool-2"]
        assert names == list(services(session))
        before = [session.sh(name, "cat /etc/machine-id; echo mine >~/mine") for name in names]
        kill("pool-1")
        session.sh("pool-2", "sudo systemctl poweroff --no-block", check=False)
        for name in names:
            until_active(session, name, 1)
        after = [session.sh(name, "cat /etc/machine-id; ls ~") for name in names]
        assert 4 == len({*before, *after})
        session("service", "install", "--count", "1")
        assert (["pool-1"], "halted") == (list(services(session)), state_of("pool-2"))
        session("destroy", "-y", "pool-1")
        assert {} == services(session)
    kimbox("destroy", "-y", "pool-2")


def test_a_timer_ends_a_lifetime(kimbox: Kimbox, tmp_path: Path) -> None:
    """No verb runs: the timer shuts the box down and saves it, and is removed when there is no lifetime any more."""
    kimbox.spec("mortal", f"lifetime: 60s\nstore: {tmp_path}/store\n")
    with user_systemd(kimbox, tmp_path / "user") as session:
        session("up")
        units = tmp_path / "user/config/systemd/user"
        assert ["service", "timer"] == sorted(path.suffix[1:] for path in units.glob("kimbox-expire-*"))

        def has_ended() -> bool:
            lifetime = read_life(Machine("mortal")).lifetime
            return bool(lifetime and lifetime.ended_at)

        until("the end of the lifetime", has_ended, every_s=PAUSE_S)
        assert "halted" == state_of("mortal")
        assert 1 == len(session.json("save", "--list", f"{tmp_path}/store")["saves"])
        session("destroy", "-y", "mortal")
        session("expire")
        assert [] == list(units.glob("kimbox-expire-*"))
