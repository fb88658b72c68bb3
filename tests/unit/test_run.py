"""What kimbox starts ends with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from waiting import until

from kimbox.run import die_with_parent_prefix, run


def test_a_library_s_program_runs_and_ends_with_kimbox(tmp_path: Path) -> None:
    """Its arguments reach it as they are; after kill -9 of kimbox it is gone."""
    noted = tmp_path / "pid"
    child = os.fork()
    if not child:
        try:
            script = 'echo "$$ $1" >"$0.new"; mv "$0.new" "$0"; exec sleep 1000'
            run([*die_with_parent_prefix(), "sh", "-c", script, noted, "$(a) 'b'"], die_with_parent=False)
        finally:
            os._exit(0)
    until("it has started", noted.exists)
    pid, said = noted.read_text().split(" ", 1)
    assert said == "$(a) 'b'\n"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    line = Path("/proc", pid, "cmdline")
    until("it has ended", lambda: not line.exists() or not line.read_bytes())


def test_where_kimbox_has_died_before_nothing_starts(tmp_path: Path) -> None:
    """Whoever has another parent by then does nothing."""
    *before, _ = die_with_parent_prefix()
    done = run([*before, "1", "touch", tmp_path / "there"], check=False)
    assert (done.ok, (tmp_path / "there").exists()) == (False, False)
