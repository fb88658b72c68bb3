"""Following a boot: in the folder of a machine, to which a thread appends events and output as a guest does."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path

import makebox
import makemachine
import pytest
import watched
from fakedriver import FakeDriver
from makemachine import NEXT_BOOT, event, tell
from refused import refused

from kimbox.actions import watch as watching
from kimbox.actions.watch import Watch, bounded, error_of_failure, longest_step_s, provisioning_limit_s
from kimbox.errors import GuestError
from kimbox.machine.folder import Machine
from kimbox.spec.model import Mode, Probe, Repository, Run, Step

MANIFEST = "a" * 64

machine, shown = watched.machine, watched.shown  # fixtures


def settled(watch: Watch) -> bool:
    return watch.last_event("ready") is not None or watch.last_event("failed") is not None


def while_writing(machine: Machine, pieces: list[tuple[Path, str]], wait: Callable[[], None]) -> None:
    """Runs `wait` while a thread appends each piece to its file."""

    def write() -> None:
        for path, text in pieces:
            with path.open("a") as file:
                file.write(text)

    thread = threading.Thread(target=write)
    with makemachine.running(machine):
        thread.start()
        try:
            wait()
        finally:
            thread.join()


def test_ready(machine: Machine, shown: io.StringIO) -> None:
    """Events and output arrive in pieces, cut at any byte. The user sees both."""
    key = event("hostkey", key=makemachine.HOST_KEY)
    ready = event("ready", manifest=MANIFEST)
    step = event("step", n=1, of=2, kind="provision", name="make", status="running")
    log_file = machine.provision_log
    pieces = [
        (machine.events_file, event("booting", mode="keep") + key[:10]),
        (log_file, "compi"),
        (machine.events_file, key[10:] + step),
        (log_file, "ling\r\n\x1b[31mred\n"),
        (machine.events_file, ready),
    ]
    watch = Watch(machine)
    while_writing(machine, pieces, lambda: watch.wait_until("waiting", settled))
    watch.poll()
    assert ["booting", "hostkey", "step", "ready"] == [e.name for e in watch.events]
    assert f"kimbox-tiny {makemachine.HOST_KEY}\n" == machine.known_hosts.read_text()
    assert machine.known_hosts.stat().st_mode & 0o777 == 0o600
    assert "step 1 of 2: provision make" in shown.getvalue()
    assert "| compiling\n" in shown.getvalue()
    assert "| \ufffd[31mred\n" in shown.getvalue()


def test_a_failure_has_step_exit_status_and_last_lines(machine: Machine) -> None:
    """The hint has the command that opens a shell in the box."""
    machine.provision_log.write_text("".join(f"line {n}\n" for n in range(50)) + "no \x1b[2Jspace\n")
    failed = event("failed", manifest=MANIFEST, kind="provision", name="make", exit=7, reason="it failed")
    tell(machine, event("booting", mode="keep"), failed)
    watch = Watch(machine)
    with makemachine.running(machine):
        watch.wait_until("waiting", settled)
    last = watch.last_event("failed")
    assert last
    error = error_of_failure(machine, last)
    first, *lines = error.message.splitlines()
    assert "tiny: provisioning failed at provision make (exit status 7): it failed" == first
    fields = {"name": "tiny", "step_kind": "provision", "step": "make", "exit": "7", "reason": "it failed"}
    assert ("provision-failed", fields) == (error.code, error.fields)
    assert 12 == len(lines)
    assert "    no \ufffd[2Jspace" == lines[-1]
    assert "kimbox ssh tiny" in str(error.hint)


@pytest.mark.parametrize(
    ("kind", "code", "message", "command"),
    [
        ("boot", "boot-failed", "tiny did not boot: it broke", "kimbox up --boot resnap tiny"),
        ("snapshot", "snapshot-full", "tiny lost its root: it broke", "kimbox up --boot resnap tiny"),
        (
            "seal",
            "sealing-failed",
            "tiny could not seal itself and has shut down: it broke",
            "kimbox secure --unseal tiny",
        ),
    ],
)
def test_a_guest_without_a_root(machine: Machine, kind: str, code: str, message: str, command: str) -> None:
    """Each kind of failure that ends the guest has its own code, and a hint with the command that helps."""
    tell(machine, event("failed", manifest="", kind=kind, name="root_snap", exit=1, reason="it broke"))
    error = error_of_failure(machine, machine.boot_events()[-1])
    assert (code, "tiny", message) == (error.code, error.fields["name"], error.message)
    assert f"`{command}`" in str(error.hint)


def test_a_full_snapshot_has_its_own_code(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if only the console reports it, during provisioning."""
    monkeypatch.setattr(watching, "FATAL_LINE_GRACE_S", 0.0)
    machine.serial_log.write_bytes(
        b"device-mapper: snapshots: Invalidating snapshot: Unable to allocate exception.\r\n"
    )
    tell(machine, event("sshd"), event("provisioning", manifest=MANIFEST))
    with makemachine.running(machine), refused(GuestError, "snapshot-full", name="tiny", stage="provisioning"):
        Watch(machine).wait_until("provisioning", settled)


