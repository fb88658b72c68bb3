"""The shipped pipeline on this host: a real beanstalkd, an sshd with the gateway's configuration, and the two runners.

LAMMPS is replaced by a script that prints the values of the shipped jobs. Each program can be killed and restarted.
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
import realsshd
from servers import free_port
from waiting import until

from kimbox import paths
from kimbox.run import BackgroundProcess, background, which

PIPELINE = paths.boxes_dir() / "openkim-pipeline"
RUNNER = PIPELINE / "runner"
SETUP = PIPELINE / "setup"

#: The script in place of LAMMPS. The files `fail` and `hold` beside it contain the names of lattices that fail or wait.
_LAMMPS = """#!/bin/sh
here={here}
read -r _ _ model _ <"$2"
lattice=$(awk '$1 == "lattice" {{ print $2 }}' "$2")
echo "$model $lattice" >>$here/computed
echo "a warning"
echo "LAMMPS (a stand-in)"
while grep -qsx "$lattice" $here/hold; do sleep 0.02; done
if grep -qsx "$lattice" $here/fail; then echo "ERROR: no such crystal"; exit 1; fi
awk -v model="$model" -v lattice="$lattice" '$1 == model && $2 == lattice {{ print "RESULT", $3, $4 }}' $here/values
"""


def module(name: str) -> ModuleType:
    """Imports a module of the runner. It writes no byte code into the folder, because the folder is shipped."""
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
    """Whether a program accepts connections on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


