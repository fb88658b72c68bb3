"""Jobs in real guests: the contract of CHTC's VM jobs, with kimbox on the host and without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Kimbox, until
from jsonschema import Draft202012Validator

from kimbox import files, paths, run
from kimbox.drivers import accelerator
from kimbox.image.store import images
from kimbox.jobs.disk import contents
from kimbox.jobs.result import Report
from kimbox.lock.lockfile import read_lock
from kimbox.machine.folder import machines

pytestmark = pytest.mark.guest

#: The program of a job that fails after it has written results. It leaves a process that would run for long.
PROGRAM = """\
#!/bin/sh
/usr/bin/env | sort
printf '[%s]' "$(pwd)" "$(id -u)" "$@"; echo
echo "an error" >&2
sleep 1000 &
mkdir -p /mnt/user/output/deep
cp /mnt/user/input/data /mnt/user/output/deep/copy
ln -s deep/copy /mnt/user/output/link
ln -s /etc/passwd /mnt/user/output/leads-out
echo lost >/mnt/user/not-a-result
busybox wget -q -T 2 -O /dev/null http://10.0.2.2:22 2>/dev/null || echo "no network"
exit 123
"""

ENVIRONMENT = ["LANG=en_US.UTF-8", "PATH=/sbin:/usr/sbin:/bin:/usr/bin", "PWD=/", "USER=root"]


@pytest.fixture(scope="module")
def kimbox(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Kimbox:
    """A folder with the spec of a box whose image runs jobs by itself."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp("job"))
    kimbox.spec("jobs", "job: true\n")
    return kimbox


def make_job(folder: Path, program: str) -> Path:
    """Makes a folder with the steps of the seed."""
    (folder / "input").mkdir(parents=True)
    (folder / "output").mkdir()
    (folder / "run-job").write_text(program)
    (folder / "run-job").chmod(0o755)
    (folder / "input/data").write_text("data\n")
    return folder


def test_a_job_comes_back(kimbox: Kimbox) -> None:
    """Variables, arguments, log, results, the true exit status and what it used; the machine is gone afterwards."""
    make_job(kimbox.folder / "job", PROGRAM)
    done = kimbox("--timeout", "5m", "job", "run", "job", "--output", "out", "--", "a b", "$HOME", check=False)
    assert 120 == done.code, done.stdout + done.stderr
    out = kimbox.folder / "out"
    record = json.loads((out / "job.json").read_text())
    Draft202012Validator(files.read_json(paths.schemas_dir() / "job.schema.json")).validate(record)
    assert ("failed", 123, None, 120) == tuple(record[key] for key in ("verdict", "exit", "signal", "status"))
    assert record["memory_peak_bytes"] > 100_000
    assert record["cpu_s"] > 0
    assert ["output/leads-out: a symbolic link that leads out of the disk"] == record["skipped"]
    assert [*ENVIRONMENT, "[/][0][a b][$HOME]", "an error", "no network"] == (
        out / "run-job.log"
    ).read_text().splitlines()
    assert all(f"| {line}" in done.stderr for line in (out / "run-job.log").read_text().splitlines())
    assert {"job.json", "run-job.log", "output"} == {path.name for path in out.iterdir()}
    assert ("data\n", Path("deep/copy")) == ((out / "output/link").read_text(), (out / "output/link").readlink())
    assert [] == [machine.name for machine in machines() if machine.name.startswith("jobs-job-")]


def test_a_box_for_jobs_needs_nothing_of_kimbox(kimbox: Kimbox) -> None:
    """Plain QEMU with the image and a disk of mke2fs as the second one: the program runs, and the box powers off."""
    folder = make_job(
        kimbox.folder / "seed", "#!/bin/sh\n/usr/bin/env | sort\ncat /mnt/user/input/data >/mnt/user/output/result\n"
    )
    disk, overlay, console = (kimbox.folder / name for name in ("seed.raw", "overlay.qcow2", "console"))
    run.run(["mke2fs", "-q", "-F", "-t", "ext2", "-d", folder, disk, "2M"])
    kimbox("build")
    image = images.find(read_lock(kimbox.folder / "kimbox.lock").image)
    assert image
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", image.format, overlay])
    argv = [
        "qemu-system-x86_64", *accelerator.find().arguments(), "-m", "1024", "-display", "none", "-nodefaults",
        "-drive", f"if=virtio,format=qcow2,file={overlay}", "-drive", f"if=virtio,format=raw,file={disk}",
        "-serial", f"file:{console}", "-no-reboot",
    ]  # fmt: skip
    with run.background(argv) as machine:
        until("the box powers off", lambda: machine.code() is not None)
        assert 0 == machine.code(), machine.output() + console.read_text(errors="replace")[-2000:]
    with contents.opened(disk) as found:
        stored = Report.parse(found.head(b"run-job.status", 4096) or b"")
        assert stored is not None
        assert ("ended", "exited", 0, "success") == (stored.state, stored.code, stored.number, stored.result)
        assert b"data\n" == found.head(b"output/result", 100)
        assert ENVIRONMENT == (found.head(b"run-job.log", 1000) or b"").decode().splitlines()
        assert found.is_clean
