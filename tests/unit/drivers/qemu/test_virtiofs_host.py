"""Whether this host can share folders: what is missing has the command that installs it, and a low limit is shown."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from refused import refused

from kimbox.drivers.hostcheck import Outcome
from kimbox.drivers.qemu import confine, virtiofs
from kimbox.errors import MissingToolError
from kimbox.image import namespace


def test_a_missing_virtiofsd_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither on PATH nor in the folders of distributions."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(virtiofs, "PLACES", (str(tmp_path / "virtiofsd"),))
    with refused(MissingToolError, "missing-tool", program="virtiofsd") as caught:
        virtiofs.check()
    assert caught.value.hint == "sudo apt-get install virtiofsd"


def test_an_ordinary_user_needs_subordinate_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the table and the command that grants them."""
    (tmp_path / "newuidmap").write_text("")
    (tmp_path / "newuidmap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(virtiofs, "program", lambda: "/usr/libexec/virtiofsd")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(namespace, "SUBUID", tmp_path / "subuid")
    with refused(MissingToolError, "missing-subordinate-ids", path=str(tmp_path / "subuid")) as caught:
        virtiofs.check()
    assert (caught.value.hint or "").startswith("sudo usermod --add-subuids ")


@pytest.mark.parametrize(("files", "outcome"), [(20_000, Outcome.SLOW), (524_288, Outcome.GOOD)])
def test_a_low_limit_of_open_files_is_shown(monkeypatch: pytest.MonkeyPatch, files: int, outcome: Outcome) -> None:
    """virtiofsd has each file open that the guest has in its cache."""
    monkeypatch.setattr(virtiofs, "program", lambda: "/usr/libexec/virtiofsd")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(confine, "most_open_files", lambda: files)
    found = virtiofs.check()
    assert (found.outcome, f"`ulimit -Hn` is {files}" in found.result) == (outcome, outcome is Outcome.SLOW)


def test_the_limit_that_is_shown_is_not_set() -> None:
    """It is at least the hard limit of this process, which keeps its own limits."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert confine.most_open_files() >= before[1]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
