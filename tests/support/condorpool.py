"""A pool of HTCondor on this host: real daemons in a root of their own, on one port of 127.0.0.1.

The root is built once in a run (half a minute). The daemons are in a pid namespace whose first process dies with the
test, and they die with it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
from realkimbox import Kimbox, until
from roots import extracted, privileged
from servers import free_port

from kimbox import run

#: Packages of the root.
PACKAGES = (
    "condor", "minicondor", "condor-vm-gahp", "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "gawk",
    "qemu-system-x86", "qemu-utils", "seabios", "ipxe-qemu", "python3", "procps",
)  # fmt: skip

#: Makes the account of a user of the pool.
HOOK = '--customize-hook=chroot "$1" useradd --create-home --uid 5101 kim'


@attrs.frozen
class Pool:
    """A running pool. `share`: a folder of this host that the nodes see as /share."""

    root: Path
    share: Path
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def cached(self) -> list[str]:
        """The images that the node keeps."""
        return [path.name for path in self.root.glob("var/cache/kimbox/*/*.qcow2")]

    def kimbox(self, kimbox: Kimbox, *words: str | Path, check: bool = True, timeout_s: float = 600) -> run.Completed:
        """Runs a verb with a token of the pool."""
        done = run.run(
            [sys.executable, "-m", "kimbox", *map(str, words)],
            check=False,
            cwd=kimbox.folder,
            env={
                "KIMBOX_HOME": str(kimbox.home),
                "PYTHONPATH": os.pathsep.join(sys.path),
                "CONDOR_CONFIG": "ONLY_ENV",
                "_CONDOR_SEC_TOKEN_DIRECTORY": str(self.share / "tokens"),
                "_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS",
            },
            timeout_s=timeout_s,
        )
        assert done.ok or not check, f"{words}: {done.stdout}{done.stderr}{self.logs()}"
        return done

    def enter(self, *words: str, folder: str = "/", user: str = "kim", check: bool = True) -> run.Completed:
        """Runs a program beside the daemons, as a user of the pool."""
        pid = (self.share / "pid").read_text().strip()
        argv = [*(privileged() or []), "nsenter", "--target", pid, "--mount", "--pid", "chroot", f"--userspec={user}"]
        env = ["env", "-i", "-C", folder, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"HOME=/home/{user}"]
        return run.run([*argv, str(self.root), *env, *words], timeout_s=600, check=check)

    def submit(self, folder: Path) -> None:
        """Submits the files that `job submit --write` wrote below `share`. The pool's user then writes beside them."""
        for path in (folder, *folder.iterdir()):
            path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o444))
        self.enter("condor_submit", "job.sub", folder=f"/share/{folder.relative_to(self.share)}")

    def logs(self) -> str:
        """The ends of the daemons' logs, for a test that fails."""
        found = [*self.root.glob("var/log/condor/S*Log*")]
        return "\n".join(f"== {path.name}\n{run.tail(path.read_text(errors='replace'))}" for path in found)


def build(folder: Path) -> Path:
    """Builds the root, unless it is there."""
    return extracted(folder, PACKAGES, "--variant=minbase", HOOK)


@contextlib.contextmanager
def running(root: Path, share: Path, config: str = "") -> Iterator[Pool]:
    """Runs the daemons. `config`: configuration beside that of the script."""
    sudo = privileged()
    assert sudo is not None, "root, or sudo without a password, is required"
    share.mkdir(mode=0o755, parents=True, exist_ok=True)
    if config:
        (share / "config").write_text(config)
    port = free_port()
    script = Path(__file__).with_name("start-condor")
    argv = [*sudo, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "unshare", "--mount", "--pid", "--fork"]
    argv += ["--kill-child", "--propagation", "private", str(script), str(root), str(share), str(port)]
    pool = Pool(root, share, port)
    with run.background(argv) as daemons:
        until("the schedd", lambda: (share / "token").exists() or daemons.code() is not None, limit_s=60)
        assert (share / "token").exists(), f"{daemons.output()}{pool.logs()}"
        (share / "tokens").mkdir(mode=0o700)
        token = share / "tokens/kim"
        token.write_bytes((share / "token").read_bytes())
        token.chmod(0o600)
        yield pool
