"""The shipped pipeline on this host: a real beanstalkd, a real sshd with the gateway's configuration, the two runners.

LAMMPS alone is a stand-in, which knows the values of the shipped jobs. Whatever runs can be killed and started again.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from makeserver import free_port
from waiting import until

from kimbox import paths
from kimbox.run import BackgroundProcess, background, run, which

PIPELINE = paths.boxes_dir() / "openkim-pipeline"
RUNNER = PIPELINE / "runner"
SETUP = PIPELINE / "setup"

#: `fail` and `hold`, files beside it, hold the names of lattices that fail or wait.
_LAMMPS = """#!/bin/sh
here={here}
read -r _ _ model _ <"$2"
lattice=$(awk '$1 == "lattice" {{ print $2 }}' "$2")
echo "$model $lattice" >>$here/begun
echo "a warning"
echo "LAMMPS (a stand-in)"
while grep -qsx "$lattice" $here/hold; do sleep 0.02; done
if grep -qsx "$lattice" $here/fail; then echo "ERROR: no such crystal"; exit 1; fi
awk -v model="$model" -v lattice="$lattice" '$1 == model && $2 == lattice {{ print "RESULT", $3, $4 }}' $here/values
"""

_SSHD = """\
ListenAddress 127.0.0.1:{port}
HostKey {here}/host
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


