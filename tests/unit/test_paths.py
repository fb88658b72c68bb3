"""The spec of a command: in the current folder, else in a folder above, up to a boundary."""

from __future__ import annotations

import os
from pathlib import Path

import clirun
import pytest
from clirun import Kimbox

from kimbox import paths

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def deep(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, three levels below the folder `work` with a spec. It is not below the user's home."""
    monkeypatch.setenv("HOME", str(world / "me"))
    (world / "work/kimbox.yaml").write_text("kimbox: 1\nname: study\n")
    folder = world / "work/a/b/c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_the_nearest_spec(world: Path, deep: Path) -> None:
    """That of the folder itself, else that of the nearest folder above."""
    assert world / "work/kimbox.yaml" == paths.spec_file(Path())
    (world / "work/a/kimbox.yaml").touch()
    assert world / "work/a/kimbox.yaml" == paths.spec_file(Path())
    (deep / "kimbox.yaml").touch()
    assert Path("kimbox.yaml") == paths.spec_file(Path())


@pytest.mark.usefixtures("deep")
def test_the_root_of_a_git_work_tree(world: Path) -> None:
    """A spec at the root is found, one above is not. In a work tree of `git worktree`, .git is a file."""
    (world / "work/.git").mkdir()
    assert world / "work/kimbox.yaml" == paths.spec_file(Path())
    (world / "work/a/b/.git").touch()
    assert None is paths.spec_file(Path())


@pytest.mark.parametrize("home", ["work", "work/a/b", "work/a/b/c"])
@pytest.mark.usefixtures("deep")
def test_the_home(world: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """The search ends below it."""
    monkeypatch.setenv("HOME", str(world / home))
    assert None is paths.spec_file(Path())


@pytest.mark.usefixtures("deep")
def test_the_boundary_of_a_file_system(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted folder does not belong to the project around it."""
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        found = real(path, **options)
        fields = list(found)
        fields[2] += path == world / "work/a"
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", stat)
    assert None is paths.spec_file(Path())


@pytest.mark.usefixtures("deep")
def test_a_spec_of_another_user(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the folder it is not used: in /tmp, anyone can write one."""
    if os.geteuid() != 0:
        pytest.skip("only root can give away a file")
    os.chown(world / "work/kimbox.yaml", 12345, 12345)
    assert None is paths.spec_file(Path())
    monkeypatch.chdir(world / "work")
    assert Path("kimbox.yaml") == paths.spec_file(Path())


@pytest.mark.usefixtures("deep")
def test_verbs_below_the_spec(kimbox: Kimbox, world: Path) -> None:
    """They use it and report that, as does a verb with the name in it. An error lists the folder."""
    code, out, err = kimbox("validate")
    assert (0, f"{world}/work/kimbox.yaml: a valid spec of the box study\n") == (code, out)
    assert f"using {world}/work/kimbox.yaml" in err
    assert (0, "study: absent\n") == kimbox("status")[:2]
    assert (0, "study: absent\n") == kimbox("status", "study")[:2]
    (world / "work/kimbox.yaml").unlink()
    code, _, err = kimbox("status")
    assert 5 == code
    assert "nor in a folder above it" in err


@pytest.mark.parametrize("verb", [["exec"], ["halt"], ["ssh"], ["logs"], ["destroy", "-y"], ["snapshot", "list"]])
def test_a_misspelled_box(kimbox: Kimbox, verb: list[str]) -> None:
    """A verb that needs a machine names the box that was meant, as `up` does; `kimbox up minimla` would not help."""
    arguments = [*verb, "minimla", *(["--", "true"] if verb == ["exec"] else [])]
    code, _, err = kimbox(*arguments)
    assert 5 == code
    assert "box minimla not found" in err
    assert "did you mean minimal?" in err
    assert "kimbox up minimla" not in err
