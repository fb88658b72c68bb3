"""Programs that kimbox starts are killed when it ends, and their failures have codes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from refused import refused
from waiting import until

from kimbox.errors import MissingToolError
from kimbox.run import CommandError, background, die_with_parent_prefix, run


def test_a_library_s_program_runs_and_ends_with_kimbox(tmp_path: Path) -> None:
    """It gets its arguments unchanged. After kill -9 of kimbox it is killed."""
    pid_file = tmp_path / "pid"
    child = os.fork()
    if not child:
        try:
            script = 'echo "$$ $1" >"$0.new"; mv "$0.new" "$0"; exec sleep 1000'
            run([*die_with_parent_prefix(), "sh", "-c", script, pid_file, "$(a) 'b'"], die_with_parent=False)
        finally:
            os._exit(0)
    until("it has started", pid_file.exists)
    pid, arguments = pid_file.read_text().split(" ", 1)
    assert arguments == "$(a) 'b'\n"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    line = Path("/proc", pid, "cmdline")
    until("it has ended", lambda: not line.exists() or not line.read_bytes())


def test_nothing_starts_after_kimbox_has_died(tmp_path: Path) -> None:
    """A program whose parent is not the expected process does not start."""
    *before, _ = die_with_parent_prefix()
    done = run([*before, "1", "touch", tmp_path / "created"], check=False)
    assert (done.ok, (tmp_path / "created").exists()) == (False, False)


def test_each_failure_of_a_program_has_a_code() -> None:
    """An exit status, a timeout and a missing program have different codes, and name the program."""
    with refused(CommandError, "command-failed", program="false"):
        run(["false"])
    with refused(CommandError, "timeout", program="sleep"):
        run(["sleep", "60"], check=False, timeout_s=0.1)
    with refused(MissingToolError, "missing-tool", program="no-such-program"):
        run(["no-such-program"])


#: Runs a program that leaves its stdout to another one, as ssh does with a shared connection, and then ends or waits.
#: What it runs elsewhere cannot be ended. The arguments are its last words, and a file for the calls of `on_signal`.
ATTACHED = """
import sys
from pathlib import Path
from kimbox import run, streams
streams.END_S = 0.3

def on_signal(number):
    Path(sys.argv[2]).write_text(str(number))
    return False

program = "sleep 1000 & echo $! $$; " + sys.argv[1]
sys.exit(run.attached(["sh", "-c", program], on_signal=on_signal))
"""


@pytest.mark.parametrize("last", ["exec sleep 1000", "exit 255"])
def test_a_signal_ends_a_program_whose_output_stays_open(tmp_path: Path, last: str) -> None:
    """stdout is a file. The signal may come before the end of the program, or after it."""
    calls = tmp_path / "calls"
    with background([sys.executable, "-c", ATTACHED, last, calls]) as kimbox:
        until("it has started", lambda: kimbox.output().endswith("\n"))
        holder, program = kimbox.output().split()
        try:
            if last == "exit 255":
                until("the program has ended", lambda: not Path("/proc", program).exists())
            kimbox.send_signal(signal.SIGTERM)
            assert 128 + signal.SIGTERM == kimbox.wait(30)
        finally:
            os.kill(int(holder), signal.SIGKILL)
    assert (last == "exec sleep 1000") == calls.exists()


#: Runs a program. What it runs elsewhere does not answer. The argument is a file that shows the call of `on_signal`.
HANGING = """
import sys, time
from pathlib import Path
from kimbox import run

def on_signal(number):
    Path(sys.argv[1]).touch()
    time.sleep(1000)

sys.exit(run.attached(["sh", "-c", "echo started; exec sleep 1000"], on_signal=on_signal))
"""


def test_a_second_signal_does_not_wait_for_the_other_end(tmp_path: Path) -> None:
    """The first signal asks for the end of what runs elsewhere, which hangs. The second ends the program at once.

    Not SIGINT, which is ignored in the background of a shell.
    """
    asked = tmp_path / "asked"
    with background([sys.executable, "-c", HANGING, asked]) as kimbox:
        until("it has started", lambda: "started" in kimbox.output())
        kimbox.send_signal(signal.SIGTERM)
        until("the other end was asked", asked.exists)
        assert kimbox.code() is None
        kimbox.send_signal(signal.SIGTERM)
        assert 128 + signal.SIGTERM == kimbox.wait(30)