def test_a_failure_shows_only_its_own_lines(machine: Machine) -> None:
    """Not those of an earlier attempt or another step, and not those of the fallback after it."""
    old = "== step 1 of 2: setup setup\nold\n== step 1 of 2: setup setup: it failed\n"
    new = old.replace("old", "new")
    after = "== step 1 of 1: provision other\nother\n"
    failed = event("failed", manifest=MANIFEST, kind="setup", name="setup", exit=1, reason="it failed")
    tell(machine, failed)

    def shown(log: str) -> list[str]:
        machine.provision_log.write_text(log)
        return error_of_failure(machine, machine.boot_events()[-1]).message.splitlines()[1:]

    assert ["    new"] == shown(old + new) == shown(old + new + after) == shown(after + new)
    assert [] == shown(old + "== step 1 of 2: setup setup\n== step 1 of 2: setup setup: it failed\n")
    assert ["    end"] == shown(after + "== step 2 of 2: x y\n" + "end\n== step 1 of 2: setup setup: it failed\n")
    assert ["    no heading"] == shown("no heading\n")


def test_the_message_of_a_failure_is_bounded(machine: Machine) -> None:
    """A guest may leave out fields, or send very long ones."""
    machine.provision_log.write_bytes(b"\xff" * 100000)
    for line in (event("failed"), event("failed", kind="k" * 9000, name="n" * 9000, reason="r" * 30000, exit="x")):
        tell(machine, line)
        error = error_of_failure(machine, machine.boot_events()[-1])
        assert len(error.message) < 2000
        assert all(len(value) <= 500 for value in error.fields.values())


def test_the_process_ends(machine: Machine) -> None:
    """If the guest did not report a result before, the error has the cause and the last lines of the console."""
    tell(machine, event("booting", mode="keep"))
    machine.serial_log.write_bytes(b"one\r\n[    3.1] Kernel panic - not syncing: Fatal exception\r\n\x1b[2Jlast\r\n")
    with refused(GuestError, "boot-failed", name="tiny", stage="boot") as ended:
        Watch(machine).wait_until("waiting", settled)
    assert re.search(r"panicked: Fatal exception\n(?s:.*)\n    last$", ended.value.message)
    tell(machine, event("ready", manifest=MANIFEST))
    Watch(machine).wait_until("waiting", settled)


def test_a_timeout_names_the_last_stage(machine: Machine) -> None:
    """The boot has a timeout of its own. During provisioning each event starts the timeout of the steps again."""
    tell(machine, event("booting", mode="keep"), event("hostkey", key=makemachine.HOST_KEY))
    with makemachine.running(machine):
        with refused(GuestError, "timeout", name="tiny", stage="boot") as late:
            Watch(machine, boot_timeout_s=0).wait_until("waiting", settled)
        assert re.search(r"did not boot within .* sshd did not start", late.value.message)
        assert "--timeout" in str(late.value.hint)
        step = event("step", n=1, of=3, kind="provision", name="make", status="running")
        tell(machine, event("provisioning", manifest=MANIFEST), step)
        with refused(GuestError, "timeout", name="tiny", stage="provisioning") as late:
            Watch(machine, boot_timeout_s=0, step_timeout_s=-1000).wait_until("waiting", settled)
        assert "step 1 of 3, provision make: running" in late.value.message


