"""Jobs in real guests: the contract of CHTC's VM jobs, with kimbox on the host and without it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import VERB_TIMEOUT_S, Kimbox, until
from jsonschema import Draft202012Validator

from kimbox import files, paths, run
from kimbox.actions.jobs import run as running
from kimbox.actions.jobs.request import RunRequest
from kimbox.drivers import accelerator
from kimbox.image.store import images
from kimbox.jobs import heartbeat
from kimbox.jobs.disk import contents
from kimbox.jobs.result import Outcome, Report
from kimbox.lock.lockfile import read_lock
from kimbox.machine.folder import Machine, machines
from kimbox.project.project import Project
from kimbox.spec.load import load_box

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
    assert ("template", None) == (record["start"], record["restarted"])
    assert ["output/leads-out: a symbolic link that leads out of the disk"] == record["skipped"]
    assert [*ENVIRONMENT, "[/][0][a b][$HOME]", "an error", "no network"] == (
        out / "run-job.log"
    ).read_text().splitlines()
    assert all(f"| {line}" in done.stderr for line in (out / "run-job.log").read_text().splitlines())
    assert {"job.json", "kimbox.lock", "run-job.log", "output"} == {path.name for path in out.iterdir()}
    assert ("data\n", Path("deep/copy")) == ((out / "output/link").read_text(), (out / "output/link").readlink())
    assert [] == left(kimbox)


def left(kimbox: Kimbox) -> list[str]:
    """What jobs have left: machines, their folders, and processes."""
    folder = paths.machines_dir()
    found = [path.name for path in folder.iterdir() if path.name.startswith(("jobs-", ".tmp-"))]
    return found + run.run(["pgrep", "-f", f"{kimbox.home}/machines/jobs-"], check=False).stdout.split()


def command(kimbox: Kimbox, *words: str | Path, dying: tuple[str, int] | None = None) -> list[str | Path]:
    """The command line of kimbox for `run.background`. `dying`: it kills itself, as dying.py has it."""
    program = ["-m", "kimbox"]
    if dying:
        program = [str(Path(__file__).with_name("dying.py")), dying[0], str(dying[1])]
    home = [f"KIMBOX_HOME={kimbox.home}", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
    # The tests may run in the background of a shell, which lets them ignore Ctrl-C.
    return ["env", "--default-signal=INT", "-C", str(kimbox.folder), *home, sys.executable, *program, *words]


def running_job() -> Machine | None:
    """The machine of a job whose program has started."""
    for machine in machines():
        events = [event for event in machine.boot_events() if event.name == "job"]
        if events and events[-1].text("status") in ("started", "alive"):
            return machine
    return None


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "job.json").read_text()))


def test_ctrl_c_keeps_what_the_job_has_written(kimbox: Kimbox) -> None:
    """The guest shuts down, the results that are there come back, and the verdict says that they are not all."""
    make_job(kimbox.folder / "long", "#!/bin/sh\necho half >/mnt/user/output/part\necho begun\nsleep 1000\n")
    with run.background(command(kimbox, "job", "run", "long", "--output", "interrupted")) as job:
        until("the program runs", lambda: running_job() is not None or job.code() is not None)
        until("its output arrives", lambda: "| begun" in job.output() or job.code() is not None)
        job.send_signal(signal.SIGINT)
        assert 130 == job.wait(120), job.output()
    out = kimbox.folder / "interrupted"
    assert ("interrupted", 130) == (record_of(out)["verdict"], record_of(out)["status"])
    assert ("half\n", "begun\n") == ((out / "output/part").read_text(), (out / "run-job.log").read_text())
    assert [] == left(kimbox)


def test_a_job_whose_guest_dies_starts_anew(kimbox: Kimbox) -> None:
    """Once. Its results are those of the second guest, and job.json has how the first one ended."""
    make_job(kimbox.folder / "again", "#!/bin/sh\nsleep 2\necho whole >/mnt/user/output/result\n")
    with run.background(command(kimbox, "job", "run", "again", "--output", "anew")) as job:
        until("the program runs", lambda: running_job() is not None or job.code() is not None)
        machine = running_job()
        assert machine, job.output()
        os.kill(int(machine.pid_file.read_text()), signal.SIGKILL)
        assert 0 == job.wait(300), job.output()
    record = record_of(kimbox.folder / "anew")
    assert "ok" == record["verdict"]
    assert "ended before it reported" in record["restarted"]["reason"]
    assert "whole\n" == (kimbox.folder / "anew/output/result").read_text()
    assert [] == left(kimbox)


def test_a_job_whose_kimbox_is_killed_is_recovered(kimbox: Kimbox) -> None:
    """Its guest goes on, and the next kimbox waits for its end. No other job gets its output."""
    make_job(kimbox.folder / "alone", "#!/bin/sh\nsleep 3\necho whole >/mnt/user/output/result\n")
    words = ("job", "run", "alone", "--output", "recovered")
    with run.background(command(kimbox, *words)) as job:
        until("the program runs", lambda: running_job() is not None or job.code() is not None)
        job.send_signal(signal.SIGKILL)
        assert -signal.SIGKILL == job.wait(60), job.output()
    assert "job-unfinished" == kimbox.json(*words, check=False)["code"]
    recovered = kimbox.json("job", "recover")["jobs"]
    record = record_of(kimbox.folder / "recovered")
    assert [("ok", record["id"])] == [(one["verdict"], one["id"]) for one in recovered]
    Draft202012Validator(files.read_json(paths.schemas_dir() / "job.schema.json")).validate(record)
    assert "whole\n" == (kimbox.folder / "recovered/output/result").read_text()
    assert [] == left(kimbox)


#: Programs that end their guest, or make it hang, and a part of the reason in the verdict.
DEADLY = {
    "panic": ("echo c >/proc/sysrq-trigger", "Kernel panic"),
    "hang": ("for group in user.slice init.scope system.slice; do echo 1 >/sys/fs/cgroup/$group/cgroup.freeze; done",
             "the guest hangs"),
}  # fmt: skip


@pytest.mark.parametrize("way", DEADLY)
def test_a_guest_that_is_ended_by_its_program(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """It is noticed without a time limit, tried once more, and never a success."""
    script, reason = DEADLY[way]
    folder = make_job(kimbox.folder / way, f"#!/bin/sh\n{script}\nsleep 1000\n")
    monkeypatch.setattr(heartbeat, "SILENCE_S", 20.0)
    done = running.run(
        RunRequest(Project(load_box(kimbox.folder / "kimbox.yaml")), folder, kimbox.folder / f"{way}-out")
    )
    assert (Outcome.GUEST_DIED, 122) == (done.verdict.outcome, done.verdict.status)
    assert reason in done.verdict.reason
    assert reason in done.record["restarted"]["reason"]
    assert done.record == record_of(done.output)
    assert [] == left(kimbox)


#: The job of sweeps: its item is its argument. One item fails.
SWEPT = """\
#!/bin/sh
echo "item $1"
echo "$1" >/mnt/user/output/result
[ "$1" != bad ]
"""

#: Numbers of jobs in a sweep: in every run, and in `script/test soak`.
SIZES = [5, pytest.param(1000, marks=pytest.mark.soak)]

#: When kimbox is killed in a sweep of six: at the opening of that file, the so many-th time. In every run, and in soak.
KILLS = [
    ("*/results.jsonl", 4),
    ("*/jobs-sweep-*/job.raw", 5),
    *(
        pytest.param(pattern, count, marks=pytest.mark.soak)
        for pattern, counts in {
            "*/results.jsonl": (1, 2, 3, 5, 6),
            "*/jobs-sweep-*/job.raw": (1, 3, 7, 9, 11),
            "*/.new-*/job.json": (1, 2, 3, 5, 6),
            "*/jobs-sweep-*/*machine.json*": (1, 4, 9, 16, 25),
        }.items()
        for count in counts
    ),
]


#: Timeout of a job in a sweep, in seconds, on a busy machine.
JOB_S = 5.0


@pytest.mark.parametrize("size", SIZES)
def test_a_sweep(kimbox: Kimbox, size: int) -> None:
    """One failed item stops no other. Done again, it does what is missing or, if asked, what failed."""
    if not (kimbox.folder / "swept").exists():
        make_job(kimbox.folder / "swept", SWEPT)
    items = [f"x={number}" for number in range(size - 2)] + ["bad", "a b/c"]
    text = "".join(f"{item}\n" for item in items)
    words = ("--json", "job", "run", "swept", "--each", "-", "-j", "2", "--output", f"sweep-{size}")
    done = kimbox(*words, check=False, input=text, timeout_s=VERB_TIMEOUT_S + size * JOB_S)
    assert 1 == done.code, done.stdout + done.stderr
    result = json.loads(done.stdout)["result"]
    assert (size, size - 1, 1, size) == tuple(result[key] for key in ("items", "ok", "not_ok", "ran"))
    out = kimbox.folder / f"sweep-{size}"
    for row in result["results"]:
        assert f"{row['item']}\n" == (out / row["folder"] / "output/result").read_text()
        assert (
            row["verdict"] == record_of(out / row["folder"])["verdict"] == ("failed" if row["item"] == "bad" else "ok")
        )
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert items == [line["item"] for line in lines]
    ids = {line["item"]: line["id"] for line in lines}
    assert 0 == json.loads(kimbox(*words, check=False, input=text).stdout)["result"]["ran"]
    again = json.loads(kimbox(*words, "--retry-failed", check=False, input=text + "more\n").stdout)["result"]
    assert (size + 1, 2) == (again["items"], again["ran"])
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {"bad"} == {line["item"] for line in lines if line["item"] in ids and ids[line["item"]] != line["id"]}
    assert [] == left(kimbox)
    assert [] == [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]


@pytest.mark.parametrize(("pattern", "count"), KILLS)
def test_a_sweep_that_is_killed(kimbox: Kimbox, pattern: str, count: int) -> None:
    """No finished result is lost or made again. Its guests end with it, and the next start removes what they left."""
    if not (kimbox.folder / "kept").exists():
        make_job(kimbox.folder / "kept", SWEPT)
    items = kimbox.folder / "items"
    items.write_text("".join(f"{number}\n" for number in range(6)))
    out = kimbox.folder / f"killed-{pattern.rpartition('/')[2].strip('*')}-{count}"
    words = ("job", "run", "kept", "--each", items, "-j", "2", "--output", out)
    with run.background(command(kimbox, *words, dying=(pattern, count))) as sweep:
        assert -signal.SIGKILL == sweep.wait(600), sweep.output()
    finished = {path.parent.name: record_of(path.parent)["id"] for path in out.glob("[0-9]*/job.json")}
    until(
        "its guests have ended", lambda: not run.run(["pgrep", "-f", f"{kimbox.home}/machines/jobs-"], check=False).ok
    )
    kimbox(*words)
    found = {path.parent.name: record_of(path.parent) for path in out.glob("[0-9]*/job.json")}
    assert {str(number) for number in range(6)} == set(found)
    assert {"ok"} == {record["verdict"] for record in found.values()}
    assert finished == {name: found[name]["id"] for name in finished}
    assert [] == left(kimbox)


#: Reads from the server that it may reach, and tries others. busybox has no proxy and no cache.
CLIENT = """\
#!/bin/sh
get() { busybox wget -q -T 5 -O - "$1" 2>/dev/null || echo "not $1"; }
get "http://web:$1/served"
get "http://10.0.2.2:$1/served"
get "http://web:22/"
timeout 5 getent hosts example.org || echo "no name server"
"""


def test_a_job_reaches_the_servers_that_are_named(kimbox: Kimbox) -> None:
    """By the name that they have in the guest, at their port: no other address, no other port, no name server."""
    make_job(kimbox.folder / "client", CLIENT)
    (kimbox.folder / "served").write_text("from the host\n")
    program = "import http.server as h; s = h.HTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler); "
    program += f"import os; os.chdir({str(kimbox.folder)!r}); print(s.server_port, flush=True); s.serve_forever()"
    with run.background([sys.executable, "-c", program]) as server:
        until("the server listens", lambda: server.output().endswith("\n"))
        port = server.output().split()[0]
        kimbox("job", "run", "client", "--network", f"web=127.0.0.1:{port}", "--", port)
    expected = ["from the host", f"not http://10.0.2.2:{port}/served", "not http://web:22/", "no name server"]
    assert expected == (kimbox.folder / "client.out/run-job.log").read_text().splitlines()


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
