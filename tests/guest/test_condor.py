"""Jobs in a real pool of HTCondor: the same folder, box and lock as `kimbox job run`, with equal results."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from condorpool import Pool, build, running
from conftest import Kimbox
from jsonschema import Draft202012Validator

from kimbox import run
from kimbox.jobs.record import record_schema

pytestmark = pytest.mark.guest

#: The program: results with a folder, a link and a program, and an end that depends on the item.
PROGRAM = """\
#!/bin/sh
cd /mnt/user
mkdir -p output/deep
sort input/numbers >output/sorted
printf '[%s]' "$@" >output/deep/arguments
ln -s deep/arguments output/link
install -m 0755 run-job output/program
echo "ran with $*"
case $2 in *fails*) exit 7 ;; esac
"""

#: The items. HTCondor gives a meaning to each of their special characters.
ITEMS = ('it\'s "quoted", $(Process) %x', "fails")

#: Keys of job.json that do not depend on where a job runs.
EQUAL = ("arguments", "box", "commits", "folder", "folder_name", "image", "input", "kimbox", "lock", "manifest",
         "output", "exit", "verdict", "status", "settings")  # fmt: skip


@pytest.fixture(scope="module")
def kimbox(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Kimbox:
    """A folder with the spec of a small box, and a job."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp("condor"))
    kimbox.spec("jobs", "job: true\n")
    job = kimbox.folder / "job"
    (job / "input").mkdir(parents=True)
    (job / "run-job").write_text(PROGRAM)
    (job / "run-job").chmod(0o755)
    (job / "input/numbers").write_text("3\n1\n2\n")
    (kimbox.folder / "items").write_text("\n".join(ITEMS))
    return kimbox


@pytest.fixture(scope="module")
def pool(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """The pool. Its daemons end with the tests of this file."""
    with running(build(home / "condor"), tmp_path_factory.mktemp("pool") / "share") as pool:
        yield pool


def answer(done: run.Completed) -> dict[str, Any]:
    """The result in the output of `--json`."""
    return dict(json.loads(done.stdout)["result"])


def record_of(folder: Path) -> dict[str, Any]:
    record = dict(json.loads((folder / "job.json").read_text()))
    Draft202012Validator(record_schema()).validate(record)
    return record


def test_a_failure_of_the_infrastructure_is_tried_again(kimbox: Kimbox, pool: Pool) -> None:
    """A node that cannot get the image ends with 125: HTCondor starts the job three times, and the verdict says why.

    It is the first test: afterwards the node has the image.
    """
    words = ("job", "submit", "job", "--output", "no-image", "--pool", pool.address)
    pool.kimbox(kimbox, *words, "--image-url", "file:///share/missing.qcow2")
    (job,) = answer(pool.kimbox(kimbox, "--json", "job", "watch"))["jobs"]
    assert ("done", 3) == (job["state"], job["starts"]), pool.logs()
    assert 125 == pool.kimbox(kimbox, "job", "fetch", check=False).code
    record = record_of(kimbox.folder / "no-image")
    assert "host" == record["verdict"]
    assert "missing.qcow2" in record["reason"]
    pool.kimbox(kimbox, "job", "remove")


def test_a_held_job_is_explained_and_released(kimbox: Kimbox, pool: Pool) -> None:
    """The reason is that of HTCondor, with what helps; the job is in the queue until it is removed."""
    words = ("job", "submit", "job", "--output", "held", "--pool", pool.address, "--image-url", "file:///share/x")
    policy = ("--set", "periodic_hold=NumJobStarts == 0", "--set", "requirements=false")
    cluster = answer(pool.kimbox(kimbox, "--json", *words, *policy))["cluster"]
    done = pool.kimbox(kimbox, "--json", "job", "watch", check=False)
    (job,) = answer(done)["jobs"]
    assert (1, "held", 3) == (done.code, job["state"], job["code"]), pool.logs()
    assert "periodic_hold" in job["reason"]
    assert 1 == answer(pool.kimbox(kimbox, "--json", "job", "release", str(cluster)))["released"]
    assert 5 == pool.kimbox(kimbox, "job", "fetch", "no-such-job", check=False).code
    pool.kimbox(kimbox, "job", "remove", str(cluster))
    assert not list((kimbox.home / "submissions").glob("*/submission.json"))


def test_a_pool_gives_the_results_of_this_host(kimbox: Kimbox, pool: Pool) -> None:
    """Equal digests; a failure of the program is final; the image travels once; nothing is left in the queue."""
    where, settings = ("--pool", pool.address), ("--timeout", "10m")
    pool.kimbox(kimbox, *settings, "job", "submit", "job", "--write", "written", "--output", "none")
    image = pool.share / "image.qcow2"
    shutil.copy(kimbox.folder / "written/image.qcow2", image)
    url = "file:///share/image.qcow2"
    words = ["job", "submit", "job", "--each", "items", "--output", "out", *where, "--image-url", url, "--", "--step"]
    cluster = answer(pool.kimbox(kimbox, "--json", *settings, *words))["cluster"]
    vm = ("job", "submit", "job", "--universe", "vm", "--output", "vm", *where, "--", "--step", ITEMS[0])
    vm_cluster = str(answer(pool.kimbox(kimbox, "--json", *vm))["cluster"])
    here = [sys.executable, "-m", "kimbox", *settings, "job", "run", "job", "--cold", "--output", "here", "--"]
    env = ["env", "-C", kimbox.folder, f"KIMBOX_HOME={kimbox.home}", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
    with run.background([*env, *here, "--step", ITEMS[0]]) as local:
        jobs = answer(pool.kimbox(kimbox, "--json", "job", "watch", str(cluster)))["jobs"]
        pool.kimbox(kimbox, "job", "watch", vm_cluster)
        assert 0 == local.wait(300), local.output()
    assert [("done", 1), ("done", 1)] == [(job["state"], job["starts"]) for job in jobs], pool.logs()
    fetched = answer(pool.kimbox(kimbox, "--json", "job", "fetch", str(cluster), check=False))
    assert [("ok", 0), ("failed", 7)] == [(row["verdict"], row["status"]) for row in fetched["results"]]
    there, failed = (record_of(kimbox.folder / "out" / row["folder"]) for row in fetched["results"])
    assert (7, ["--step", ITEMS[1]]) == (failed["exit"], failed["arguments"])
    local_record = record_of(kimbox.folder / "here")
    assert {key: local_record[key] for key in EQUAL} == {key: there[key] for key in EQUAL}
    pool.kimbox(kimbox, "job", "fetch", vm_cluster)
    in_vm = record_of(kimbox.folder / "vm")
    assert {key: local_record[key] for key in EQUAL if key != "settings"} == {
        key: in_vm[key] for key in EQUAL if key != "settings"
    }
    assert local_record["provenance"]["manifest"] == there["provenance"]["manifest"]
    assert cluster == there["pool"]["cluster"]
    folder = kimbox.folder / "out" / fetched["results"][0]["folder"]
    assert f"ran with --step {ITEMS[0]}\n" == (folder / "run-job.log").read_text()
    assert "deep/arguments" == str((folder / "output/link").readlink())
    assert 1 == len(pool.cached), pool.cached
    again = answer(pool.kimbox(kimbox, "--json", "job", "fetch", str(cluster), check=False))
    assert fetched == again
    for one in (str(cluster), vm_cluster):
        pool.kimbox(kimbox, "job", "remove", one)
    assert [] == answer(pool.kimbox(kimbox, "--json", "job", "list"))["submissions"]
