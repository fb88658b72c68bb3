"""Faults in a pool of HTCondor: every job ends exactly once, with a right verdict. `script/test soak` runs it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from condorpool import Pool, build, running
from conftest import Kimbox, until

from kimbox import run
from kimbox.drivers import accelerator

pytestmark = [pytest.mark.guest, pytest.mark.soak]

#: Number of jobs.
SIZES = [12, 100]

#: The program. Its item says how it ends: with 0, with 7, or never.
PROGRAM = """\
#!/bin/sh
set -e
cd /mnt/user
printf '%s' "$1" >output/result
case $1 in
    fails) exit 7 ;;
    never) while :; do sleep 60; done ;;
esac
"""

#: Time limit of a program, in seconds. HTCondor runs the one that never ends three times.
TIMEOUT_S = 30

#: Timeout of a job, in seconds: two boots run at the same time.
JOB_S = 120

#: HTCondor waits so long for a node that has vanished, before a job starts again, in seconds.
LEASE_S = 60

#: Two nodes with one slot each. The second one has a name and a log of its own.
NODES = """\
NUM_CPUS = 1
DAEMON_LIST = $(DAEMON_LIST) BROKEN
BROKEN = /share/broken-node
BROKEN_ARGS = -f -local-name BROKEN
BROKEN.STARTD_NAME = broken
BROKEN.NETWORK_HOSTNAME = broken.kimbox.test
BROKEN.STARTD_LOG = $(LOG)/StartLog.broken
BROKEN.STARTD_ADDRESS_FILE = $(LOG)/.startd_address.broken
BROKEN.EXECUTE = /var/lib/condor/execute.broken
"""

#: Starts the second node, with images of its own. Its accelerator is broken: on a host where KVM works or is missing,
#: its /dev/kvm is a device that opens and then fails. Elsewhere it is that of the host, which may also hang.
BROKEN_NODE = """\
#!/bin/sh
install -d -m 1777 /var/cache/kimbox.broken
install -d -o condor -g condor /var/lib/condor/execute.broken
exec unshare --mount sh -c '
    mount --bind /var/cache/kimbox.broken /var/cache/kimbox
    %s
    exec condor_startd "$@"
' sh "$@"
"""
REPLACE_KVM = "touch /dev/kvm; mount --bind /dev/null /dev/kvm"

#: Patterns of the command lines of which a process each is killed once, in this order. QEMU is one of a job, no probe.
KILLED = ("^condor_starter ", "qemu-system.* -name kimbox-", "^condor_startd( |$)", "^condor_schedd( |$)")

#: An event of HTCondor's log in which a job has ended.
TERMINATED = re.compile(r"^005 \([0-9]+\.([0-9]+)\.", re.MULTILINE)


@pytest.fixture(scope="module")
def pool(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """The pool with two nodes."""
    root, share = build(home / "condor"), tmp_path_factory.mktemp("faults") / "share"
    is_broken = accelerator.KVM.exists() and accelerator.find().name != "kvm"
    share.mkdir(parents=True)
    (share / "broken-node").write_text(BROKEN_NODE % ("true" if is_broken else REPLACE_KVM))
    (share / "broken-node").chmod(0o755)
    with running(root, share, NODES) as pool:
        until("both nodes", lambda: 2 == len(words(pool, "condor_status", "-af", "Name")), every_s=1, limit_s=60)
        yield pool


def words(pool: Pool, *command: str) -> list[str]:
    """Runs a program of HTCondor as its administrator. Returns the words of its output; none if it fails."""
    return pool.enter(*command, user="root", check=False).stdout.split()


def ended(log: Path) -> Counter[int]:
    """Returns how many times each job has ended, by HTCondor's event log."""
    return Counter(int(process) for process in TERMINATED.findall(log.read_text()))


