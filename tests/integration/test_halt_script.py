"""The script that shuts a box down when the host requests it on a port."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.drivers.qemu.command import HALT_PORT, HALT_WORD
from kimbox.paths import provisioners_dir
from kimbox.run import run

BASE = provisioners_dir() / "base/root/usr/lib"
SCRIPT = BASE / "kimbox/halt"

#: What systemd-logind does when the power button is pressed.
POWER_OFF = "--no-block --job-mode=replace-irreversibly start poweroff.target"


def requested(folder: Path, words: str) -> list[str]:
    """Runs the script with these lines from the host. Returns its calls of systemctl."""
    (folder / "systemctl").write_text('#!/bin/sh\necho "$*" >>"$KIMBOX_CALLS"\n')
    (folder / "systemctl").chmod(0o755)
    script = folder / "halt"
    script.write_text(SCRIPT.read_text().replace("\nPATH=", f"\nPATH={folder}:"))
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    run(["sh", script], input=words, env={"KIMBOX_CALLS": str(calls), "KIMBOX_INHIBITORS": str(folder / "inhibit")})
    return calls.read_text().splitlines() if calls.exists() else []


def test_the_word_shuts_the_box_down(tmp_path: Path) -> None:
    """Other lines do nothing. The word and the port are those of the host, and a later line is read, too."""
    assert [] == requested(tmp_path, "\nreboot\npoweroff now\n$(reboot)\n")
    assert [POWER_OFF] * 2 == requested(tmp_path, f"x\n{HALT_WORD}\n{HALT_WORD}\n")
    unit = (BASE / "systemd/system/kimbox-halt.service").read_text()
    assert f"StandardInput=file:/dev/virtio-ports/{HALT_PORT}\n" in unit
    assert f"ConditionPathExists=/dev/virtio-ports/{HALT_PORT}\n" in unit


@pytest.mark.parametrize(
    ("lock", "decides"),
    [
        ("WHAT=shutdown\nWHO=APT\nMODE=block\n", True),
        ("WHAT=idle:shutdown:sleep\nMODE=delay\n", True),
        ("WHAT=sleep\nWHO=shutdown\nMODE=block\n", False),
        ("WHAT=handle-power-key\n", False),
    ],
)
def test_logind_decides_where_a_program_holds_a_lock(tmp_path: Path, lock: str, decides: bool) -> None:
    """apt holds one while it installs packages: the shutdown waits for it, as with the power button."""
    (tmp_path / "inhibit").mkdir()
    (tmp_path / "inhibit/1").write_text(lock)
    assert ([] if decides else [POWER_OFF]) == requested(tmp_path, f"{HALT_WORD}\n")
