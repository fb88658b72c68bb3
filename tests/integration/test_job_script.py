"""provisioners/job: what the script does in a guest, with stand-ins for the mount, for systemd and for the disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakeguest import FakeGuest, can_unshare
from waiting import until

from kimbox import paths
from kimbox.jobs.result import Report
from kimbox.run import run

pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine allows no mount namespace")

JOB = "/usr/lib/kimbox/job"
ID = "0123456789ab"

#: A major number of block devices for which the kernel has no driver: for local use (admin-guide/devices.txt).
LOCAL_DEVICE = 240

#: Stand-ins that write down how they were called. The script calls both of mount after the kernel has refused.
TOOLS = ("mount", "umount", "systemctl")


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    """A ready guest of a host that runs a job. Its third disk is that of the job."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    guest = FakeGuest(tmp_path / "guest")
    shutil.copytree(
        paths.provisioners_dir() / "job/root/usr/lib/kimbox", guest.path("/usr/lib/kimbox"), dirs_exist_ok=True
    )
    for name in TOOLS:
        tool = guest.path(f"/usr/local/sbin/{name}")
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >>/run/calls\n')
        tool.chmod(0o755)
    for disk, serial in {"vda": "", "vdb": "kimbox-delivery", "vdc": "kimbox-job"}.items():
        folder = guest.path(f"/sys/block/{disk}")
        folder.mkdir(parents=True)
        (folder / "serial").write_text(serial)
    credentials = guest.path("/run/credentials/@system")
    credentials.mkdir(parents=True)
    (credentials / "kimbox.job").write_text(f"{ID} 60")
    guest.path("/persistent/status.json").write_text('{"event":"ready","manifest":"abc"}\n')
    guest.path("/mnt").mkdir(exist_ok=True)
    program(guest, "echo output; echo error >&2; echo result >/mnt/user/output/file")
    return guest


def program(guest: FakeGuest, script: str, head: str = "#!/bin/sh") -> Path:
    """Writes the program of the job."""
    file = guest.path("/mnt/user/run-job")
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{head}\n{script}\n")
    file.chmod(0o755)
    return file


def set_constant(guest: FakeGuest, name: str, value: float) -> None:
    """Changes a constant of the script, or of its module."""
    found = 0
    for script in (guest.path(JOB), guest.path("/usr/lib/kimbox/jobprogram.pm")):
        new, count = re.subn(rf"^my \${name} = .*;$", f"my ${name} = {value};", script.read_text(), flags=re.MULTILINE)
        script.write_text(new)
        found += count
    assert 1 == found


def run_job(guest: FakeGuest) -> tuple[dict[str, Any], Report | None]:
    """Runs the script. Returns the last event, and the status on the disk."""
    done = guest.run(JOB)
    assert 0 == done.code, done.stderr
    status = guest.path("/mnt/user/run-job.status")
    events = guest.events()
    assert events
    return events[-1], Report.parse(status.read_bytes()) if status.exists() else None


def calls(guest: FakeGuest) -> list[str]:
    """The calls of stand-ins."""
    return guest.path("/run/calls").read_text().splitlines()


def test_a_job_that_is_ok(guest: FakeGuest) -> None:
    """Output and errors are in its log, both reports agree, and the disk is unmounted before the box powers off."""
    event, stored = run_job(guest)
    assert {
        "event": "job",
        "id": ID,
        "status": "ended",
        "code": "exited",
        "exit": 0,
        "result": "success",
    }.items() <= event.items()
    assert Report(ID, "ended", "exited", 0, "success", False) == stored  # what it used is counted in real guests
    assert "output\nerror\n" == guest.path("/mnt/user/run-job.log").read_text()
    assert "result\n" == guest.path("/mnt/user/output/file").read_text()
    assert not guest.path("/mnt/user/run-job-failure.log").exists()
    assert ["mount", "umount", "systemctl"] == [call.split()[0] for call in calls(guest)]
    assert "mount -t ext4 -o noatime /dev/vdc /mnt/user" == calls(guest)[0]
    assert "systemctl --no-block poweroff" == calls(guest)[-1]


def test_the_host_gets_the_output_to_its_end(guest: FakeGuest) -> None:
    """The last line, which is written just before the end, too. No process that sends it is left."""
    (guest.ports / "org.kimbox.job").touch()
    program(guest, "seq 20000; sleep 0.3; printf last")
    run_job(guest)
    log = guest.path("/mnt/user/run-job.log").read_bytes()
    assert log.endswith(b"20000\nlast")
    assert log == (guest.ports / "org.kimbox.job").read_bytes()
    assert not processes(guest)


