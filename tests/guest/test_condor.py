"""Jobs in a real pool of HTCondor: the same folder, box and lock as `kimbox job run`, with equal results."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from condorpool import Pool, build, running
from conftest import Kimbox, state_of, until
from jsonschema import Draft202012Validator
from leaks import command_lines, found_on
from roots import write_program
from securesite import secure
from webfolder import Quiet, answering

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

    It is the first test: afterwards the node has the image. condor_submit submits the job on the host of the schedd,
    which writes its event log and the results beside the description.
    """
    folder = pool.share / "no-image"
    words = ("job", "submit", "job", "--output", "no-image", "--write", folder)
    there = ("--set", "requirements=TARGET.HasKimboxVM =!= false")  # at once on the only node
    pool.kimbox(kimbox, *words, *there, "--image-url", "file:///share/missing.qcow2")
    pool.submit(folder)
    (job,) = answer(pool.kimbox(kimbox, "--json", "job", "watch", folder))["jobs"]
    assert ("done", 3) == (job["state"], job["starts"]), pool.logs()
    assert 125 == pool.kimbox(kimbox, "job", "fetch", folder, check=False).code
    record = record_of(kimbox.folder / "no-image")
    assert "host" == record["verdict"]
    assert "missing.qcow2" in record["reason"]