class Pipeline:
    """The programs of one pipeline, by name, and the folders of a director and a worker."""

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
        os.mkfifo(here / "status")
        self._make_gateway()

    def _make_gateway(self) -> None:
        here = self.here
        for key in ("host", "key"):
            realsshd.make_key(here / key)
        (here / "known").write_text(f"kimbox-gateway {(here / 'host.pub').read_text()}")
        (here / "authorized").write_text((here / "key.pub").read_text())
        own = realsshd.configuration(here, self.ssh_port)
        text = (SETUP / "gateway.conf").read_text().replace("Match User worker", f"Match User {getpass.getuser()}")
        text = text.replace("/etc/ssh/pipeline_worker_keys", f"{here}/authorized")
        text = text.replace(":11300", f":{self.queue_port}").replace("@USER@", "nobody-here")
        if os.getuid() == 0:
            text = text.replace("/persistent/pipeline/drop", str(self.drop))
        else:  # only root can use ChrootDirectory
            text = text.replace("/persistent/pipeline/drop", "none").replace("-d /incoming", f"-d {self.incoming}")
        (here / "sshd_config").write_text(f"{own}PidFile none\nSubsystem sftp internal-sftp\n{text}")
        text = (SETUP / "ssh_config").read_text().replace("User worker", f"User {getpass.getuser()}")
        text = text.replace("/run/pipeline/known_hosts", f"{here}/known")
        text = text.replace("/run/pipeline/id_ed25519", f"{here}/key")
        (here / "ssh_config").write_text(f"Host gateway\n\tHostName 127.0.0.1\n\tPort {self.ssh_port}\n{text}")

    # ---- programs

    def start(self, name: str, *argv: str | Path) -> BackgroundProcess:
        """Starts a program under a name."""
        stack = contextlib.ExitStack()
        self._running[name] = stack, stack.enter_context(background(argv))
        return self._running[name][1]

    def kill(self, name: str) -> None:
        """Kills a program, as a power failure does."""
        self._running.pop(name)[0].close()

    def running(self) -> list[str]:
        """The names of the programs that were started and not killed."""
        return list(self._running)

    def output(self, name: str) -> str:
        """The output of a program since its start."""
        return self._running[name][1].output()

    def stop(self) -> None:
        """Kills all programs."""
        for name in self.running():
            self.kill(name)

    def start_queue(self) -> None:
        """Starts beanstalkd with the options of the shipped unit."""
        unit = (SETUP / "systemd/pipeline-queue.service").read_text()
        command = next(line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
        command = command.replace("/persistent/pipeline/queue", f"{self.here}/queue").replace(
            "11300", str(self.queue_port)
        )
        self.start("queue", *command.replace("/usr/bin/", "").split())
        until("the queue listens", lambda: answers(self.queue_port))

    def start_gateway(self) -> None:
        """Starts the sshd of the gateway."""
        self.start("gateway", which("sshd") or "sshd", "-D", "-e", "-f", self.here / "sshd_config")
        until("sshd listens", lambda: answers(self.ssh_port))

    def start_link(self) -> None:
        """Starts the ssh connection that forwards a port to the queue through the gateway."""
        forward = f"127.0.0.1:{self.link_port}:127.0.0.1:{self.queue_port}"
        self.start("link", "ssh", "-F", self.here / "ssh_config", "-N", "-T", "-L", forward, "gateway")
        until("the link accepts connections", lambda: answers(self.link_port))

    def start_director(self, *options: str) -> None:
        """Starts the shipped program. It compares the queue with its jobs each second instead of each half minute."""
        self.start(
            "director", sys.executable, "-B", RUNNER / "director", "--jobs", self.here / "jobs.json",
            "--queue", f"127.0.0.1:{self.queue_port}", "--state", self.here / "state",
            "--results", self.here / "results", "--incoming", self.incoming,
            "--uploader", getpass.getuser(), "--status", self.here / "status", "--look-every", "0.05",
            "--compare-every", "1", *options,
        )  # fmt: skip

    def start_worker(self, name: str = "worker", *options: str) -> None:
        """Starts the shipped program with the replacement of LAMMPS. A worker that is killed leaves files in TMPDIR."""
        self.start(
            name, "env", f"TMPDIR={self.here}", sys.executable, "-B", RUNNER / "worker", "--name", name,
            "--queue", f"127.0.0.1:{self.link_port}",
            "--sftp", f"sftp -F {self.here}/ssh_config -b - gateway", "--lammps", str(self.here / "lammps"),
            "--box", self.here / "box.json", "--touch-every", "0.2", "--retry-after", "1", *options,
        )  # fmt: skip

    def start_status(self) -> None:
        """Starts the shipped program. The events for the host go into the file `sent`."""
        send = self.here / "event"
        send.write_text(f'#!/bin/sh\necho "$*" >>{self.here}/sent\n')
        send.chmod(0o755)
        self.start("status", SETUP / "pipeline-status", self.here / "status", send, "0")

    def start_all(self, *options: str) -> None:
        """Starts a site with one worker. The options are those of the director."""
        self.start_status()
        self.start_queue()
        self.start_gateway()
        self.start_director(*options)
        self.start_link()
        self.start_worker()

    # ---- results

    def computed(self) -> list[str]:
        """The model and lattice of each call of LAMMPS, in order."""
        with contextlib.suppress(FileNotFoundError):
            return (self.here / "computed").read_text().splitlines()
        return []

    def events(self) -> list[str]:
        """The events that were sent to the host, in order."""
        with contextlib.suppress(FileNotFoundError):
            return (self.here / "sent").read_text().splitlines()
        return []

    def last_event(self) -> str:
        """The last event that was sent to the host, or an empty text."""
        return (self.events() or [""])[-1]

    def results(self, folder: str = "results") -> dict[str, dict[str, Any]]:
        """The results in a folder, by file name without the suffix."""
        return {path.stem: json.loads(path.read_text()) for path in sorted((self.here / folder).glob("*.json"))}

    def duplicates(self) -> dict[str, dict[str, Any]]:
        """The results that were received for jobs that had one."""
        return self.results("results/duplicates")

    def queued(self) -> int:
        """The number of jobs in the queue, including reserved and buried ones."""
        ids = set(module("store").Ledger(self.here / "state/ledger").ids.values())
        with beanstalk.Queue(("127.0.0.1", self.queue_port), jobs.TUBE) as queue:
            return sum(queue.peek(number) is not None for number in ids)


@contextlib.contextmanager
def pipeline(here: Path, entries: list[dict[str, Any]]) -> Iterator[Pipeline]:
    """Provides a pipeline without running programs. Skips the test if a program is missing."""
    for program in ("beanstalkd", "sshd", "sftp"):
        if not which(program):
            pytest.skip(f"needs the program {program}")
    # ChrootDirectory requires that no other user can write to a parent of the folder, as in /tmp.
    drop = Path(tempfile.mkdtemp(prefix="kimbox-test-", dir="/run" if os.getuid() == 0 else here))
    drop.chmod(0o755)
    made = Pipeline(here, drop, entries)
    try:
        yield made
    finally:
        for name in made.running():
            print(f"---- {name}\n{made.output(name)}")  # pytest shows it if a test failed
        made.stop()
        (here / "hold").unlink(missing_ok=True)  # the script of a killed worker may still wait
        shutil.rmtree(drop, ignore_errors=True)  # a child of sshd may still run in it