def processes(guest: FakeGuest) -> list[str]:
    """The processes of the script."""
    found = run(["pgrep", "-f", f"^/usr/bin/perl {JOB}$"], check=False).stdout.split()
    return [pid for pid in found if Path("/proc", pid, "root").resolve() == guest.root]


def test_a_host_that_takes_no_output(guest: FakeGuest) -> None:
    """It changes no verdict, and the end is not delayed for long. The log has everything."""
    port = guest.ports / "org.kimbox.job"
    os.mkfifo(port)
    host = os.open(port, os.O_RDONLY | os.O_NONBLOCK)
    set_constant(guest, "REST_S", 1.5)
    guest.path("/run/credentials/@system/kimbox.job").write_text(f"{ID} 1")
    program(guest, "head -c 1000000 /dev/zero")
    event, _ = run_job(guest)
    os.close(host)
    assert ("exited", 0, "success") == (event["code"], event["exit"], event["result"])
    assert 1_000_000 == guest.path("/mnt/user/run-job.log").stat().st_size


def test_a_log_that_the_program_truncates(guest: FakeGuest) -> None:
    """The host gets what is written before and after."""
    (guest.ports / "org.kimbox.job").touch()
    wait = "until grep -q first /dev/virtio-ports/org.kimbox.job; do sleep 0.05; done"
    program(guest, f"echo first; {wait}; : >/mnt/user/run-job.log; sleep 0.5; echo x")
    run_job(guest)
    assert b"first\nx\n" == (guest.ports / "org.kimbox.job").read_bytes()


@pytest.mark.parametrize("name", ["run-job.status", "run-job.args"])
def test_a_pipe_in_place_of_a_file(guest: FakeGuest, name: str) -> None:
    """On the disk from the start, or made by the program. Nothing waits for its other end."""
    os.mkfifo(guest.path(f"/mnt/user/{name}"))
    program(guest, f"cd /mnt/user; rm -f {name}; mkfifo {name}")
    _, stored = run_job(guest)
    assert Report(ID, "ended", "exited", 0, "success", False) == stored


def test_the_program_has_four_variables_and_its_arguments(guest: FakeGuest) -> None:
    """Exactly those of the contract. Nothing in an argument is expanded."""
    program(guest, "/usr/bin/env | sort; pwd; printf '[%s]' \"$@\"")
    arguments = ["a b", "$HOME", "%n", "*", "", "é", "-x"]
    guest.path("/mnt/user/run-job.args").write_text("".join(f"{word}\n" for word in arguments))
    run_job(guest)
    expected = ["LANG=en_US.UTF-8", "PATH=/sbin:/usr/sbin:/bin:/usr/bin", "PWD=/", "USER=root", "/"]
    found = guest.path("/mnt/user/run-job.log").read_text().splitlines()
    assert [*expected, "".join(f"[{word}]" for word in arguments)] == found


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 7", ("exited", 7, "exit-code")),
        ("kill -9 $$", ("killed", 9, "signal")),
        ("exit 127", ("exited", 127, "exit-code")),
    ],
)
def test_a_job_that_fails(guest: FakeGuest, script: str, expected: tuple[str, int, str]) -> None:
    """The status or the signal is in both reports."""
    program(guest, script)
    event, stored = run_job(guest)
    assert expected == (event["code"], event["exit"], event["result"])
    assert stored is not None
    assert expected == (stored.code, stored.number, stored.result)


def test_a_job_that_takes_too_long(guest: FakeGuest) -> None:
    """It is ended with all of its processes, also if it ignores that, and its status is not a success."""
    guest.path("/run/credentials/@system/kimbox.job").write_text(f"{ID} 1")
    program(guest, "trap 'echo stopping; exit 0' TERM; sleep 987 & wait")
    event, stored = run_job(guest)
    assert ("exited", 0, "timeout") == (event["code"], event["exit"], event["result"])
    assert stored is not None
    assert "timeout" == stored.result
    assert "stopping\n" == guest.path("/mnt/user/run-job.log").read_text()
    assert not run(["pgrep", "-f", "^sleep 987$"], check=False).ok


