"""kimbox prune: it lists the files that it would remove, prompts for a confirmation, and reports what it removed."""

from __future__ import annotations

from pathlib import Path

import clirun
import pytest
from clirun import Kimbox, error, result

from kimbox import paths
from kimbox.actions import prune

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def failed_log(world: Path) -> Path:
    """The log of a failed build, which prune removes."""
    file = paths.images_dir() / f"{'a' * 64}.failed.log"
    file.parent.mkdir(parents=True)
    file.write_text("x" * 10_000)
    return file


def test_nothing_to_remove(kimbox: Kimbox) -> None:
    """It is not an error, and there is no prompt."""
    assert (0, "there is nothing to remove\n", "") == kimbox("prune")


def test_a_dry_run_removes_nothing(kimbox: Kimbox, failed_log: Path) -> None:
    """It lists each path with its size."""
    code, out, _ = kimbox("prune", "--dry-run", "--json")
    pruned = result(out, "prune")
    assert (0, False, [str(failed_log)]) == (code, pruned["removed"], [item["path"] for item in pruned["unused"]])
    assert pruned["unused"][0]["size_bytes"] >= 4096
    assert kimbox("prune", "--dry-run")[1].startswith(f"{failed_log}  0 MB\n")
    assert failed_log.exists()


def test_without_a_terminal_it_needs_yes(kimbox: Kimbox, failed_log: Path) -> None:
    """Nothing is removed without a confirmation."""
    code, out, err = kimbox("prune")
    assert (2, "", True) == (code, out, "hint: add -y" in err)
    assert "no-terminal" == error(kimbox("--json", "prune")[1], "prune")["code"]
    assert failed_log.exists()
    code, out, _ = kimbox("prune", "-y", "--json")
    assert (0, True) == (code, result(out, "prune")["removed"])
    assert not failed_log.exists()


def test_a_file_that_is_in_use_now(kimbox: Kimbox, failed_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed as kept, and does not count as removed."""
    monkeypatch.setattr(prune, "remove", lambda _: [])
    code, out, _ = kimbox("prune", "-y")
    assert (0, True) == (code, f"kept {failed_log}: it is in use now" in out)
    assert "removed 0 MB" in out
