"""Vetting: what does not pass is in quarantine, and everything else stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kimbox.jobs.jobfile import file_schema, read_jobfile
from kimbox.jobs.vet import KINDS, Vetting, vet

FILES = {
    "a.csv": b"1,2\n",
    "big.csv": b"x" * 2000,
    "plots/p.png": b"\x89PNG\r\n\x1a\n...",
    "plots/fake.png": b"MZ\x90\0",
    "control.txt": b"a\x1b[2J",
    "latin.txt": b"\xe9\n",
    "cut.txt": b"ok \xc3",
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results of a job."""
    for name, data in FILES.items():
        file = tmp_path / "out/output" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path / "out"


def rejected(results: Path, vetting: Vetting) -> set[str]:
    """Vets the results. Checks that each file is in one of both folders, and returns those in quarantine."""
    before = {path.relative_to(results / "output") for path in (results / "output").rglob("*") if not path.is_dir()}
    paths = {os.fsdecode(row.path) for row in vet(results, vetting, results.parent)}
    quarantine = results / "quarantine"
    moved = {path.relative_to(quarantine) for path in quarantine.rglob("*") if path.is_symlink() or path.is_file()}
    assert {Path(path) for path in paths} == moved
    assert all(os.path.lexists(results / "output" / path) for path in before - moved)
    return paths


@pytest.mark.parametrize(
    ("vetting", "expected"),
    [
        (Vetting(), set()),
        (Vetting(names=("*.csv", "plots/**")), {"control.txt", "latin.txt", "cut.txt"}),
        (Vetting(max_bytes=1999), {"big.csv"}),
        (Vetting(kinds=("text", "png")), {"plots/fake.png", "control.txt", "latin.txt", "cut.txt"}),
        (Vetting(kinds=("png",)), set(FILES) - {"plots/p.png"}),
        (Vetting(command=("grep", "-q", "1")), set(FILES) - {"a.csv"}),
        (Vetting(command=("no-such-program",)), set(FILES)),
    ],
)
def test_each_condition(results: Path, vetting: Vetting, expected: set[str]) -> None:
    """Only what fails it is moved, with its path."""
    assert expected == rejected(results, vetting)


def test_a_link_follows_its_target(results: Path) -> None:
    """It passes if its target did, also one to a folder."""
    for name, target in {"good": "a.csv", "bad": "big.csv", "folder": "plots", "nothing": "missing"}.items():
        (results / "output" / name).symlink_to(target)
    assert {"big.csv", "bad", "nothing"} == rejected(results, Vetting(max_bytes=1999))


def test_a_command_of_the_job(results: Path) -> None:
    """A path with a slash begins at the folder of the job; the name of a file is one argument."""
    script = results.parent / "check"
    script.write_text('#!/bin/sh\n[ $# = 2 ] && [ "$1" = -x ] && [ -f "$2" ]\n')
    script.chmod(0o755)
    (results / "output/a b;c").write_text("x")
    assert set() == rejected(results, Vetting(command=("./check", "-x")))


def test_the_quarantine_is_private(results: Path) -> None:
    """Only the user can enter it."""
    rejected(results, Vetting(max_bytes=0))
    assert 0o700 == (results / "quarantine").stat().st_mode & 0o777


def test_it_is_read_from_the_file(tmp_path: Path) -> None:
    """Every key; and the kinds of the schema are those of the code."""
    text = 'kimbox: 1\nvet: {names: ["*.csv"], types: [text], max_size: 1KiB, command: [./check, -x]}\n'
    (tmp_path / "job.yaml").write_text(text)
    assert Vetting(("*.csv",), ("text",), 1024, ("./check", "-x")) == read_jobfile(tmp_path).vetting
    assert list(KINDS) == file_schema()["properties"]["vet"]["properties"]["types"]["items"]["enum"]


def test_a_link_leads_to_what_has_passed(results: Path) -> None:
    """Not to the log of the program, to a file in quarantine, nor through another link."""
    (results / "run-job.log").write_bytes(b"MZ")
    links = {"log": "../run-job.log", "judged": "../quarantine/big.csv", "chain": "log", "up": "..", "good": "a.csv"}
    for name, target in links.items():
        (results / "output" / name).symlink_to(target)
    assert {"big.csv", "log", "judged", "chain", "up"} == rejected(results, Vetting(max_bytes=1999))


@pytest.mark.parametrize("is_link", [False, True])
def test_an_output_that_is_no_folder(tmp_path: Path, is_link: bool) -> None:
    """It goes into quarantine, whatever is in it."""
    output = tmp_path / "out/output"
    output.parent.mkdir()
    (tmp_path / "out/input").mkdir()
    if is_link:
        output.symlink_to("input")
    else:
        output.write_text("1")
    (row,) = vet(tmp_path / "out", Vetting(), tmp_path)
    assert ".: output is not a folder" == str(row)
    assert not os.path.lexists(output)
    assert os.path.lexists(tmp_path / "out/quarantine/output")
