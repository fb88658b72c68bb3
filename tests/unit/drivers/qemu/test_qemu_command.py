"""The command line of QEMU, and the process that kimbox starts with it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import makemachine
import pytest
from refused import refused

from kimbox import run
from kimbox.drivers.accelerator import KVM_WORKS, Accelerator
from kimbox.drivers.qemu import disk, process, qmp
from kimbox.drivers.qemu.command import Invocation, command, credentials
from kimbox.errors import GuestError
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.machine.folder import Machine
from kimbox.spec.model import Scratch

TCG = Accelerator("tcg", "max", "there is no KVM")


@pytest.fixture(params=["plain", "a folder, with commas,,and = signs"])
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Machine:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / request.param))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / request.param / "run"))
    return makemachine.make_machine()


def invoked(machine: Machine, accelerator: Accelerator = KVM_WORKS, *, resume: bool = False) -> Invocation:
    return Invocation(
        machine, machine.record(), 2, 1 << 30, accelerator, saved_state=disk.SUSPENDED_TAG if resume else None
    )


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def options(value: str) -> dict[str, str]:
    """Reads key=value,key=value as QEMU does (util/keyval.c): a comma in a value is doubled."""
    words = [word.replace("\0", ",") for word in value.replace(",,", "\0").split(",")]
    return {key if found else "": value if found else key for key, found, value in (w.partition("=") for w in words)}


def test_paths_reach_qemu_unchanged(machine: Machine) -> None:
    """With any name of the folder, QEMU opens the files in it and no others."""
    arguments = command(invoked(machine))
    drive = options(values(arguments, "-drive")[0])
    assert str(machine.disk) == drive["file"]
    assert ("qcow2", "unmap", "none") == (drive["format"], drive["discard"], drive["if"])
    ports = {c["id"]: (c[""], c["path"], c.get("append")) for c in map(options, values(arguments, "-chardev"))}
    assert {
        "serial0": ("file", str(machine.serial_log), "on"),
        "events": ("file", str(machine.events_file), "on"),
        "log": ("file", str(machine.provision_log), "on"),
        "audit": ("file", str(machine.audit_log), "on"),
        "qmp": ("socket", "qmp.sock", None),
    } == ports
    assert ["chardev=qmp,mode=control"] == values(arguments, "-mon")
    assert [str(machine.pid_file)] == values(arguments, "-pidfile")


def test_the_disk_with_a_delivery(machine: Machine) -> None:
    """It is read-only, has a serial number and a fixed address, and is described. Resumed, an empty one replaces it."""
    plain = command(invoked(machine))
    assert "delivery0" not in "\n".join(plain)
    offered = DeliveryDisk("a" * 64, 10240, "b" * 64, "c" * 32)
    machine.write_record(attrs.evolve(machine.record(), delivery_disk=True))
    machine.delivery.write_bytes(bytes(10240))
    arguments = command(attrs.evolve(invoked(machine), delivery=offered))
    drive = options(values(arguments, "-drive")[-1])
    assert (str(machine.delivery), "raw", "on") == (drive["file"], drive["format"], drive["read-only"])
    device = options(values(arguments, "-device")[-1])
    assert ("kimbox-delivery", "0x1e", "delivery0") == (device["serial"], device["addr"], device["drive"])
    given = f"type=11,value=io.systemd.credential:kimbox.delivery={'a' * 64} 10240 {'b' * 64} {'c' * 32}"
    assert given in values(arguments, "-smbios")
    machine.delivery.unlink()
    resumed = command(invoked(machine, resume=True))
    assert "null-co" == options(values(resumed, "-drive")[-1])["driver"]
    assert "kimbox.delivery" not in "\n".join(resumed)


def test_the_port_that_shuts_the_guest_down(machine: Machine) -> None:
    """It is the last port, and a saved state without it resumes without it: QEMU refuses a state with other devices."""
    assert "org.kimbox.halt" not in "\n".join(command(invoked(machine)))
    machine.write_record(attrs.evolve(machine.record(), halt_port=True))
    arguments = command(invoked(machine))
    assert ("pipe", str(machine.halt_pipe)) == tuple(
        options(values(arguments, "-chardev")[-1])[key] for key in ("", "path")
    )
    assert "virtserialport,chardev=halt,name=org.kimbox.halt" == values(arguments, "-device")[-1]


def test_a_shutdown_is_requested_by_port_and_button(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request writes one line. Neither a missing or unread pipe nor a guest that fills it delays the button."""
    presses: list[str] = []
    monkeypatch.setattr(qmp, "execute", lambda _, name: presses.append(name))
    monkeypatch.setattr(process, "wait_until_gone", lambda *_: len(presses) > 3)

    def requested() -> list[str]:
        presses.clear()
        with makemachine.running(machine):
            assert process.power_off(machine, 60)
        return presses

    four = ["system_powerdown"] * 4
    assert four == requested()
    os.mkfifo(machine.halt_pipe)
    assert four == requested()
    reader = os.open(machine.halt_pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert four == requested()
        assert b"poweroff\n" * 4 == os.read(reader, 1 << 16)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(reader, bytes(4096))
        assert four == requested()
    finally:
        os.close(reader)


def test_it_holds_no_secret(machine: Machine) -> None:
    """All users of the host can read command lines, so the private key's path and content are not in it."""
    text = "\n".join(command(invoked(machine)))
    assert "b3BlbnNzaC1r" not in text
    assert "PRIVATE" not in text
    assert not re.search(re.escape(str(machine.key)) + r"(?!\.pub)", text)
    assert "ssh-ed25519 AAAA kimbox-tiny" in text


def test_forwards_listen_on_this_host_alone(machine: Machine) -> None:
    """Each is bound to 127.0.0.1; ssh is one of them."""
    network = values(command(invoked(machine)), "-netdev")[0]
    assert {"hostfwd=tcp:127.0.0.1:20022-:22", "hostfwd=tcp:127.0.0.1:20023-:8888"} == {
        word for word in network.split(",") if word.startswith("hostfwd")
    }


def test_the_sandbox_is_on(machine: Machine) -> None:
    """A guest that breaks out of the emulation cannot start programs or gain rights."""
    sandbox = options(values(command(invoked(machine)), "-sandbox")[0])
    assert {"": "on", "obsolete": "deny", "elevateprivileges": "deny", "spawn": "deny", "resourcecontrol": "deny"} == (
        sandbox
    )


def test_shape_and_accelerator(machine: Machine) -> None:
    """cpus, memory, accelerator and identity are those of the launch."""
    arguments = command(invoked(machine, TCG))
    assert (["2"], ["1024M"]) == (values(arguments, "-smp"), values(arguments, "-m"))
    assert ["tcg,thread=multi,tb-size=512"] == values(arguments, "-accel")
    assert ["max"] == values(arguments, "-cpu")
    assert [machine.record().uuid] == values(arguments, "-uuid")
    assert any(f"mac={machine.record().mac}" in device for device in values(arguments, "-device"))
    assert "-nodefaults" in arguments
    assert "-no-user-config" in arguments
    plain = command(invoked(machine))
    assert (["kvm"], ["host"]) == (values(plain, "-accel"), values(plain, "-cpu"))


def test_the_longest_name_is_not_cut(machine: Machine) -> None:
    """63 characters, as a spec may have."""
    name = "n" * 63
    long = attrs.evolve(invoked(machine), record=attrs.evolve(machine.record(), name=name))
    assert {"": f"kimbox-{name}", "process": f"kimbox-{name}"} == options(values(command(long), "-name")[0])


def test_credentials(machine: Machine) -> None:
    """Host name, network and public key reach the guest through SMBIOS unchanged."""
    sent = credentials(invoked(machine))
    assert {"hostname", "network", "authorized_key"} == set(sent)
    assert "10.0.2.15/24 10.0.2.2 10.0.2.3" == sent["network"]
    smbios = [options(value)["value"] for value in values(command(invoked(machine)), "-smbios")]
    assert {f"io.systemd.credential:kimbox.{name}={text}" for name, text in sent.items()} == set(smbios)


def test_scratch_space_is_a_disk_of_its_own(machine: Machine) -> None:
    """It has a serial number and follows the box's own disk. Without it there is one disk, and no credential."""
    plain = invoked(machine)
    arguments = command(attrs.evolve(plain, scratch=Scratch(1 << 30, "/mnt/scratch")))
    own, scratch = map(options, values(arguments, "-drive"))
    assert (str(machine.disk), str(machine.scratch)) == (own["file"], scratch["file"])
    assert ("qcow2", "unmap", "none") == (scratch["format"], scratch["discard"], scratch["if"])
    disks = [device for device in map(options, values(arguments, "-device")) if device[""] == "virtio-blk-pci"]
    assert [("disk0", None), ("scratch0", "kimbox-scratch")] == [(d["drive"], d.get("serial")) for d in disks]
    smbios = [options(value)["value"] for value in values(arguments, "-smbios")]
    assert "io.systemd.credential:kimbox.scratch=/mnt/scratch" in smbios
    assert 1 == len(values(command(plain), "-drive"))
    assert not any("scratch" in value for value in values(command(plain), "-smbios"))


def test_scratch_space_is_new_at_every_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot has an empty one, a resume that of the last run. Without scratch space in the spec, it is removed."""
    seen: list[bytes | None] = []

    def detach(*_: object, **__: object) -> Callable[[], None]:
        seen.append(machine.scratch.read_bytes() if machine.scratch.exists() else None)
        return lambda: None

    monkeypatch.setattr(process, "detach", detach)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: "running")
    machine.scratch.write_bytes(b"of a run that crashed")
    with_scratch = attrs.evolve(invoked(machine), scratch=Scratch(32 << 20, "/staging"))
    process.start(attrs.evolve(with_scratch, saved_state=disk.SUSPENDED_TAG))
    process.start(with_scratch)
    process.start(invoked(machine))
    resumed, booted, without = seen
    assert (b"of a run that crashed", None) == (resumed, without)
    assert booted is not None
    assert booted.startswith(b"QFI\xfb")
    assert 32 << 20 == int.from_bytes(booted[24:32], "big")  # the virtual size in a qcow2's header
    assert b"crashed" not in booted
    assert [] == list(machine.folder.glob("scratch*"))


def test_a_suspend_saves_every_disk(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is in the box's own disk. `-loadvm` later requires the state in each writable disk."""
    devices = [("disk0", "#block1"), ("scratch0", "#block2")]
    jobs: list[tuple[str, dict[str, object]]] = []

    def execute(_: Path, command: str, **__: object) -> object:
        return [{"device": d, "inserted": {"node-name": n}} for d, n in devices] if command == "query-block" else None

    monkeypatch.setattr(qmp, "execute", execute)
    monkeypatch.setattr(qmp, "run_job", lambda _, job, arguments, **__: jobs.append((job, arguments)))
    disk.suspend(machine)
    assert ["snapshot-delete", "snapshot-save"] == [job for job, _ in jobs]
    assert [["#block1", "#block2"]] * 2 == [arguments["devices"] for _, arguments in jobs]
    assert "#block1" == jobs[1][1]["vmstate"]
    devices.pop()
    disk.forget_suspended(machine)
    assert ["#block1"] == jobs[2][1]["devices"]
    devices.clear()
    with refused(GuestError, "unexpected-output", name="tiny"):
        disk.forget_suspended(machine)


@pytest.mark.parametrize("failing", ["stop", "snapshot-save"])
def test_a_guest_that_cannot_be_saved_runs_on(machine: Machine, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """If its processors do not stop in time, or its state cannot be written."""
    did: list[str] = []

    def fake_command(_: Path, command: str, *__: object, **___: object) -> object:
        did.append(command)
        if command == failing:
            raise qmp.QmpError("too slow", code="timeout")
        return [{"device": "disk0", "inserted": {"node-name": "#block1"}}] if command == "query-block" else None

    monkeypatch.setattr(qmp, "execute", fake_command)
    monkeypatch.setattr(qmp, "run_job", fake_command)
    with refused(qmp.QmpError, "timeout"):
        disk.suspend(machine)
    assert ["stop", "cont"] == [command for command in did if command in ("stop", "cont")]


def test_a_missing_key_is_an_error(machine: Machine) -> None:
    """Without its key a box cannot be reached. The hint has the commands that create a new machine."""
    file = machine.key.with_suffix(".pub")
    file.unlink()
    with refused(GuestError, "file-unreadable", name="tiny", path=str(file)) as caught:
        command(invoked(machine))
    assert "kimbox destroy tiny" in str(caught.value.hint)


def test_qemu_writes_no_core_dump(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core dump would contain the keys of a sealed box. The limit is that of the started program."""
    started: list[list[str]] = []
    monkeypatch.setattr(process, "detach", lambda argv, **_: started.append([*map(str, argv)]))
    monkeypatch.setattr(process, "require", lambda *_: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: "running")
    process.start(invoked(machine))
    ((*wrapper, program), arguments) = started[0][:4], started[0][4:]
    assert "qemu-system-x86_64" == program
    assert values(arguments, "-machine")[0].endswith(",dump-guest-core=off")
    limits = run.run([*wrapper, "sh", "-c", "ulimit -S -c; ulimit -H -c"]).stdout
    assert ["0", "0"] == limits.split()


def test_a_resumed_box_continues_its_logs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot starts new logs and keeps the last ones. A resume appends, because the guest repeats nothing."""
    monkeypatch.setattr(process, "detach", lambda *a, **k: lambda: None)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: "running")
    makemachine.tell(machine, makemachine.event("ready"))
    process.start(invoked(machine, resume=True))
    assert ["ready"] == [event.name for event in machine.boot_events()]
    assert not machine.halt_pipe.exists()
    machine.write_record(attrs.evolve(machine.record(), halt_port=True))
    assert ["kimbox-suspend"] == values(command(invoked(machine, resume=True)), "-loadvm")
    process.start(invoked(machine))
    assert () == machine.boot_events()
    assert machine.events_file.with_name("events.jsonl.1").read_text() == makemachine.event("ready")
    assert "-loadvm" not in command(invoked(machine))
    assert machine.halt_pipe.is_fifo()


def test_the_end_of_the_log_of_qemu_is_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any size of the log, its end is in the message, and the memory is bounded."""

    def detach(*_: object, **__: object) -> Callable[[], int]:
        machine.qemu_log.write_bytes(b"x" * (1 << 20) + b" no such device\n")
        return lambda: 1

    monkeypatch.setattr(process, "detach", detach)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    monkeypatch.setattr(process, "status", lambda _: None)
    with refused(GuestError, "qemu-failed", name="tiny") as caught:
        process.start(invoked(machine))
    assert caught.value.message.endswith(" no such device")
    assert len(caught.value.message) < 2 * process.LOG_END_BYTES


def test_a_second_process_is_refused_before_its_logs_are_touched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process still writes to them."""
    monkeypatch.setattr(process, "LOCK_WAIT_S", 0.0)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    makemachine.tell(machine, makemachine.event("ready"))
    with makemachine.running(machine), refused(GuestError, "wrong-state", name="tiny", state="running"):
        process.start(invoked(machine))
    assert ["ready"] == [event.name for event in machine.boot_events()]


def test_a_status_does_not_stop_a_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kimbox status` of another process holds the run lock, shared, for a moment."""
    with machine.run_lock.open("w") as shared:
        fcntl.flock(shared, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(shared, fcntl.LOCK_UN))
        with machine.run_lock.open("w") as exclusive:
            process._lock(exclusive.fileno(), machine)
            assert machine.running


def test_qemu_does_not_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its output is in the message, and the run lock is released."""

    def exited(arguments: list[str], *, log: Path, **_: object) -> object:
        log.write_text("qemu-system-x86_64: cannot set up guest memory\n")
        return lambda: 1

    monkeypatch.setattr(process, "detach", exited)
    monkeypatch.setattr(process, "require", lambda *a: "qemu-system-x86_64")
    with refused(GuestError, "qemu-failed", name="tiny") as caught:
        process.start(invoked(machine))
    assert re.search(r"exit status 1\n.*cannot set up guest memory", caught.value.message)
    assert not machine.running


def test_only_the_machines_own_process_is_ended(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid file with another process, or with invalid content, is ignored."""
    with makemachine.running(machine):
        for text in (str(os.getpid()), "", "-1", "0", "x" * 100, "999999999"):
            machine.pid_file.write_text(text)
            assert process.pid(machine) is None
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(process, "wait_until_gone", lambda *_: False)
    monkeypatch.setattr(process, "pid", lambda _: 999999999)
    monkeypatch.setattr(os, "kill", lambda *call: ended.append(call))
    with refused(GuestError, "timeout", name="tiny", path=str(machine.run_lock)):
        process.kill(machine)
    assert [(999999999, signal.SIGTERM), (999999999, signal.SIGKILL)] == ended


def test_a_qmp_socket_without_an_answer(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket does not exist, or it accepts and sends nothing."""
    with refused(qmp.QmpError, "qemu-unreachable", path=str(tmp_path / "no")):
        qmp.execute(tmp_path / "no", "query-status")
    far = tmp_path / ("long" * 50)  # unix(7) allows a path of 107 bytes
    far.mkdir()
    with socket.socket(socket.AF_UNIX) as mute:
        monkeypatch.chdir(far)
        mute.bind("mute")
        mute.listen()
        with refused(qmp.QmpError, "timeout", path=str(far / "mute")):
            qmp.execute(far / "mute", "query-status", timeout_s=0.2)
    assert process.status(machine) is None


def test_the_message_of_qemu_for_a_port_in_use(tmp_path: Path) -> None:
    """kimbox detects it by this message, which comes from a real QEMU."""
    with socket.create_server(("127.0.0.1", 0)) as rival:
        forward = f"user,id=net0,hostfwd=tcp:127.0.0.1:{rival.getsockname()[1]}-:22"
        argv = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-netdev", forward]
        done = run.run(argv, check=False, timeout_s=60)
    assert not done.ok
    assert process.NO_FORWARD in done.stderr
