"""A spec with several boxes on the command line: by name, all of them, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import attrs
import clirun
import makemachine
import pytest
from clirun import Kimbox, error, result

from kimbox import paths
from kimbox.actions import several
from kimbox.machine import keys
from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed
from kimbox.machine.state import State
from kimbox.spec.model import Gateway

kimbox, world = clirun.kimbox, clirun.world  # fixtures

SITE = """\
kimbox: 1
image: {location: ./disk.raw, digest: "sha256:%s"}
boxes:
  worker: {needs: [director], memory: 1GiB}
  director: {cpus: 1}
"""


@pytest.fixture(autouse=True)
def spec(world: Path) -> Path:
    """A spec with two boxes in the current folder."""
    path = world / "work/kimbox.yaml"
    path.write_text(SITE % ("0" * 64))
    return path


def make(spec: Path, *names: str) -> None:
    """Makes machines of the boxes of the spec."""
    for number, name in enumerate(names):
        makemachine.make_machine(name, source=str(spec), ssh_port=20100 + number)


def test_a_box_by_its_name(kimbox: Kimbox, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first `up` from the folder or with -f, later from anywhere."""
    seen: list[tuple[str, Path, int]] = []

    def up(request: Any) -> State:
        box = request.project.box
        seen.append((box.name, box.source, box.memory_bytes))
        if not request.machine.exists:
            make(spec, box.name)
        request.machine.write_record(attrs.evolve(request.machine.record(), settings=box.settings))
        return State.ABSENT

    monkeypatch.setattr("kimbox.actions.up.up", up)
    assert 0 == kimbox("up", "worker")[0]
    monkeypatch.chdir("/")
    assert 0 == kimbox("up", "director", "--file", str(spec))[0]
    assert 0 == kimbox("up", "worker", "--set", "memory=2GiB")[0]
    assert 0 == kimbox("up", "worker")[0]
    assert [("worker", spec, 1 << 30), ("director", spec, 2 << 30)] == seen[:2]
    assert [2 << 30, 2 << 30] == [memory for _, _, memory in seen[2:]]


@pytest.mark.parametrize("words", [("exec", "--", "true"), ("ssh",), ("reload",), ("provision",), ("build",)])
def test_a_verb_for_one_box(kimbox: Kimbox, words: tuple[str, ...]) -> None:
    """It lists the names."""
    code, out, _ = kimbox("--json", *words)
    failed = error(out, words[0])
    assert (2, "several-boxes", "director worker") == (code, failed["code"], failed["fields"]["names"])


def test_a_name_that_the_spec_does_not_have(kimbox: Kimbox, spec: Path) -> None:
    """The error has a similar one."""
    failed = error(kimbox("--json", "up", "workr", "--file", str(spec))[1], "up")
    assert ("box-not-found", "did you mean worker?") == (failed["code"], failed["hint"])


def test_status_validate_and_lock_of_all(kimbox: Kimbox, spec: Path) -> None:
    """In the order of the needs; each box has a lock."""
    make(spec, "director")
    found = result(kimbox("--json", "status")[1], "status")["boxes"]
    assert [("director", "halted"), ("worker", "absent")] == [(box["name"], box["state"]) for box in found]
    assert ["director", "worker"] == [b["name"] for b in result(kimbox("--json", "validate")[1], "validate")["specs"]]
    assert 0 == kimbox("lock")[0]
    assert ["kimbox.director.lock", "kimbox.worker.lock"] == sorted(path.name for path in spec.parent.glob("*.lock"))
    assert 0 == kimbox("lock", "--check")[0]


def test_faults_of_all_boxes(kimbox: Kimbox, spec: Path) -> None:
    """One run reports each, once, with its place."""
    spec.write_text("kimbox: 1\ncpus: x\nboxes:\n  a: {memory: 1GB}\n  b: {memroy: 1GiB}\n")
    code, out, _ = kimbox("--json", "validate")
    places = {(problem["code"], problem["line"]) for problem in error(out, "validate")["problems"]}
    assert (3, {("wrong-type", 2), ("bad-size", 4), ("unknown-key", 5)}) == (code, places)


