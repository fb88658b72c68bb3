"""A node of a pool of HTCondor as an instance of a real Nova: it joins the pool over ssh, with a token from ssh."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import condorpool
import pytest
from condorpool import Pool
from realcloud import JOB_SPEC, NODE, RealCloud, node_spec
from realkimbox import PROGRAM_PAUSE_S, Kimbox, until

from kimbox import run

pytestmark = [pytest.mark.guest, pytest.mark.soak]

#: A job for the node alone. Its output comes back to the folder of the submission.
JOB = f"""\
executable = say
output = out
error = err
log = log
arguments = there
requirements = TARGET.Machine == "{NODE}"
queue
"""

#: The program of a job in a box.
PROGRAM = "#!/bin/sh\nmkdir -p /mnt/user/output\nhostname >/mnt/user/output/host\n"

#: Timeout of that job, in seconds. The box boots thirty times more slowly than on this host.
JOB_TIMEOUT_S = 3600.0

SAY = """\
#!/bin/sh
echo "$1: $(hostname), $(id -un)"
"""


@pytest.fixture(scope="module")
def pool(cloud: RealCloud, condor_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool in the network of the cloud, on 127.0.0.1: an instance reaches it through a tunnel of ssh alone."""
    with condorpool.running(condor_root, tmp_path_factory.mktemp("pool") / "share") as pool:
        yield pool


@pytest.fixture(scope="module")
def node(kimbox: Kimbox, pool: Pool) -> Iterator[Kimbox]:
    """The node, which is ready, but does not reach its pool yet."""
    token = (pool.share / "worker").read_text().strip()
    (kimbox.folder / "token").write_text(f"{token}\n")
    (kimbox.folder / "token").chmod(0o600)
    (kimbox.folder / "kimbox.yaml").write_text(node_spec(pool.port))
    kimbox("up", "--provider", "openstack")
    yield kimbox
    kimbox("destroy", "-y", NODE)


@contextlib.contextmanager
def tunnel(kimbox: Kimbox, port: int) -> Iterator[None]:
    """In the block the node reaches a port of this host at its own 127.0.0.1."""
    variables = [f"{name}={value}" for name, value in kimbox.environment.items()]
    words = ["ssh", NODE, "--", "-N", "-R", f"127.0.0.1:{port}:127.0.0.1:{port}"]
    with run.background(["env", "-C", kimbox.folder, *variables, sys.executable, "-m", "kimbox", *words]) as ssh:
        look = f"grep ':{port:04X} 00000000:0000 0A' /proc/net/tcp || true"  # 0A: it listens
        until("the tunnel", lambda: bool(kimbox.sh(NODE, look)) or ssh.code() is not None, every_s=PROGRAM_PAUSE_S)
        assert ssh.code() is None, ssh.output()
        yield


@pytest.fixture(scope="module")
def joined(node: Kimbox, pool: Pool) -> Iterator[Kimbox]:
    """The node with its pool, until it restarts. Without the tunnel, the pool could not give back its claims."""
    with tunnel(node, pool.port):
        yield node


def submit(pool: Pool, name: str) -> Path:
    """Submits the job from a new folder, and returns it."""
    folder = pool.share / name
    folder.mkdir()
    (folder / "say").write_text(SAY)
    (folder / "say").chmod(0o755)
    (folder / "job.sub").write_text(JOB)
    pool.submit(folder)
    return folder


def check(pool: Pool, folder: Path) -> None:
    """Waits for the job, and looks at what has come back."""
    pool.enter("condor_wait", "-wait", "300", "log", folder=f"/share/{folder.name}", check=False)
    assert "return value 0" in (folder / "log").read_text(), pool.logs()
    assert f"there: {NODE}, nobody\n" == (folder / "out").read_text()


def server(cloud: RealCloud) -> Any:
    """The instance, as Nova describes it to the administrator of the cloud."""
    [found] = [item for item in cloud.admin.compute.servers(all_projects=True) if f"kimbox-{NODE}-" in item.name]
    return found


def test_a_node_joins_over_ssh(joined: Kimbox, pool: Pool, cloud: RealCloud) -> None:
    """It runs a job of its owner. The cloud never has the token: neither in user data nor on the disk."""
    check(pool, submit(pool, "first"))
    token = (joined.folder / "token").read_bytes().strip()
    found = server(cloud)
    assert token not in base64.b64decode(found.user_data)
    (cloud.share / "token").write_bytes(token)
    joined.sh(NODE, "sync")
    disk = f"/var/lib/nova/instances/{found.id}/disk"
    look = f"qemu-img convert -U -O raw {disk} /tmp/raw; grep -cF -f /share/token /tmp/raw"
    assert "0\n" == cloud.enter("sh", "-c", look).stdout


@pytest.mark.usefixtures("joined")
def test_kimbox_submits_a_job(pool: Pool, home: Path, tmp_path: Path) -> None:
    """The node boots the box of the job, which is a guest in a guest, and its results come back through the tunnel."""
    here = Kimbox(home, tmp_path)
    (tmp_path / "kimbox.yaml").write_text(JOB_SPEC)
    (tmp_path / "job").mkdir()
    (tmp_path / "job/run-job").write_text(PROGRAM)
    (tmp_path / "job/run-job").chmod(0o755)
    there = ("--set", f'requirements=TARGET.Machine == "{NODE}"', "--pool", pool.address)
    pool.kimbox(here, "job", "submit", "job", "--output", "results", *there)
    pool.kimbox(here, "job", "watch", timeout_s=JOB_TIMEOUT_S)
    pool.kimbox(here, "job", "fetch")
    record = json.loads((tmp_path / "results/job.json").read_text())
    assert ("ok", NODE) == (record["verdict"], record["pool"]["host"]), record
    assert "jobs-job\n" == (tmp_path / "results/output/host").read_text()


def test_a_node_after_a_reboot(node: Kimbox, pool: Pool) -> None:
    """It has lost the token, which was in its memory. `kimbox reload` gives it another time, and it joins again."""
    node("reload", NODE)
    assert "ready" == node.json("status", NODE)["state"]
    with tunnel(node, pool.port):
        check(pool, submit(pool, "second"))
