"""What a user sees of events and output of a guest: recorded streams, in the folder of a machine."""

from __future__ import annotations

import io

import makemachine
import pytest
import watched
from makemachine import event, tell

from kimbox.actions import progress
from kimbox.actions.progress import Output, Progress
from kimbox.actions.watch import Watch
from kimbox.machine.folder import Machine

MANIFEST = "a" * 64

machine, shown = watched.machine, watched.shown  # fixtures


def test_output_survives_a_new_log(machine: Machine) -> None:
    """A log that was truncated is read from its beginning, without the incomplete line of the old one."""
    lines: list[str] = []
    output = Output(machine.provision_log)
    output.show_new(lines.append)
    machine.provision_log.write_text("a long first line\nrest")
    output.show_new(lines.append)
    machine.provision_log.write_text("new\n")
    output.show_new(lines.append)
    assert ["a long first line", "new"] == lines


def test_the_output_ends_with_its_last_lines(
    machine: Machine, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the guest has written too much to show. The rest is named, with the verb that shows it."""
    monkeypatch.setattr(progress, "PIECE_BYTES", 1000)
    monkeypatch.setattr(progress, "MAX_REST_BYTES", 100_000)
    monkeypatch.setattr(progress, "END_BYTES", 500)
    for size, is_whole in ((50_000, True), (200_000, False)):
        shown.truncate(0)
        lines = [f"line {n} of many" for n in range(size // 16)] + ["the last one has no end"]
        machine.provision_log.write_text("\n".join(lines))
        tell(machine, event("booting", mode="keep"), event("ready", manifest=MANIFEST))
        with makemachine.running(machine):
            Watch(machine).wait_until("waiting", lambda watch: watch.last_event("ready") is not None)
        output = [line[2:] for line in shown.getvalue().lstrip("\0").splitlines() if line.startswith("| ")]
        assert lines[-10:] == output[-10:]
        assert is_whole is (output == lines)
        assert is_whole is ("`kimbox logs tiny` shows all of it" not in shown.getvalue())


def test_a_new_provisioning_in_place_of_a_kept_root_has_a_reason(machine: Machine, shown: io.StringIO) -> None:
    """If a kept root was put back or saved, nothing is shown."""
    tell(
        machine,
        *(event("kept", manifest=MANIFEST, status=status, reason="") for status in ("restored", "saved")),
        event("kept", manifest=MANIFEST, status="refused", reason="the root itself has changed since"),
    )
    Progress(machine.provision_log, "tiny").show(machine.boot_events())
    line = "the box provisions a new root: the kept one was not put back: the root itself has changed since"
    assert [line] == shown.getvalue().splitlines()


def test_output_stays_below_its_own_step(machine: Machine, shown: io.StringIO) -> None:
    """Events may arrive before output that was written earlier. Lines that look like a heading are shown."""
    steps = [
        event("step", n=n, of=2, kind="provision", name=name, status="running") for n, name in ((1, "a"), (2, "b"))
    ]
    view = Progress(machine.provision_log, "tiny")
    tell(machine, *steps)
    machine.provision_log.write_text("== step 1 of 2: provision a\nof a\n== step 7 of 9: mine\n")
    view.show(machine.boot_events())
    with machine.provision_log.open("a") as file:
        file.write("still of a\n== step 2 of 2: provision b\nof b\n== step 2 of 2: provision b: it failed\n")
    view.finish()
    assert [
        "step 1 of 2: provision a", "| of a", "| == step 7 of 9: mine", "| still of a", "step 2 of 2: provision b",
        "| of b",
    ] == shown.getvalue().splitlines()  # fmt: skip


def test_a_heading_waits_for_its_event(machine: Machine, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output may arrive before an event that was written earlier. A heading without an event is a line of a program."""
    view = Progress(machine.provision_log, "tiny")
    machine.provision_log.write_text("== step 1 of 2: provision a\nof a\n== step 2 of 2: provision b\nof b\n")
    view.show([])
    assert "" == shown.getvalue()
    for n, name in ((1, "a"), (2, "b")):
        tell(machine, event("step", n=n, of=2, kind="provision", name=name, status="running"))
        view.show(machine.boot_events()[-1:])
    monkeypatch.setattr(progress, "HEADING_TIMEOUT_S", 0.0)
    with machine.provision_log.open("a") as file:
        file.write("== step 2 of 2: provision b\nalso of b\n" * 2)
    view.show([])
    view.show([])
    assert [
        "step 1 of 2: provision a", "| of a", "step 2 of 2: provision b", "| of b",
        *["| == step 2 of 2: provision b", "| also of b"] * 2,
    ] == shown.getvalue().splitlines()  # fmt: skip


STEP_A, STEP_B, STEP_C = (
    event("step", n=n, of=3, kind="provision", name=name, status="running") for n, name in enumerate("abc", 1)
)


def test_late_output_stays_below_its_own_step(
    machine: Machine, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as output arrives, its heading is expected. If none arrives, the step is announced without it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    view = Progress(machine.provision_log, "tiny")
    tell(machine, STEP_A, STEP_B)
    view.show(machine.boot_events())
    for text in ("== step 1 of 3: provision a\n", "1\n", "2\n", "== step 2 of 3: provision b\n3\n"):
        now[0] += progress.HEADING_TIMEOUT_S * 0.9
        with machine.provision_log.open("a") as file:
            file.write(text)
        view.show([])
    tell(machine, STEP_C)
    view.show(machine.boot_events()[2:])
    now[0] += progress.HEADING_TIMEOUT_S * 1.1
    view.show([])
    assert [
        "step 1 of 3: provision a", "| 1", "| 2", "step 2 of 3: provision b", "| 3", "step 3 of 3: provision c",
    ] == shown.getvalue().splitlines()  # fmt: skip


def test_the_end_of_much_output_is_below_its_own_step(
    machine: Machine, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headings of the first steps are in the part that is left out."""
    monkeypatch.setattr(progress, "MAX_REST_BYTES", 1000)
    monkeypatch.setattr(progress, "END_BYTES", 60)
    view = Progress(machine.provision_log, "tiny")
    tell(machine, STEP_A, STEP_B, STEP_C)
    view.show(machine.boot_events())
    text = "== step 1 of 3: provision a\nof a\n== step 2 of 3: provision b\n" + "much of b\n" * 100
    machine.provision_log.write_text(text + "last of b\n== step 3 of 3: provision c\nof c\n")
    view.finish()
    lines = [line for line in shown.getvalue().splitlines() if "left out" not in line and line != "| much of b"]
    assert [
        "step 1 of 3: provision a", "step 2 of 3: provision b", "| last of b", "step 3 of 3: provision c", "| of c",
    ] == lines  # fmt: skip


def test_a_fallback_before_a_delivery_is_no_warning(machine: Machine, shown: io.StringIO) -> None:
    """The host sends the manifest that failed again: what the box does until then has no effect on the result."""
    watch = Watch(machine, digest=MANIFEST)
    watch.show_fallback(False)
    tell(machine, event("fallback", manifest="b" * 64, wanted=MANIFEST, reason="it broke"))
    watch.poll()
    assert "" == shown.getvalue()
    watch.show_fallback(True)
    tell(machine, event("fallback", manifest="b" * 64, wanted=MANIFEST, reason="it broke"))
    watch.poll()
    assert "falls back" in shown.getvalue()


def test_a_fallback_that_will_be_replaced_is_no_warning(machine: Machine, shown: io.StringIO) -> None:
    """A box may boot with its last good manifest before it gets the corrected one."""
    tell(machine, event("fallback", manifest="b" * 64, wanted="c" * 64, reason="it broke"))
    Progress(machine.provision_log, "tiny", MANIFEST).show(machine.boot_events())
    assert "" == shown.getvalue()
    Progress(machine.provision_log, "tiny", "c" * 64).show(machine.boot_events())
    assert "falls back" in shown.getvalue()
