"""job.yaml: its values, and each fault at its place."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from kimbox import paths, run
from kimbox.errors import SpecError, StateError, UsageError
from kimbox.jobs.disk.pack import Room
from kimbox.jobs.disk.source import check_folder
from kimbox.jobs.jobfile import JobFile, file_schema, read_jobfile
from kimbox.jobs.network import Network
from kimbox.jobs.template import copy_example, examples, write_folder
from kimbox.spec.load import load_box


def read(folder: Path, text: str) -> JobFile:
    (folder / "job.yaml").write_text(f"kimbox: 1\n{text}")
    return read_jobfile(folder)


def test_the_schema_is_valid() -> None:
    """It is a JSON Schema 2020-12."""
    Draft202012Validator.check_schema(file_schema())


def test_every_value(tmp_path: Path) -> None:
    """Each key has its unit. A folder without the file, or a file with the version alone, sets nothing."""
    assert JobFile() == read_jobfile(tmp_path) == read(tmp_path, "")
    text = """box: minimal
arguments: [--steps, "10"]
cpus: 3
memory: 2GiB
scratch: 1GiB
timeout: 2h
network: outbound
size: 1.5MiB
"""
    expected = JobFile("minimal", ("--steps", "10"), 3, 2 << 30, 1 << 30, 7200, Network(is_open=True), 3 << 19)
    assert expected == read(tmp_path, text)
    assert Room(Fraction(25)) == read(tmp_path, "room: 25%\n").room
    assert Room(size_bytes=500 << 20) == read(tmp_path, "room: 500MiB\n").room


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        ("memroy: 1GiB", (2, 1), "unknown-key"),
        ("cpus: 0", (2, 7), "out-of-range"),
        ("cpus: two", (2, 7), "wrong-type"),
        ("memory: 1MiB", (2, 9), "out-of-range"),
        ("memory: 1G", (2, 9), "bad-size"),
        ("timeout: 5", (2, 10), "wrong-type"),
        ("timeout: 5x", (2, 10), "bad-duration"),
        ("network: all", (2, 10), "bad-value"),
        ("room: x%", (2, 7), "bad-size"),
        ("size: 1G", (2, 7), "bad-size"),
        ("size: 1GiB\nroom: 10%", (3, 7), "conflicting-settings"),
        ("arguments: [a, 1]", (2, 16), "wrong-type"),
        ('arguments: ["a\\nb"]', (2, 13), "forbidden-character"),
        ("box: A/B", (2, 6), "bad-name"),
        ("- x", (2, 1), "bad-yaml"),
    ],
)
def test_each_fault_has_its_place(tmp_path: Path, text: str, place: tuple[int, int], code: str) -> None:
    """File, line, column and code."""
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text)
    (problem,) = caught.value.problems
    assert (str(tmp_path / "job.yaml"), *place, code) == (problem.file, problem.line, problem.column, problem.code)


def test_a_similar_key_is_named(tmp_path: Path) -> None:
    """As in a spec."""
    with pytest.raises(SpecError, match="did you mean memory"):
        read(tmp_path, "memroy: 1GiB")


def test_the_folder_to_start_from(tmp_path: Path) -> None:
    """Its settings are valid, with and without its examples. Its program is executable. It replaces nothing."""
    folder = write_folder(tmp_path / "new")
    assert JobFile(timeout_s=3600, network=Network()) == read_jobfile(folder)
    text = (folder / "job.yaml").read_text()
    for key in ("box", "arguments", "cpus", "memory", "scratch", "room"):
        text = text.replace(f"# {key}:", f"{key}:")
    (folder / "job.yaml").write_text(text)
    found = read_jobfile(folder)
    assert None not in (found.box, found.arguments, found.cpus, found.memory_bytes, found.scratch_bytes, found.room)
    assert 0o755 == (folder / "run-job").stat().st_mode & 0o777
    with pytest.raises(StateError) as caught:
        write_folder(folder)
    assert "file-exists" == caught.value.code


@pytest.mark.parametrize("name", examples())
def test_an_example_is_copied(tmp_path: Path, name: str) -> None:
    """Its box and its settings are valid, its program can be run, and nothing is replaced."""
    job = copy_example(name, tmp_path / "new")
    assert tmp_path / "new/job" == job
    assert name == load_box(tmp_path / "new/kimbox.yaml").name
    assert read_jobfile(job).vetting
    check_folder(job)
    assert (tmp_path / "new/README.md").is_file()
    with pytest.raises(StateError) as caught:
        copy_example(name, tmp_path / "new")
    assert "file-exists" == caught.value.code


@pytest.mark.parametrize("name", ["", ".", "..", "../boxes", "unknown"])
def test_an_unknown_example(tmp_path: Path, name: str) -> None:
    """The error lists those that exist."""
    with pytest.raises(UsageError) as caught:
        copy_example(name, tmp_path / "new")
    assert caught.value.hint == "there are: aluminium, source-extractor"
    assert not (tmp_path / "new").exists()


def test_the_image_of_the_example_is_what_its_program_writes(tmp_path: Path) -> None:
    """make-image gives equal bytes at each run: a FITS file of whole blocks, with the sky and the stars."""
    script = paths.examples_dir() / "source-extractor/make-image"
    for name in ("a", "b"):
        run.run([sys.executable, script, tmp_path / name])
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    assert data.startswith(b"SIMPLE  =                    T")
    assert 0 == len(data) % 2880