def test_no_process_of_a_job_is_left(guest: FakeGuest) -> None:
    program(guest, "sleep 986 & sleep 986 & echo done")
    event, _ = run_job(guest)
    assert ("ended", 0, "success") == (event["status"], event["exit"], event["result"])
    assert not run(["pgrep", "-f", "^sleep 986$"], check=False).ok


@pytest.mark.parametrize("fault", ["missing", "folder", "not executable", "no interpreter"])
def test_a_program_that_cannot_be_run(guest: FakeGuest, fault: str) -> None:
    """run-job-failure.log has the reason, and both reports say that it cannot be run."""
    file = program(guest, "true")
    if fault == "not executable":
        file.chmod(0o644)
    elif fault == "no interpreter":
        program(guest, "true", "#!/no/such/program")
    else:
        file.unlink()
        if fault == "folder":
            file.mkdir()
    event, stored = run_job(guest)
    reason = guest.path("/mnt/user/run-job-failure.log").read_text()
    assert "run-job" in reason
    assert ("failed", "cannot-run", reason.strip()) == (event["status"], event["result"], event["reason"])
    assert stored is not None
    assert ("failed", "cannot-run") == (stored.state, stored.result)


@pytest.mark.parametrize("state", ["failed", "provisioning", "waiting"])
def test_a_box_that_is_not_ready(guest: FakeGuest, state: str) -> None:
    """It runs no job, reports that, and powers off."""
    guest.path("/persistent/status.json").write_text(f'{{"event":"{state}"}}\n')
    event, stored = run_job(guest)
    assert ("failed", "not-ready", None) == (event["status"], event["result"], stored)
    assert "systemctl --no-block poweroff" == calls(guest)[-1]


def test_a_missing_disk(guest: FakeGuest) -> None:
    """No other disk of kimbox is taken for it."""
    guest.path("/sys/block/vdc/serial").write_text("other")
    set_constant(guest, "WAIT_S", 0.2)
    event, _ = run_job(guest)
    assert ("failed", "no-disk") == (event["status"], event["result"])
    assert ["systemctl --no-block poweroff"] == calls(guest)


def test_remains_of_an_earlier_run(guest: FakeGuest) -> None:
    """Logs and status of another run of the same disk are replaced, also if they are links or folders."""
    guest.path("/mnt/user/run-job.status").symlink_to("/etc/passwd")
    guest.path("/mnt/user/run-job.log").mkdir()
    guest.path("/mnt/user/run-job-failure.log").write_text("old")
    _, stored = run_job(guest)
    assert stored is not None
    assert ("ended", 0) == (stored.state, stored.number)
    assert not guest.path("/mnt/user/run-job-failure.log").exists()
    assert "output" in guest.path("/mnt/user/run-job.log").read_text()


def test_a_restart_during_the_job(guest: FakeGuest) -> None:
    """The program does not run a second time."""
    guest.path("/mnt/user/run-job.status").write_text(json.dumps({"id": ID, "state": "started"}, separators=(",", ":")))
    event, _ = run_job(guest)
    assert ("failed", "restarted") == (event["status"], event["result"])
    assert not guest.path("/mnt/user/output").exists()


def test_a_box_without_kimbox_on_its_host(guest: FakeGuest) -> None:
    """It takes the second disk, has no time limit, and needs no manifest."""
    shutil.rmtree(guest.path("/run/credentials"))
    guest.path("/persistent/status.json").write_text('{"event":"waiting"}\n')
    for disk in ("vdb", "vdc"):
        guest.path(f"/sys/block/{disk}/serial").write_text("")
    try:
        os.mknod(guest.path("/dev/vdb"), stat.S_IFBLK | 0o600, os.makedev(LOCAL_DEVICE, 0))
    except PermissionError:
        pytest.skip("this user cannot make a block device to stand for the disk")
    _, stored = run_job(guest)
    assert Report("", "ended", "exited", 0, "success", False) == stored
    assert "mount -t ext4 -o noatime /dev/vdb /mnt/user" == calls(guest)[0]