@pytest.mark.parametrize("count", SIZES)
def test_every_job_ends_once_after_faults(kimbox: Kimbox, pool: Pool, count: int) -> None:
    """None is lost, and afterwards the queue and the nodes are empty."""
    kimbox.spec("faulty", "job: true\n")
    job = kimbox.folder / "job"
    (job / "output").mkdir(parents=True)
    (job / "run-job").write_text(PROGRAM)
    (job / "run-job").chmod(0o755)
    items = ["never", *(f"item {number}" for number in range(count - 2)), "fails"]
    (kimbox.folder / "items").write_text("\n".join(items))
    folder = pool.share / f"jobs-{count}"
    settings = ("--timeout", f"{TIMEOUT_S}s")
    image = ("--image-url", f"file:///share/{folder.name}/image.qcow2", "--set", f"job_lease_duration={LEASE_S}")
    pool.kimbox(kimbox, *settings, "job", "submit", "job", "--each", "items", "--write", folder, *image)
    pool.submit(folder)

    watch = ["env", f"KIMBOX_HOME={kimbox.home}", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
    with run.background([*watch, sys.executable, "-m", "kimbox", "--json", "job", "watch", folder]) as watching:
        log = folder / "events.log"
        for number, program in enumerate(KILLED, start=1):
            enough = number * count // (len(KILLED) + 1)
            until(f"{enough} jobs", lambda enough=enough: enough <= len(ended(log)), limit_s=count * JOB_S)
            kill_one(pool, program)
        assert 0 == watching.wait(count * JOB_S), watching.output()
    fetched = json.loads(pool.kimbox(kimbox, "--json", "job", "fetch", folder, check=False).stdout)["result"]
    check_results(kimbox, items, fetched)
    assert Counter(range(count)) == ended(log)
    check_empty(pool)


def kill_one(pool: Pool, pattern: str) -> None:
    """Kills the newest process of a pattern, as soon as there is one: the oldest ones are those of the endless job."""
    script = f"pid=$(pgrep --newest --full '{pattern}' --ignore-ancestors) && kill -KILL $pid && echo $pid"
    until(f"a process {pattern}", lambda: bool(words(pool, "sh", "-c", script)), every_s=0.2, limit_s=JOB_S)


def check_results(kimbox: Kimbox, items: list[str], fetched: dict[str, Any]) -> None:
    """Each item has one verdict and the right results; what was killed ran again."""
    rows = {row["item"]: row for row in fetched["results"]}
    assert sorted(items) == sorted(row["item"] for row in fetched["results"])
    verdicts = {item: {"never": "timeout", "fails": "failed"}.get(item, "ok") for item in items}
    assert verdicts == {item: row["verdict"] for item, row in rows.items()}
    starts = {}
    for item, row in rows.items():
        folder = kimbox.folder / "job.out" / row["folder"]
        assert item == (folder / "output/result").read_text()
        starts[item] = json.loads((folder / "job.json").read_text())["pool"]["starts"]
    assert starts["never"] >= 3
    assert sum(starts.values()) > len(items) + 2, starts


def check_empty(pool: Pool) -> None:
    """Nothing runs, waits or remains on a node."""
    assert [] == words(pool, "condor_q", "-allusers", "-af", "ClusterId")
    processes = "pgrep -l 'qemu-system|condor_starter|condor_shadow|python'"
    script = f"{processes}; ls -A /var/lib/condor/execute /var/lib/condor/execute.broken | grep -v ':$'"
    until("empty nodes", lambda: [] == words(pool, "sh", "-c", script), every_s=1, limit_s=120)
    free = ["Unclaimed", "Unclaimed"]
    until("free nodes", lambda: free == words(pool, "condor_status", "-af", "State"), every_s=1, limit_s=120)


#: Stands for the runner: it fails at once on the second node, and needs a while on the other one.
RUNNER = """\
#!/bin/sh
: >results.raw
case $PWD in *execute.broken*) exit 125 ;; esac
sleep 6
"""


def test_a_node_that_fails_at_once_takes_no_job_twice(kimbox: Kimbox, pool: Pool) -> None:
    """It is free first after each failure. Each job still ends on the other node, and none has used up its starts."""
    kimbox.spec("faulty", "job: true\n")
    (kimbox.folder / "job").mkdir()
    (kimbox.folder / "job/run-job").write_text(PROGRAM)
    (kimbox.folder / "job/run-job").chmod(0o755)
    (kimbox.folder / "items").write_text("\n".join(map(str, range(5))))
    folder = pool.share / "elsewhere"
    words = ("job", "submit", "job", "--each", "items", "--write", folder)
    pool.kimbox(kimbox, *words, "--image-url", "file:///share/image.qcow2")
    (folder / "runner.pyz").write_text(RUNNER)
    pool.submit(folder)
    jobs = json.loads(pool.kimbox(kimbox, "--json", "job", "watch", folder).stdout)["result"]["jobs"]
    log = (folder / "events.log").read_text()
    assert 5 == len(re.findall(r"return value 0", log)), log
    assert {1, 2} == {job["starts"] for job in jobs}
    check_empty(pool)
