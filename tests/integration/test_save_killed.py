"""kill -9 of kimbox at each operation of its store: no save is lost, none is wrong, and the next run succeeds."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import attrs
import makesaved
import pytest
import savechild
from clirun import Kimbox, environment, result
from clirun import kimbox as kimbox
from clirun import world as world
from makesaved import MIB

from kimbox.machine.folder import Machine
from kimbox.machine.life import Life, Lifetime, read_life
from kimbox.machine.record import Ended
from kimbox.run import Completed, run

#: A process is killed at every third operation, and at each one in `script/test soak`.
STEPS = [3, pytest.param(1, marks=pytest.mark.soak)]

#: The same for verbs that save as `save` does: every seventh.
FEW_STEPS = [7, pytest.param(1, marks=pytest.mark.soak)]


def child(world: Path, number: int, *arguments: str, spot: str = "before") -> Completed:
    """Runs kimbox, and kills it at this operation."""
    path = os.pathsep.join(sys.path)
    argv = [sys.executable, savechild.__file__, str(number), spot, *arguments]
    return run(argv, check=False, env=environment(world, PYTHONPATH=path), cwd=world / "work")


def operations(done: Completed) -> int:
    """The number of operations of a run that was not killed."""
    assert done.ok, done.stderr
    return int(done.stderr.rpartition("operations ")[2])


@pytest.fixture
def machine(world: Path) -> Machine:
    """A halted box with two saves in the store, and changes that the third will have."""
    return makesaved.make_saved(world, user_bytes=MIB)


def whole(kimbox: Kimbox, world: Path, store: Path, numbers: list[int]) -> None:
    """Checks that these saves, and no others, are listed, and that each can be used."""
    listed = result(kimbox("--json", "save", "--list", str(store))[1], "save")["saves"]
    assert (numbers, {None}) == ([one["number"] for one in listed], {one["problem"] for one in listed})
    for number in numbers:
        code, out, err = kimbox("--json", "create", "copy", "--from", str(store), "--save", str(number))
        assert 0 == code, out + err
        expected = b"turn %d" % number if number < 3 else b"changed"
        assert expected == makesaved.get(Machine("copy"), world, "persistent/turn")
        assert 0 == kimbox("destroy", "-y", "copy")[0]


@pytest.mark.parametrize("step", STEPS)
def test_save_killed(step: int, kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """The former saves stay until the new one is there. The run after that is complete, and removes what was left."""
    store = world / "store"
    for turn in (1, 2):
        makesaved.write(machine, world, {"persistent/turn": b"turn %d" % turn})
        assert 0 == kimbox("save", "tiny", str(store))[0]
    makesaved.write(machine, world, {"persistent/turn": b"changed", "persistent/more": os.urandom(MIB)})
    probe = world / "probe"
    run(["cp", "-a", store, probe])
    count = operations(child(world, 0, "save", "tiny", str(probe), "--keep", "2"))
    assert count > 20
    for number in range(1, count + 1, step):
        place = world / f"store-{number}"
        run(["cp", "-a", store, place])
        spot = "after" if number % 2 else "before"
        killed = child(world, number, "save", "tiny", str(place), "--keep", "2", spot=spot)
        assert -signal.SIGKILL == killed.code, killed.stderr
        is_there = (place / "saves/000003.json").exists()
        if not is_there:
            assert {"000001.json", "000002.json"} <= {path.name for path in (place / "saves").iterdir()}
        assert 0 == kimbox("save", "tiny", str(place), "--keep", "2")[0]
        names = {path.name for path in (place / "saves").glob("*.json")}
        assert names == ({"000004.json", "000003.json"} if is_there else {"000003.json", "000002.json"})
    last = [4, 3] if is_there else [3, 2]
    whole(kimbox, world, place, last)
    assert not (machine.folder / "save").exists()


@pytest.mark.parametrize("step", FEW_STEPS)
@pytest.mark.parametrize("verb", ["stop", "expire"])
def test_the_end_of_a_box_killed(verb: str, step: int, kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """After `stop` or the end of a lifetime was killed anywhere, the next run saves the box. Its disk stays."""
    spec = world / "kimbox.yaml"
    spec.write_text(json.dumps(makesaved.SPEC))
    disk = machine.disk.read_bytes()

    def prepare(place: Path) -> tuple[str, ...]:
        """Makes a halted box whose lifetime is over, and whose store is empty. Returns the command."""
        machine.write_record(attrs.evolve(machine.record(), source=str(spec), ended=Ended.HALTED, saved=None))
        Life(Lifetime.begin(1, time.time() - 60, from_spec=True), str(place)).write(machine.folder)
        return ("stop", "tiny", "--url", str(place)) if verb == "stop" else ("expire",)

    count = operations(child(world, 0, *prepare(world / "probe")))
    assert count > 15
    for number in range(1, count + 1, step):
        place = world / f"store-{number}"
        words = prepare(place)
        killed = child(world, number, *words, spot="after" if number % 2 else "before")
        assert -signal.SIGKILL == killed.code, killed.stderr
        assert disk == machine.disk.read_bytes()
        before = {path.name for path in (place / "saves").glob("0*.json")}
        code, out, err = kimbox(*words)
        assert 0 == code, out + err
        ended = read_life(machine).lifetime
        assert ended
        assert ended.ended_at
        assert before <= {path.name for path in (place / "saves").glob("0*.json")} != set()
        listed = result(kimbox("--json", "save", "--list", str(place))[1], "save")["saves"]
        assert {None} == {one["problem"] for one in listed}
    assert 0 == kimbox("create", "copy", "--from", str(place))[0]
    assert MIB == len(makesaved.get(Machine("copy"), world, "persistent/mine"))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("verb", ["create", "start"])
def test_create_killed(verb: str, step: int, kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """No machine appears before it is complete, and the next run makes it."""
    store = world / "store"
    assert 0 == kimbox("save", "tiny", str(store))[0]

    def words(name: str) -> tuple[str, ...]:
        return ("create", name, "--from", str(store)) if verb == "create" else ("start", str(store), "--name", name)

    count = operations(child(world, 0, *words("probe")))
    for number in range(1, count + 1, step):
        killed = child(world, number, *words("other"), spot="after" if number % 2 else "before")
        assert -signal.SIGKILL == killed.code, killed.stderr
        assert not Machine("other").exists
    assert 0 == kimbox("create", "other", "--from", str(store))[0]
    assert MIB == len(makesaved.get(Machine("other"), world, "persistent/mine"))
    assert not Machine("other").unfinished.exists()