def module(name: str) -> ModuleType:
    """A module of the runner's. It leaves nothing in the folder, which ships."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(RUNNER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RUNNER))
        sys.dont_write_bytecode = before


beanstalk, jobs, results = module("beanstalk"), module("jobs"), module("results")


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


class Pipeline:
    """The programs of one pipeline, by name, and the folders that a director and a worker would have."""

    def __init__(self, here: Path, drop: Path, entries: list[dict[str, Any]]) -> None:
        self.here, self.drop, self.entries = here, drop, entries
        self.queue_port, self.ssh_port, self.link_port = free_port(), free_port(), free_port()
        self._running: dict[str, tuple[contextlib.ExitStack, BackgroundProcess]] = {}
        for name in ("state", "results", "queue"):
            (here / name).mkdir()
        self.incoming = drop / "incoming"
        self.incoming.mkdir()
        (here / "jobs.json").write_text(json.dumps(entries))
        (here / "box.json").write_text('{"name": "a-box"}')
        known = [(e["model"], e["lattice"], e["expected"]["a"], e["expected"]["e"]) for e in entries]
        (here / "values").write_text("".join(f"{m} {lattice} {a:.8f} {e:.8f}\n" for m, lattice, a, e in known))
        (here / "lammps").write_text(_LAMMPS.format(here=here))
        (here / "lammps").chmod(0o755)
        os.mkfifo(here / "told")
        self._make_gateway()

    def _make_gateway(self) -> None:
        here = self.here
        for key in ("host", "key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", here / key])
        (here / "known").write_text(f"kimbox-gateway {(here / 'host.pub').read_text()}")
        (here / "authorized").write_text((here / "key.pub").read_text())
        text = (SETUP / "gateway.conf").read_text().replace("Match User worker", f"Match User {getpass.getuser()}")
        text = text.replace("/etc/ssh/pipeline_worker_keys", f"{here}/authorized")
        text = text.replace(":11300", f":{self.queue_port}").replace("@USER@", "nobody-here")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it separates privileges
            text = text.replace("/persistent/pipeline/drop", str(self.drop))
        else:  # only root can lock somebody in
            text = text.replace("/persistent/pipeline/drop", "none").replace("-d /incoming", f"-d {self.incoming}")
        (here / "sshd_config").write_text(_SSHD.format(port=self.ssh_port, here=here) + text)
        text = (SETUP / "ssh_config").read_text().replace("User worker", f"User {getpass.getuser()}")
        text = text.replace("/run/pipeline/known_hosts", f"{here}/known")
        text = text.replace("/run/pipeline/id_ed25519", f"{here}/key")
        (here / "ssh_config").write_text(f"Host gateway\n\tHostName 127.0.0.1\n\tPort {self.ssh_port}\n{text}")

    # ---- what runs

    def start(self, name: str, *argv: str | Path) -> BackgroundProcess:
        """Starts a program under a name."""
        stack = contextlib.ExitStack()
        self._running[name] = stack, stack.enter_context(background(argv))
        return self._running[name][1]

    def kill(self, name: str) -> None:
        """Ends it as a cut of power would."""
        self._running.pop(name)[0].close()

    def running(self) -> list[str]:
        """The names of what was started and not killed."""
        return list(self._running)

    def said(self, name: str) -> str:
        """What it has printed since it was started."""
        return self._running[name][1].output()

    def stop(self) -> None:
        """Ends all of them."""
        for name in self.running():
            self.kill(name)

    def start_queue(self) -> None:
        """With the options that the shipped unit has."""
        unit = (SETUP / "systemd/pipeline-queue.service").read_text()
        command = next(line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
        command = command.replace("/persistent/pipeline/queue", f"{self.here}/queue").replace(
            "11300", str(self.queue_port)
        )
        self.start("queue", *command.replace("/usr/bin/", "").split())
        until("the queue listens", lambda: answers(self.queue_port))

    def start_gateway(self) -> None:
        """The sshd."""
        self.start("gateway", which("sshd") or "sshd", "-D", "-e", "-f", self.here / "sshd_config")
        until("sshd listens", lambda: answers(self.ssh_port))

    def start_link(self) -> None:
        """The way to the queue, through the gateway."""
        forward = f"127.0.0.1:{self.link_port}:127.0.0.1:{self.queue_port}"
        self.start("link", "ssh", "-F", self.here / "ssh_config", "-N", "-T", "-L", forward, "gateway")
        until("the link stands", lambda: answers(self.link_port))

    def start_director(self, *options: str) -> None:
        """The shipped program; a second instead of half a minute between two looks at the queue."""
        self.start(
            "director", sys.executable, "-B", RUNNER / "director", "--jobs", self.here / "jobs.json",
            "--queue", f"127.0.0.1:{self.queue_port}", "--state", self.here / "state",
            "--results", self.here / "results", "--incoming", self.incoming,
            "--uploader", getpass.getuser(), "--status", self.here / "told", "--look-every", "0.05",
            "--compare-every", "1", *options,
        )  # fmt: skip

    def start_worker(self, name: str = "worker", *options: str) -> None:
        """The shipped program, with another LAMMPS."""
        self.start(
            name, sys.executable, "-B", RUNNER / "worker", "--name", name, "--queue", f"127.0.0.1:{self.link_port}",
            "--sftp", f"sftp -F {self.here}/ssh_config -b - gateway", "--lammps", str(self.here / "lammps"),
            "--box", self.here / "box.json", "--touch-every", "0.2", "--retry-after", "1", *options,
        )  # fmt: skip

    def start_status(self) -> None:
        """The shipped program; what it would tell the host goes into the file `heard`."""
        tell = self.here / "event"
        tell.write_text(f'#!/bin/sh\necho "$*" >>{self.here}/heard\n')
        tell.chmod(0o755)
        self.start("status", SETUP / "pipeline-status", self.here / "told", tell, "0")

    def start_all(self, *options: str) -> None:
        """A site with one worker; the options are the director's."""
        self.start_status()
        self.start_queue()
        self.start_gateway()
        self.start_director(*options)
        self.start_link()
        self.start_worker()

    # ---- what came of it

    def begun(self) -> list[str]:
        """What the stand-in for LAMMPS was asked, in order."""
        with contextlib.suppress(FileNotFoundError):
            return (self.here / "begun").read_text().splitlines()
        return []

    def heard(self) -> list[str]:
        """What the host was told, in order."""
        with contextlib.suppress(FileNotFoundError):
            return (self.here / "heard").read_text().splitlines()
        return []

    def told(self) -> str:
        """What the host heard last."""
        return (self.heard() or [""])[-1]

    def results(self, folder: str = "results") -> dict[str, dict[str, Any]]:
        """What there is, by the names of files without their endings."""
        return {path.stem: json.loads(path.read_text()) for path in sorted((self.here / folder).glob("*.json"))}

    def duplicates(self) -> dict[str, dict[str, Any]]:
        """The same of those that do not count."""
        return self.results("results/duplicates")

    def queued(self) -> int:
        """How many of the jobs are in the queue, whoever holds them and even if buried."""
        ids = set(module("store").Ledger(self.here / "state/ledger").ids.values())
        with beanstalk.Queue(("127.0.0.1", self.queue_port), jobs.TUBE) as queue:
            return sum(queue.peek(number) is not None for number in ids)


@contextlib.contextmanager
def pipeline(here: Path, entries: list[dict[str, Any]]) -> Iterator[Pipeline]:
    """A pipeline of which nothing runs yet."""
    for program in ("beanstalkd", "sshd", "sftp"):
        if not which(program):
            pytest.skip(f"there is no {program}")
    # sshd locks nobody into a folder that lies in one that others can write to, as /tmp is.
    drop = Path(tempfile.mkdtemp(prefix="kimbox-test-", dir="/run" if os.getuid() == 0 else here))
    drop.chmod(0o755)
    made = Pipeline(here, drop, entries)
    try:
        yield made
    finally:
        for name in made.running():
            print(f"---- {name}\n{made.said(name)}")  # pytest shows it where a test failed
        made.stop()
        (here / "hold").unlink(missing_ok=True)  # a stand-in whose worker was killed may still wait
        shutil.rmtree(drop, ignore_errors=True)  # a child of sshd may just be ending in it