def test_another_box_of_the_same_name(kimbox: Kimbox, spec: Path, world: Path) -> None:
    """All boxes of a spec are those of the spec: a machine of another spec is not touched."""
    makemachine.make_machine("director", source=str(world / "elsewhere.yaml"))
    (world / "elsewhere.yaml").write_text("kimbox: 1\nname: director\n")
    failed = error(kimbox("--json", "status")[1], "status")
    assert "name-taken" == failed["code"]


def test_destroy_of_all(kimbox: Kimbox, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that exist, the one that needs others first. Without a terminal it needs -y."""
    assert "box-not-found" == error(kimbox("--json", "destroy", "-y")[1], "destroy")["code"]
    make(spec, "director", "worker")
    assert "no-terminal" == error(kimbox("--json", "destroy")[1], "destroy")["code"]
    order: list[str] = []
    monkeypatch.setattr(
        several, "runner_of", lambda *_: lambda name, _: order.append(name) or {"result": {"state": "absent"}}
    )
    code, out, err = kimbox("destroy", "-y")
    assert (0, ["worker", "director"]) == (code, order), err
    assert "worker is absent\ndirector is absent\n" == out


def test_children_get_the_options(kimbox: Kimbox, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `up` and the global ones."""
    seen: list[list[str]] = []

    def runner_of(words: Any, options: Any, path: Path) -> Any:
        seen.append([*words, *options])
        return lambda name, _: {"result": {"state": "ready"}}

    monkeypatch.setattr(several, "runner_of", runner_of)
    assert (
        0
        == kimbox("-q", "--timeout", "5m", "up", "--locked", "--boot", "keep", "--set", "cpus=1", "--set", "job=true")[
            0
        ]
    )
    words = ["up", "--boot", "keep", "--locked", "--set", "cpus=1", "--set", "job=true", "--quiet", "--timeout", "300s"]
    assert words == seen[0]


def test_real_children(kimbox: Kimbox, spec: Path) -> None:
    """`halt` of halted machines, each in a process of its own."""
    make(spec, "director", "worker")
    for name in ("director", "worker"):
        assert Machine(name).exists
    code, out, err = kimbox("--json", "halt")
    assert 0 == code, out + err
    assert ["worker", "director"] == [box["name"] for box in result(out, "halt")["boxes"]]
    Machine("worker").record_file.write_text("{}")
    failed = error(kimbox("--json", "halt")[1], "halt")
    assert ("several-failed", {"worker": "file-damaged"}) == (failed["code"], failed["fields"])


def test_the_pipeline_is_secured_with_one_command(
    kimbox: Kimbox, spec: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The director first; then the worker, with the same answers, and with the host key of its director."""
    shutil.copy(paths.examples_dir() / "pipeline/kimbox.yaml", spec)
    make(spec, "director", "worker")
    given: list[tuple[Any, ...]] = []

    def secure(request: Any, answers: Any) -> Sealed:
        gateway, name = answers.role.gateway, request.project.name
        given.append((name, answers.role.name, answers.site, answers.username, answers.secret.data, gateway))
        keys.pin_host_key(request.machine, makemachine.HOST_KEY)
        return Sealed(answers.role.name, answers.site)

    monkeypatch.setattr("kimbox.actions.seal.secure", secure)
    (world / "password").write_text("s3cr3t\n")
    words = ("secure", "--username", "alice", "--password-file", str(world / "password"))
    code, out, err = kimbox("--json", *words)
    assert 0 == code, out + err
    assert ["director", "worker"] == [box["role"] for box in result(out, "secure")["boxes"]]
    gateway = Gateway("10.57.0.1", 22, (makemachine.HOST_KEY,), "director")
    answers = ("openkim.org", "alice", b"s3cr3t\n")
    assert [("director", "director", *answers, None), ("worker", "worker", *answers, gateway)] == given
    assert "usage" == error(kimbox("--json", *words, "--rotate")[1], "secure")["code"]
