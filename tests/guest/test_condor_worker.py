"""A box that is an execute node of a pool of HTCondor, and runs the submit description of CANFAR's guide."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from condorpool import Pool, build, running
from conftest import Kimbox, state_of, until
from leaks import command_lines, found_on

from kimbox import paths
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

#: A user's own box, with the shipped worker as its last layer. The pool of the test has an address of this host only,
#: 127.0.0.1, so the box has a tunnel from its own 127.0.0.1.
SPEC = """\
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
PROGRAM = """\
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
IMAGES = ("1056215p", "1056216p")

#: A job of another user, for that node alone.
OTHER = """\
executable = /bin/true
transfer_executable = false
requirements = TARGET.Machine == "catalogue"
queue
"""

#: Number of sources in the image of examples/source-extractor.
SOURCES = 25


@pytest.fixture(scope="module")
def pool(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """The pool. Its daemons end with the tests of this file."""
    with running(build(home / "condor"), tmp_path_factory.mktemp("pool") / "share") as pool:
        yield pool


def test_a_worker_box_runs_the_jobs_of_its_owner(kimbox: Kimbox, pool: Pool) -> None:
    """Logs and results come back to the folder of the submission; other users' jobs wait; an idle box powers off."""
    token = (pool.share / "worker").read_text().strip()
    (kimbox.folder / "kimbox.yaml").write_text(SPEC.format(port=pool.port))
    (kimbox.folder / "tunnel.yaml").write_text(TUNNEL.format(port=pool.port))
    (kimbox.folder / "token").write_text(f"{token}\n")
    (kimbox.folder / "token").chmod(0o600)
    folder = pool.share / "catalogue"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    image = paths.examples_dir() / "source-extractor/job/input/field.fits.fz"
    for name in IMAGES:
        shutil.copy(image, folder / f"{name}.fits.fz")
    (folder / "do_catalogue.bash").write_text(PROGRAM)
    (folder / "do_catalogue.bash").chmod(0o755)
    (folder / "do_catalogue.sub").write_text(SUBMIT)
    (folder / "other.sub").write_text(OTHER)
    pool.enter("condor_submit", "other.sub", folder="/share/catalogue", user="daemon")
    pool.enter("condor_submit", "do_catalogue.sub", folder="/share/catalogue")
    kimbox("up")
    leaked = [line for line in command_lines() if token.encode() in line]
    for name in IMAGES:
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
    kimbox("destroy", "-y", "catalogue")
