"""The script that PAM runs for each login: it moves an ssh connection to a control group of its own."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from kimbox.paths import provisioners_dir
from kimbox.run import run

SCRIPT = provisioners_dir() / "ssh/root/usr/lib/kimbox/session"


def login(group: Path, service: str = "sshd") -> None:
    """Runs the script as the PAM of this process. A folder stands for the control group."""
    run(["sh", SCRIPT], env={"KIMBOX_CGROUP": str(group), "PAM_SERVICE": service})


def test_a_connection_has_a_group_of_its_own(tmp_path: Path) -> None:
    """With a limit of processes. Groups of connections that have ended are removed, others stay."""
    ended, used = tmp_path / "session-1", tmp_path / "session-2"
    for folder in (ended, used, tmp_path / "sshd"):
        folder.mkdir()
    (used / "cgroup.procs").write_text("2\n")
    login(tmp_path)
    own = tmp_path / f"session-{os.getpid()}"
    assert f"{os.getpid()}\n" == (own / "cgroup.procs").read_text()
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]  # half of the kernel's limit, if nothing has changed it
    if limit == resource.RLIM_INFINITY:
        limit = int(Path("/proc/sys/kernel/threads-max").read_text()) // 2
    assert limit * 2 // 3 == int((own / "pids.max").read_text())
    assert {own, used, tmp_path / "sshd", tmp_path / "cgroup.subtree_control"} == set(tmp_path.iterdir())


@pytest.mark.parametrize("service", ["su", "login"])
def test_only_sshd_has_groups(tmp_path: Path, service: str) -> None:
    """`su` in a session stays in the group of the session."""
    login(tmp_path, service)
    assert [] == [*tmp_path.iterdir()]


def test_a_login_does_not_depend_on_it(tmp_path: Path) -> None:
    """The script succeeds without such a group, and if nothing can be written."""
    login(tmp_path / "missing")
    (tmp_path / f"session-{os.getpid()}").touch()
    login(tmp_path)
