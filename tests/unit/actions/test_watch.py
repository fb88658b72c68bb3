"""Following a boot: a folder as a machine has it, to which a thread appends as a guest would."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import fakedriver
import makebox
import makemachine
import pytest
from makemachine import NEXT_BOOT, event, tell

from kimbox.actions import watch as watching
from kimbox.actions.watch import Output, Watch, bounded, failure, longest_step, provisioning_limit
from kimbox.errors import GuestError
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.spec.model import Mode, Probe, Repository, Run, Step

MANIFEST = "a" * 64


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    fakedriver.install(monkeypatch)
    monkeypatch.setattr(watching, "POLL_INTERVAL_S", 0.001)
    return makemachine.make_machine()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the user sees."""
    stream = io.StringIO()
    monkeypatch.setattr(log, "stream", stream)
    return stream


def settled(watch: Watch) -> bool:
    return watch.seen("ready") is not None or watch.seen("failed") is not None


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
    """Events and output that come one by one, cut anywhere, lead to ready; the user sees both."""
    key = event("hostkey", key=makemachine.HOST_KEY)
    ready = event("ready", manifest=MANIFEST)
    step = event("step", n=1, of=2, kind="provision", name="make", status="running")
    said = machine.provision_log
    pieces = [
        (machine.events_file, event("booting", mode="keep") + key[:10]),
        (said, "compi"),
        (machine.events_file, key[10:] + step),
        (said, "ling\r\n\x1b[31mred\n"),
        (machine.events_file, ready),
    ]
    watch = Watch(machine)
    while_writing(machine, pieces, lambda: watch.until("waiting", settled))
    watch.look()
    assert ["booting", "hostkey", "step", "ready"] == [e.name for e in watch.events]
    assert f"kimbox-tiny {makemachine.HOST_KEY}\n" == machine.known_hosts.read_text()
    assert machine.known_hosts.stat().st_mode & 0o777 == 0o600
    assert "step 1 of 2: provision make" in shown.getvalue()
    assert "| compiling\n" in shown.getvalue()
    assert "| \ufffd[31mred\n" in shown.getvalue()


def test_failed_tells_step_status_and_last_lines(machine: Machine) -> None:
    """The message is enough to know what to mend, and the hint how to look."""
    machine.provision_log.write_text("".join(f"line {n}\n" for n in range(50)) + "no \x1b[2Jspace\n")
    failed = event("failed", manifest=MANIFEST, kind="provision", name="make", exit=7, reason="it failed")
    tell(machine, event("booting", mode="keep"), failed)
    watch = Watch(machine)
    with makemachine.running(machine):
        watch.until("waiting", settled)
    last = watch.seen("failed")
    assert last
    error = failure(machine, last)
    first, *lines = error.message.splitlines()
    assert "tiny: provisioning failed at provision make (exit status 7): it failed" == first
    assert 12 == len(lines)
    assert "    no \ufffd[2Jspace" == lines[-1]
    assert "kimbox ssh tiny" in str(error.hint)


def test_a_failure_told_badly_is_bounded(machine: Machine) -> None:
    """A guest may leave fields out, or fill them."""
    machine.provision_log.write_bytes(b"\xff" * 100000)
    for line in (event("failed"), event("failed", kind="k" * 9000, name="n" * 9000, reason="r" * 30000, exit="x")):
        tell(machine, line)
        assert len(failure(machine, machine.boot_events()[-1]).message) < 2000


def test_the_process_ends(machine: Machine) -> None:
    """What was said before counts; else the console explains, and its last lines are shown."""
    tell(machine, event("booting", mode="keep"))
    machine.serial_log.write_bytes(b"one\r\n[    3.1] Kernel panic - not syncing: Fatal exception\r\n\x1b[2Jlast\r\n")
    with pytest.raises(GuestError, match=r"panicked: Fatal exception\n(?s:.*)\n    last$"):
        Watch(machine).until("waiting", settled)
    tell(machine, event("ready", manifest=MANIFEST))
    Watch(machine).until("waiting", settled)