def test_a_clone_gets_its_job_from_a_pipe(guest: FakeGuest) -> None:
    """The program of jobs waits in the template, if that has a disk for jobs. Before its job comes, it does nothing."""
    guest.path("/run/credentials/@system/kimbox.job").unlink()
    guest.path("/run/credentials/@system/kimbox.freeze").write_text("yes")
    serial = guest.path("/sys/block/vdc/serial")
    serial.write_text("other")
    assert 0 == guest.run(JOB).code
    serial.write_text("kimbox-job")
    pipe = guest.path("/run/kimbox/job.fifo")
    pipe.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(guest.run, JOB)
        until("it waits for a job", pipe.is_fifo)
        with pipe.open("w") as host:  # waits until the program reads
            assert not guest.path("/run/calls").exists()
            host.write("ba9876543210 infinity\n")
        assert 0 == waiting.result().code
    stored = Report.parse(guest.path("/mnt/user/run-job.status").read_bytes())
    assert stored is not None
    assert ("ba9876543210", "ended", 0) == (stored.id, stored.state, stored.number)


def test_a_guest_tells_that_it_is_alive(guest: FakeGuest) -> None:
    """While the program runs, and not before or after. The host learns from the first event that it will."""
    set_constant(guest, "BEAT_S", 0.1)
    program(guest, "until grep -q alive /dev/virtio-ports/org.kimbox.0; do sleep 0.05; done")
    assert 0 == guest.run(JOB).code
    events = [event for event in guest.events() if event["event"] == "job"]
    statuses = [event["status"] for event in events]
    assert ("started", "0.1") == (statuses[0], events[0]["beat"])
    assert {"alive"} == set(statuses[1:-1])
    assert "ended" == statuses[-1]


def test_the_host_gets_a_line_when_it_is_written(guest: FakeGuest) -> None:
    """The program waits until the host has its first line, which is short."""
    (guest.ports / "org.kimbox.job").touch()
    program(guest, "echo begun; until grep -q begun /dev/virtio-ports/org.kimbox.job; do sleep 0.05; done")
    guest.path("/run/credentials/@system/kimbox.job").write_text(f"{ID} 30")
    event, _ = run_job(guest)
    assert ("exited", 0, "success") == (event["code"], event["exit"], event["result"])


def set_clock(guest: FakeGuest, host_time: str) -> None:
    """Sets the clock of the hardware, which QEMU keeps at the time of the host."""
    clock = guest.path("/sys/class/rtc/rtc0/since_epoch")
    clock.parent.mkdir(parents=True)
    clock.write_text(f"{host_time}\n")


@pytest.mark.parametrize("off_s", [90, -90])
def test_a_wrong_clock(guest: FakeGuest, off_s: int) -> None:
    """The program does not run, and the verdict is that of the box, with the reason."""
    set_clock(guest, str(int(time.time()) - off_s))
    event, stored = run_job(guest)
    assert ("failed", "not-ready", None) == (event["status"], event["result"], stored)
    found = re.fullmatch("the clock of the box differs by (-?[0-9]+) s from that of the host", event["reason"])
    assert found
    assert off_s <= int(found[1]) <= off_s + 20
    assert ["systemctl --no-block poweroff"] == calls(guest)


@pytest.mark.parametrize("off_s", [30, -50, None])
def test_a_clock_that_is_right(guest: FakeGuest, off_s: int | None) -> None:
    """A minute is allowed. Without a clock of the hardware, nothing is known."""
    set_clock(guest, "none" if off_s is None else str(int(time.time()) - off_s))
    assert "ended" == run_job(guest)[0]["status"]


def test_a_full_root(guest: FakeGuest) -> None:
    """The program does not run: it could not write what it needs outside of its disk."""
    set_constant(guest, "MIN_FREE_BYTES", 1 << 60)
    event, stored = run_job(guest)
    assert ("failed", "not-ready", None) == (event["status"], event["result"], stored)
    free = os.statvfs(guest.root)
    found = re.fullmatch("the root of the box is full: ([0-9]+) KiB are free", event["reason"])
    assert found
    assert 0.5 < int(found[1]) * 1024 / (free.f_bavail * free.f_frsize) < 2  # other programs write there, too


def test_names_that_the_job_reaches(guest: FakeGuest) -> None:
    """They are in /etc/hosts, behind those that the box has."""
    hosts = guest.path("/etc/hosts")
    hosts.unlink()  # a link to that of this host
    hosts.write_text("127.0.0.1 localhost\n")
    guest.path("/run/credentials/@system/kimbox.job").write_text(f"{ID} 60 db=10.0.2.100,a.test=10.0.2.101")
    assert "ended" == run_job(guest)[0]["status"]
    assert "127.0.0.1 localhost\n10.0.2.100 db\n10.0.2.101 a.test\n" == hosts.read_text()
