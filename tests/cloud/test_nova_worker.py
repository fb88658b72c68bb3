"""A node of a pool of HTCondor as an instance of a real Nova: it joins the pool over ssh, with a token from ssh."""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import condorpool
import pytest
from condorpool import Pool
from realcloud import NODE, RealCloud, node_spec
from realkimbox import PROGRAM_PAUSE_S, Kimbox, until

from kimbox import run

pytestmark = pytest.mark.guest

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


def test_a_node_joins_over_ssh(node: Kimbox, pool: Pool, cloud: RealCloud) -> None:
    """It runs a job of its owner. The cloud never has the token: neither in user data nor on the disk."""
    with tunnel(node, pool.port):
        check(pool, submit(pool, "first"))
    token = (node.folder / "token").read_bytes().strip()
    found = server(cloud)
    assert token not in base64.b64decode(found.user_data)
    (cloud.share / "token").write_bytes(token)
    node.sh(NODE, "sync")
    disk = f"/var/lib/nova/instances/{found.id}/disk"
    look = f"qemu-img convert -U -O raw {disk} /tmp/raw; grep -cF -f /share/token /tmp/raw"
    assert "0\n" == cloud.enter("sh", "-c", look).stdout


def test_a_node_after_a_reboot(node: Kimbox, pool: Pool) -> None:
    """It has lost the token, which was in its memory. `kimbox reload` gives it another time, and it joins again."""
    node("reload", NODE)
    assert "ready" == node.json("status", NODE)["state"]
    with tunnel(node, pool.port):
        check(pool, submit(pool, "second"))