def test_condor_submit_checks_a_job(kimbox: Kimbox, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """--dry-run passes its errors and warnings on, for both universes, and submits nothing."""
    write_program(pool.share / "bin", pool.root, "condor_submit")
    monkeypatch.setenv("PATH", f"{pool.share / 'bin'}:{os.environ['PATH']}")
    words = ("job", "submit", "job", "--each", "items", "--output", "dry", "--dry-run")
    done = pool.kimbox(kimbox, "--json", *words)
    assert {"checked": True} == answer(done)
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert [] == [line for line in warnings if "retry_request_memory" not in line]  # HTCondor 23 does not have it
    assert {"checked": True} == answer(pool.kimbox(kimbox, "--json", *words, "--universe", "vm"))
    refused = pool.kimbox(kimbox, *words, "--set", "requirements=TARGET.Memory > (", check=False)
    assert "Parse error" in refused.stderr
    assert 0 < refused.code
    assert [] == answer(pool.kimbox(kimbox, "--json", "job", "list"))["submissions"]


@pytest.mark.soak
def test_a_job_over_its_memory_is_held(kimbox: Kimbox, pool: Pool) -> None:
    """The hint is the option that raises the limit. No guest boots.

    The runner waits for its image from a server that accepts connections and never answers.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        image = ("--image-url", f"http://127.0.0.1:{server.getsockname()[1]}/image.qcow2")
        words = ("job", "submit", "job", "--pool", pool.address, "--output", "over", "--set", "request_memory=16M")
        cluster = str(answer(pool.kimbox(kimbox, "--json", *words, *image))["cluster"])
        done = pool.kimbox(kimbox, "--json", "job", "watch", cluster, check=False)
    (job,) = answer(done)["jobs"]
    assert (1, "held") == (done.code, job["state"]), pool.logs()
    assert "more memory" in job["reason"]
    assert "--memory" in job["hint"]
    pool.kimbox(kimbox, "job", "remove", cluster)


@attrs.frozen
class ImageSite:
    """A web server with the image of the box. `requests`: what it was asked for."""

    url: str
    requests: list[str]


@pytest.fixture
def image_site(kimbox: Kimbox, pool: Pool) -> Iterator[ImageSite]:
    """The image that `job submit --write` has written, at a URL."""
    pool.kimbox(kimbox, "job", "submit", "job", "--write", "written", "--output", "none")
    requests: list[str] = []

    class Handler(Quiet):
        def do_GET(self) -> None:
            requests.append(self.path)
            super().do_GET()

    with answering(functools.partial(Handler, directory=str(kimbox.folder / "written"))) as port:
        yield ImageSite(f"http://127.0.0.1:{port}/image.qcow2", requests)


def test_a_pool_gives_the_results_of_this_host(kimbox: Kimbox, pool: Pool, image_site: ImageSite) -> None:
    """Equal digests; a failure of the program is final; the image travels once; nothing is left in the queue."""
    where, settings = ("--pool", pool.address), ("--timeout", "10m")
    image = ("--image-url", image_site.url)
    words = ["job", "submit", "job", "--each", "items", "--output", "out", *where, *image, "--", "--step"]
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
    assert ["/image.qcow2"] == image_site.requests
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
  CONDOR_IDLE_S: "{idle_s}"
"""
SITE = """\
secure:
  site: kimbox.test
  roles:
    worker: {{outbound: [{{host: 10.0.2.2, port: {port}}}]}}
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


def write_worker(home: Path, folder: Path, pool: Pool, idle_s: int, more: str = "") -> Kimbox:
    """Writes the spec of a worker to a folder, with its token. `idle_s`: it powers off after so long without a job."""
    (folder / "kimbox.yaml").write_text(WORKER.format(port=pool.port, idle_s=idle_s) + more)
    (folder / "tunnel.yaml").write_text(TUNNEL.format(port=pool.port))
    (folder / "token").write_text(f"{token_of(pool)}\n")
    (folder / "token").chmod(0o600)
    return Kimbox(home, folder)


def token_of(pool: Pool) -> str:
    return (pool.share / "worker").read_text().strip()


def submit_catalogue(pool: Pool, name: str) -> Path:
    """Submits the jobs of the guide, from a new folder, which is returned."""
    folder = pool.share / name
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    image = paths.examples_dir() / "source-extractor/job/input/field.fits.fz"
    for observation in OBSERVATIONS:
        shutil.copy(image, folder / f"{observation}.fits.fz")
    (folder / "do_catalogue.bash").write_text(CATALOGUE)
    (folder / "do_catalogue.bash").chmod(0o755)
    (folder / "do_catalogue.sub").write_text(SUBMIT)
    pool.enter("condor_submit", "do_catalogue.sub", folder=f"/share/{name}")
    return folder


def check_catalogue(pool: Pool, folder: Path) -> None:
    """Waits for the jobs. Logs and results have come back to the folder of the submission."""
    for name in OBSERVATIONS:
        log = f"do_catalogue-{name}.log"
        pool.enter("condor_wait", "-wait", "300", log, folder=f"/share/{folder.name}", check=False)
        assert "return value 0" in (folder / log).read_text(), pool.logs()
        lines = (folder / f"{name}.cat").read_text().splitlines()
        assert SOURCES == len([line for line in lines if not line.startswith("#")])
        assert "Source Extractor" in (folder / f"do_catalogue-{name}.err").read_text()


@pytest.mark.soak
def test_a_worker_box_runs_the_jobs_of_its_owner(kimbox: Kimbox, pool: Pool, tmp_path: Path) -> None:
    """Logs and results come back to the folder of the submission; other users' jobs wait; an idle box powers off."""
    worker = write_worker(kimbox.home, tmp_path, pool, idle_s=90)
    (pool.share / "other").mkdir(mode=0o755)
    (pool.share / "other/other.sub").write_text(OTHER)
    pool.enter("condor_submit", "other.sub", folder="/share/other", user="daemon")
    folder = submit_catalogue(pool, "catalogue")
    worker("up")
    leaked = [line for line in command_lines() if token_of(pool).encode() in line]
    check_catalogue(pool, folder)
    waiting = pool.enter("condor_q", "-all", "-constraint", 'Owner == "daemon"', "-af", "JobStatus", "NumJobStarts")
    assert "1 0" == waiting.stdout.strip()
    until("the idle box to power off", lambda: "halted" == state_of("catalogue"), limit_s=300)
    assert [] == leaked
    assert set() == found_on(Machine("catalogue").disk, token_of(pool).encode())
    worker("destroy", "-y", "catalogue")


@pytest.mark.soak
def test_a_sealed_worker_box_runs_the_jobs_of_its_owner(kimbox: Kimbox, pool: Pool, tmp_path: Path) -> None:
    """Its firewall passes the connection to the pool alone, and nobody enters it."""
    worker = write_worker(kimbox.home, tmp_path, pool, idle_s=0, more=SITE.format(port=pool.port))
    worker("up")
    secure(worker, "no gateway asks for it", "catalogue", "--role", "worker", "--site", "kimbox.test",
           "--username", "kim")  # fmt: skip
    assert "sealed" == state_of("catalogue")
    check_catalogue(pool, submit_catalogue(pool, "sealed"))
    assert [] == [line for line in command_lines() if token_of(pool).encode() in line]
    # The tunnel of this test is a unit that was made while the box runs, and no server sets the clock.
    tunnel = {"net.tcp", "service.running", "service.transient", "service.time"}
    assert set(worker.json("audit", "catalogue", check=False)["breaches"]) <= tunnel
    assert 5 == worker("exec", "catalogue", "--", "true", check=False).code
    worker("destroy", "-y", "catalogue")