def test_a_time_out_names_the_last_stage(machine: Machine) -> None:
    """Of the boot by its own limit, of provisioning by that of its steps, which each event begins anew."""
    tell(machine, event("booting", mode="keep"), event("hostkey", key=makemachine.HOST_KEY))
    with makemachine.running(machine):
        with pytest.raises(GuestError, match=r"did not boot within .* sshd did not start") as late:
            Watch(machine, boot_timeout_s=0).until("waiting", settled)
        assert "--timeout" in str(late.value.hint)
        step = event("step", n=1, of=3, kind="provision", name="make", status="running")
        tell(machine, event("provisioning", manifest=MANIFEST), step)
        with pytest.raises(GuestError, match="step 1 of 3, provision make: running"):
            Watch(machine, boot_timeout_s=0, step_timeout_s=-1000).until("waiting", settled)


def test_the_guest_may_tell_more_than_its_console(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A console without hope ends the wait a moment later: an event that says why comes first, if it comes."""
    monkeypatch.setattr(watching, "LAST_WORDS_S", 0.2)
    monkeypatch.setattr(watching, "ENDS_S", 0.2)
    lost = event("failed", manifest="", kind="boot", name="root_snap", exit=1, reason="the snapshot was full")
    console = "[    4.1] kimbox: FAILED: the snapshot was full\r\n"
    with makemachine.running(machine):
        machine.serial_log.write_text(console)
        with pytest.raises(GuestError, match="could not set up the root volume: the snapshot was full"):
            Watch(machine).until("waiting", settled)
        looks: list[int] = []

        def tells_late(watch: Watch) -> bool:
            looks.append(len(watch.events))
            if len(looks) == 3:
                tell(machine, lost)
            return False

        with pytest.raises(GuestError, match=r"tiny did not boot: the snapshot was full$") as failed:
            Watch(machine).until("waiting", tells_late)
    assert "`kimbox up --boot resnap tiny`" in str(failed.value.hint)


def test_a_reboot_of_the_guest_starts_anew(machine: Machine) -> None:
    """What the boot before said about itself is over."""
    watch = Watch(machine)
    tell(machine, event("booting", mode="keep"), event("ready", manifest=MANIFEST))
    watch.look()
    tell(machine, event("booting", boot=NEXT_BOOT, mode="resnap"))
    watch.look()
    assert watch.seen("ready") is None
    assert ["booting"] == [e.name for e in watch.events]


def test_a_changed_host_key_is_refused(machine: Machine) -> None:
    """The first key told is pinned; the same again is fine, another is not."""
    watch = Watch(machine)
    tell(machine, event("hostkey", key=makemachine.HOST_KEY), event("hostkey", key=makemachine.HOST_KEY + " kimbox"))
    watch.look()
    tell(machine, event("hostkey", key=makemachine.OTHER_HOST_KEY))
    with pytest.raises(GuestError, match="host key of tiny has changed"):
        watch.look()
    assert makemachine.HOST_KEY in machine.known_hosts.read_text()


def test_what_is_past_is_not_shown_again(machine: Machine, shown: io.StringIO) -> None:
    """A second `up` knows what was told before, and shows only what is new."""
    machine.provision_log.write_text("old\n")
    step = event("step", n=1, of=1, kind="provision", name="old", status="running")
    tell(machine, step, event("failed", manifest=MANIFEST))
    watch = Watch(machine)
    watch.catch_up()
    with machine.provision_log.open("a") as file:
        file.write("new\n")
    watch.look()
    assert ["step", "failed"] == [e.name for e in watch.events]
    assert "| new\n" == shown.getvalue()


def test_output_survives_a_new_log(machine: Machine) -> None:
    """A log that starts anew is read from its beginning, without what was left of the old one."""
    lines: list[str] = []
    output = Output(machine.provision_log)
    output.pass_on(lines.append)
    machine.provision_log.write_text("a long first line\nrest")
    output.pass_on(lines.append)
    machine.provision_log.write_text("new\n")
    output.pass_on(lines.append)
    assert ["a long first line", "new"] == lines


def test_nonsense_on_the_port_is_passed_over(machine: Machine) -> None:
    """Binary, an endless line and wrong shapes do not end the wait."""
    machine.events_file.write_bytes(b"\0\xff" * 200000 + b"\n{}\n[]\n" + event("ready", manifest=MANIFEST).encode())
    with makemachine.running(machine):
        Watch(machine).until("waiting", settled)


def test_a_flood_of_events_is_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are kept, and before them the last of each name; of made-up names only so many."""
    monkeypatch.setattr(watching, "MAX_EVENTS", 10)
    monkeypatch.setattr(watching, "MAX_NAMES", 3)
    steps = [event("step", n=n, of=50, kind="provision", name="make", status="running") for n in range(50)]
    tell(machine, event("booting", mode="keep"), event("sshd"), event("provisioning", manifest=MANIFEST), *steps)
    watch = Watch(machine)
    for _ in range(2):
        watch.look()
        assert ["booting", "sshd", "provisioning"] + 10 * ["step"] == [e.name for e in watch.events]
        last = watch.seen("step")
        assert last
        assert 49 == last.number("n")
    tell(machine, *(event(f"x_{chr(97 + n)}") for n in range(26)))
    watch.look()
    assert 13 == len(watch.events)
    assert bounded(watch.events[:10]) == watch.events[:10]


def test_provisioning_that_never_falls_silent_ends(machine: Machine) -> None:
    """A guest that tells something again and again renews the patience for each step, not for all of them."""
    step = event("step", n=1, of=1, kind="provision", name="make", status="running")
    tell(machine, event("provisioning", manifest=MANIFEST))

    def chatter(watch: Watch) -> bool:
        tell(machine, step)
        assert len(watch.events) < 900, "it would never have ended"
        return False

    with makemachine.running(machine), pytest.raises(GuestError, match="provisioning did not end within"):
        Watch(machine, boot_timeout_s=0.05, total_timeout_s=0.05).until("provisioning", chatter)


def test_a_box_that_goes_down_while_provisioning_has_its_time_to_boot_again(machine: Machine) -> None:
    """Once for each boot that was provisioning; one that goes down before that has no more time."""
    patient = Watch(machine, boot_timeout_s=60)
    for events in ([event("booting", mode="keep"), event("provisioning", manifest=MANIFEST)], [event("booting")]):
        tell(machine, *events)
        patient.look()
        patient._started = 0.0
        tell(machine, event("booting", boot=NEXT_BOOT, mode="keep"))
        patient.look()
        assert (patient._started > 0) == (len(events) == 2)
        machine.events_file.write_text("")


def test_a_fallback_is_shown(machine: Machine, shown: io.StringIO) -> None:
    """Whoever waits knows why it takes longer."""
    tell(machine, event("fallback", manifest=MANIFEST, wanted="b" * 64, reason="it broke"))
    Watch(machine).look()
    assert "the box goes back to its last good manifest" in shown.getvalue()


def test_the_longest_step(tmp_path: Path) -> None:
    """An hour at least; setup's own limit counts like any."""
    assert 3600 == longest_step(makebox.make_box(tmp_path))
    assert 7200 == longest_step(makebox.make_box(tmp_path, probes=(Probe("p", "true", None, 7200),)))
    setup = Repository("setup", "/setup", True, "HEAD", "/usr/local/src/setup", 9000)
    box = makebox.make_box(tmp_path, repositories=(setup,))
    assert 9000 == longest_step(box)
    assert 2 * 9000 < provisioning_limit(box) < 2 * 9000 + 3600


def test_the_limit_on_provisioning_holds_every_step(tmp_path: Path) -> None:
    """Each step's and each probe's own limit fits into it, and setup's; without a box it is a long one."""
    steps = tuple(Step(f"s{n}", "true", Mode.SYSTEM, Run.ONCE, 7000) for n in range(3))
    box = makebox.make_box(tmp_path, provision=steps, probes=(Probe("p", "true", None, 500),))
    assert 3 * 7000 + 500 + 3600 < provisioning_limit(box) < 3 * 7000 + 500 + 2 * 3600 + 3600
    assert 86400 == Watch(Machine("x")).total_timeout_s
    assert 10 * 604800 == Watch(Machine("x"), step_timeout_s=604800).total_timeout_s