def test_a_guest_that_an_error_of_the_host_has_stopped(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait ends long before its timeout. While events arrive, the driver is not asked."""
    asked: list[Machine] = []

    def stopped_by(driver: FakeDriver) -> str:
        asked.append(driver.machine)
        return "the disk is full"

    monkeypatch.setattr(FakeDriver, "stopped_by", stopped_by)
    with makemachine.running(machine):
        tell(machine, event("ready", manifest=MANIFEST))
        Watch(machine).wait_until("waiting", settled)
        assert [] == asked
        monkeypatch.setattr(watching, "STOPPED_CHECK_S", 0.2)
        tell(machine, event("booting", boot=NEXT_BOOT, mode="keep"))
        with refused(GuestError, "guest-stopped", name="tiny", reason="the disk is full") as stopped:
            Watch(machine).wait_until("waiting", settled)
    assert "kimbox resume tiny" in str(stopped.value.hint)


def test_an_event_explains_more_than_the_console(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fatal line on the console ends the wait after a short time, in which an event may report the reason."""
    monkeypatch.setattr(watching, "FATAL_LINE_GRACE_S", 0.2)
    monkeypatch.setattr(watching, "POWER_OFF_TIMEOUT_S", 0.2)
    lost = event("failed", manifest="", kind="boot", name="root_snap", exit=1, reason="the snapshot was full")
    console = "[    4.1] kimbox: FAILED: the snapshot was full\r\n"
    with makemachine.running(machine):
        machine.serial_log.write_text(console)
        with refused(GuestError, "boot-failed", name="tiny", stage="boot") as failed:
            Watch(machine).wait_until("waiting", settled)
        assert "could not set up the root volume: the snapshot was full" in failed.value.message
        polls: list[int] = []

        def send_event_late(watch: Watch) -> bool:
            polls.append(len(watch.events))
            if len(polls) == 3:
                tell(machine, lost)
            return False

        with refused(GuestError, "boot-failed", name="tiny", stage="boot") as failed:
            Watch(machine).wait_until("waiting", send_event_late)
    assert "tiny did not boot: the snapshot was full" == failed.value.message
    assert "`kimbox up --boot resnap tiny`" in str(failed.value.hint)


def test_a_reboot_of_the_guest_clears_the_events(machine: Machine) -> None:
    """The events of an earlier boot say nothing about this one."""
    watch = Watch(machine)
    tell(machine, event("booting", mode="keep"), event("ready", manifest=MANIFEST))
    watch.poll()
    tell(machine, event("booting", boot=NEXT_BOOT, mode="resnap"))
    watch.poll()
    assert watch.last_event("ready") is None
    assert ["booting"] == [e.name for e in watch.events]


def test_a_changed_host_key_is_refused(machine: Machine) -> None:
    """The first reported key is pinned. The same key is accepted again, another key is not."""
    watch = Watch(machine)
    tell(machine, event("hostkey", key=makemachine.HOST_KEY), event("hostkey", key=makemachine.HOST_KEY + " kimbox"))
    watch.poll()
    tell(machine, event("hostkey", key=makemachine.OTHER_HOST_KEY))
    with pytest.raises(GuestError, match="host key of tiny has changed"):  # raised by machine/keys.py
        watch.poll()
    assert makemachine.HOST_KEY in machine.known_hosts.read_text()


def test_earlier_events_and_output_are_not_shown_again(machine: Machine, shown: io.StringIO) -> None:
    """A second `up` reads the earlier events, and shows only the new ones."""
    machine.provision_log.write_text("old\n")
    step = event("step", n=1, of=1, kind="provision", name="old", status="running")
    tell(machine, step, event("failed", manifest=MANIFEST))
    watch = Watch(machine)
    watch.catch_up()
    with machine.provision_log.open("a") as file:
        file.write("new\n")
    watch.poll()
    assert ["step", "failed"] == [e.name for e in watch.events]
    assert "| new\n" == shown.getvalue()


def test_invalid_data_on_the_port_is_skipped(machine: Machine) -> None:
    """Binary data, a very long line and JSON of another form do not end the wait."""
    machine.events_file.write_bytes(b"\0\xff" * 200000 + b"\n{}\n[]\n" + event("ready", manifest=MANIFEST).encode())
    with makemachine.running(machine):
        Watch(machine).wait_until("waiting", settled)


def test_a_flood_of_events_is_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last events are kept, and before them the last of each name, for a limited number of names."""
    monkeypatch.setattr(watching, "MAX_EVENTS", 10)
    monkeypatch.setattr(watching, "MAX_NAMES", 3)
    steps = [event("step", n=n, of=50, kind="provision", name="make", status="running") for n in range(50)]
    tell(machine, event("booting", mode="keep"), event("sshd"), event("provisioning", manifest=MANIFEST), *steps)
    watch = Watch(machine)
    for _ in range(2):
        watch.poll()
        assert ["booting", "sshd", "provisioning"] + 10 * ["step"] == [e.name for e in watch.events]
        last = watch.last_event("step")
        assert last
        assert 49 == last.number("n")
    tell(machine, *(event(f"x_{chr(97 + n)}") for n in range(26)))
    watch.poll()
    assert 13 == len(watch.events)
    assert bounded(watch.events[:10]) == watch.events[:10]


def test_provisioning_with_endless_events_ends(machine: Machine) -> None:
    """Each event starts the timeout of the step again, but not the limit on all of provisioning."""
    step = event("step", n=1, of=1, kind="provision", name="make", status="running")
    tell(machine, event("provisioning", manifest=MANIFEST))

    def send_event(watch: Watch) -> bool:
        tell(machine, step)
        assert len(watch.events) < 900, "it would never have ended"
        return False

    with makemachine.running(machine), refused(GuestError, "timeout", name="tiny", stage="provisioning") as late:
        Watch(machine, boot_timeout_s=0.05, total_timeout_s=0.05).wait_until("provisioning", send_event)
    assert "provisioning did not end within" in late.value.message


def test_a_crash_during_provisioning_starts_the_boot_timeout_again(machine: Machine) -> None:
    """A crash before provisioning does not."""
    watch = Watch(machine, boot_timeout_s=60)
    for events in ([event("booting", mode="keep"), event("provisioning", manifest=MANIFEST)], [event("booting")]):
        tell(machine, *events)
        watch.poll()
        watch._boot_began_at = 0.0
        tell(machine, event("booting", boot=NEXT_BOOT, mode="keep"))
        watch.poll()
        assert (watch._boot_began_at > 0) == (len(events) == 2)
        machine.events_file.write_text("")


def test_a_fallback_is_shown(machine: Machine, shown: io.StringIO) -> None:
    """The user knows why the wait takes longer."""
    tell(machine, event("fallback", manifest=MANIFEST, wanted="b" * 64, reason="it broke"))
    Watch(machine).poll()
    assert "the box falls back to its last good manifest" in shown.getvalue()


def test_the_longest_step_s(tmp_path: Path) -> None:
    """At least an hour. The timeout of setup counts as that of a step does."""
    assert 3600 == longest_step_s(makebox.make_box(tmp_path))
    assert 7200 == longest_step_s(makebox.make_box(tmp_path, probes=(Probe("p", "true", None, 7200),)))
    setup = Repository("setup", "/setup", True, "HEAD", "/usr/local/src/setup", 9000)
    box = makebox.make_box(tmp_path, repositories=(setup,))
    assert 9000 == longest_step_s(box)
    assert 2 * 9000 < provisioning_limit_s(box) < 2 * 9000 + 3600


def test_the_limit_on_provisioning_holds_every_step(tmp_path: Path) -> None:
    """It includes the timeouts of all steps, probes and setup. For an unknown box it is at least a day."""
    steps = tuple(Step(f"s{n}", "true", Mode.SYSTEM, Run.ONCE, 7000) for n in range(3))
    box = makebox.make_box(tmp_path, provision=steps, probes=(Probe("p", "true", None, 500),))
    assert 3 * 7000 + 500 + 3600 < provisioning_limit_s(box) < 3 * 7000 + 500 + 2 * 3600 + 3600
    assert 86400 == Watch(Machine("x")).total_timeout_s
    assert 10 * 604800 == Watch(Machine("x"), step_timeout_s=604800).total_timeout_s
