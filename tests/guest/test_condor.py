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
from conftest import Kimbox, state_of, until
from jsonschema import Draft202012Validator
from leaks import command_lines, found_on

from kimbox import paths, run
from kimbox.jobs.record import record_schema
from kimbox.machine.folder import Machine

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


#: A user's own box, with the shipped worker as its last layer. The pool of the test has an address of this host only,
#: 127.0.0.1, so the box has a tunnel from its own 127.0.0.1.
WORKER = """\
kimbox: 1
name: catalogue
base: [minimal.yaml, tunnel.yaml, condor-worker.yaml]
image: {{packages: [source-extractor, libcfitsio-bin]}}
env:
  CONDOR_POOL: "127.0.0.1:{port}"
  CONDOR_OWNER: kim@kimbox.test
  CONDOR_TOKEN: {{file: token}}
  CONDOR_IDLE_S: "90"
"""
TUNNEL = """\
kimbox: 1
provision:
  - name: tunnel
    run: boot
    script: >-
      systemd-run --quiet --unit=pool --socket-property=ListenStream=127.0.0.1:{port}
      /usr/lib/systemd/systemd-socket-proxyd 10.0.2.2:{port}
"""

#: do_catalogue.bash and do_catalogue.sub of the guide. Images come with jobs, and catalogues go back with them, where
#: the guide has an archive and a store of the network. The pool of the test has another node, without the programs.
CATALOGUE = """\
#!/bin/bash
id=$1
funpack -D ${id}.fits.fz
cp /usr/share/source-extractor/default* .
echo 'NUMBER
MAG_AUTO
X_IMAGE
Y_IMAGE' > default.param
source-extractor ${id}.fits -CATALOG_NAME ${id}.cat
"""
SUBMIT = """\
executable = do_catalogue.bash

output = do_catalogue-$(arguments).out
error  = do_catalogue-$(arguments).err
log    = do_catalogue-$(arguments).log

transfer_input_files = $(arguments).fits.fz
requirements = TARGET.Machine == "catalogue"

queue arguments from (
  1056215p
  1056216p
)
"""
OBSERVATIONS = ("1056215p", "1056216p")

#: A job of another user, for that node alone.
OTHER = """\
executable = /bin/true
transfer_executable = false
requirements = TARGET.Machine == "catalogue"
queue
"""

#: Number of sources in the image of examples/source-extractor.
SOURCES = 25


def test_a_worker_box_runs_the_jobs_of_its_owner(kimbox: Kimbox, pool: Pool, tmp_path: Path) -> None:
    """Logs and results come back to the folder of the submission; other users' jobs wait; an idle box powers off."""
    worker = Kimbox(kimbox.home, tmp_path)
    token = (pool.share / "worker").read_text().strip()
    (worker.folder / "kimbox.yaml").write_text(WORKER.format(port=pool.port))
    (worker.folder / "tunnel.yaml").write_text(TUNNEL.format(port=pool.port))
    (worker.folder / "token").write_text(f"{token}\n")
    (worker.folder / "token").chmod(0o600)
    folder = pool.share / "catalogue"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    image = paths.examples_dir() / "source-extractor/job/input/field.fits.fz"
    for name in OBSERVATIONS:
        shutil.copy(image, folder / f"{name}.fits.fz")
    (folder / "do_catalogue.bash").write_text(CATALOGUE)
    (folder / "do_catalogue.bash").chmod(0o755)
    (folder / "do_catalogue.sub").write_text(SUBMIT)
    (folder / "other.sub").write_text(OTHER)
    pool.enter("condor_submit", "other.sub", folder="/share/catalogue", user="daemon")
    pool.enter("condor_submit", "do_catalogue.sub", folder="/share/catalogue")
    worker("up")
    leaked = [line for line in command_lines() if token.encode() in line]
    for name in OBSERVATIONS:
        log = f"do_catalogue-{name}.log"
        pool.enter("condor_wait", "-wait", "300", log, folder="/share/catalogue", check=False)
        assert "return value 0" in (folder / log).read_text(), pool.logs()
        lines = (folder / f"{name}.cat").read_text().splitlines()
        assert SOURCES == len([line for line in lines if not line.startswith("#")])
        assert "Source Extractor" in (folder / f"do_catalogue-{name}.err").read_text()
    waiting = pool.enter("condor_q", "-all", "-constraint", 'Owner == "daemon"', "-af", "JobStatus", "NumJobStarts")
    assert "1 0" == waiting.stdout.strip()
    until("the idle box to power off", lambda: "halted" == state_of("catalogue"), limit_s=300)
    assert [] == leaked
    assert set() == found_on(Machine("catalogue").disk, token.encode())
    worker("destroy", "-y", "catalogue")
