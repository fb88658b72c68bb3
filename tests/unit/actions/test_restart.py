"""A box whose spec has changed, and the verbs that halt a box and start it again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import clirun
import feignedworld
import makebox
import makemachine
import pytest
from clirun import Kimbox, error
from feignedworld import World, up
from refused import refused

from kimbox.actions import packagedisk, seal, stop
from kimbox.actions import up as starting
from kimbox.actions.diff import Side, compare
from kimbox.actions.observe import state
from kimbox.actions.seal import Answers, Secret
from kimbox.actions.up import UpRequest
from kimbox.errors import KimboxError, SpecError, StateError, UsageError
from kimbox.lock.lockfile import Lock
from kimbox.machine.bootmode import Choice
from kimbox.machine.record import Ended, Purpose, Sealed
from kimbox.machine.shape import shape_changes
from kimbox.machine.state import State
from kimbox.project import plan
from kimbox.project.project import Project
from kimbox.spec.model import BootMode, Display, Forward, Mount, Network, Role, Scratch

kimbox, world = clirun.kimbox, feignedworld.world  # fixtures


def test_the_changes_of_a_shape(tmp_path: Path) -> None:
    """Everything that applies at the next start. A port that kimbox has chosen is no change, nor is a new machine."""
    box = makebox.make_box(tmp_path)
    box = attrs.evolve(box, cpus=2, memory_bytes=1 << 30, forwards=(Forward(8888, None),), scratch=None)
    record = attrs.evolve(makemachine.RECORD, cpus=2, memory_bytes=1 << 30)
    assert [] == shape_changes(record, box)
    forwards = (Forward(8888, 8080), Forward(9999, None))
    changed = attrs.evolve(box, cpus=4, memory_bytes=768 << 20, forwards=forwards, watchdog_s=60)
    changed = attrs.evolve(changed, scratch=Scratch(1 << 30, "/staging"), auto_forwards=True, display=Display.VNC)
    changed = attrs.evolve(changed, networks=(Network("lan", "10.57.0.0/24", (("tiny", "10.57.0.1"),)),))
    assert [] == shape_changes(makemachine.RECORD, changed)
    assert [
        "cpus 2 -> 4",
        "memory 1.0 GiB -> 768 MiB",
        "forward of port 8888 127.0.0.1:20023 -> 127.0.0.1:8080",
        "forward of port 9999 none -> auto",
        "scratch space none -> 1.0 GiB at /staging",
        "watchdog none -> 60 s",
        "networks none -> lan (tiny=10.57.0.1)",
        "display none -> vnc",
        "automatic forwards none -> on",
    ] == [change.text for change in shape_changes(record, changed)]
    assert ["forward of port 8888 127.0.0.1:20023 -> none"] == [
        change.text for change in shape_changes(record, attrs.evolve(box, forwards=()))
    ]


def test_a_clone_has_neither_folders_nor_networks(tmp_path: Path) -> None:
    """So they are no change of its shape."""
    box = attrs.evolve(
        makebox.make_box(tmp_path),
        cpus=2,
        memory_bytes=1 << 30,
        mounts=(Mount(Path("/srv"), "/data"),),
        networks=(Network("lan", "10.57.0.0/24", (("tiny", "10.57.0.1"),)),),
        scratch=None,
    )
    record = attrs.evolve(makemachine.RECORD, cpus=2, memory_bytes=1 << 30)
    names = {change.name for change in shape_changes(record, box)}
    assert {"mount at /data", "networks"} <= names
    of_clone = {change.name for change in shape_changes(attrs.evolve(record, purpose=Purpose.CLONE), box)}
    assert names - {"mount at /data", "networks"} == of_clone


def test_diff_has_the_shape(tmp_path: Path) -> None:
    """If a box is compared with its own spec. The spec of another box, or a lock alone, has no shape to compare."""
    lock = Lock("d" * 64, "e" * 64, {})
    box = makebox.make_box(tmp_path)
    record = attrs.evolve(makemachine.RECORD, cpus=box.cpus + 1, memory_bytes=box.memory_bytes, forwards={})
    ours = Side("the box tiny", lock, record=record)
    compared = compare(ours, Side("kimbox.lock", lock, box=box))
    assert (True, ["cpus"]) == (compared.differs, [change.name for change in compared.shape])
    for other in (Side("kimbox.lock", lock), Side("kimbox.lock", lock, box=attrs.evolve(box, name="other"))):
        assert not compare(ours, other).differs


def test_up_warns_of_a_changed_shape(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the box runs. A start applies the changes."""
    warned: list[str] = []
    up(world)
    monkeypatch.setattr(starting.log, "warn", warned.append)
    before = world.box
    world.box = attrs.evolve(before, cpus=before.cpus + 1)
    up(world)
    cpus = f"cpus {before.cpus} -> {before.cpus + 1}"
    assert [f"the spec of tiny has changed ({cpus}): `kimbox reload tiny` applies that"] == warned
    stop.halt(world.machine)
    world.boot = [*world.boot[:-1], *world.after]
    up(world)
    up(world)
    assert 1 == len(warned)


@contextlib.contextmanager
def bound() -> Iterator[int]:
    """A port of this host that another program has."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_restart_is_planned_while_the_box_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port in use, a fault of the lock and another owner are found. The box may keep its own ports."""
    up(world)
    own = world.machine.record().ssh_port
    world.box = attrs.evolve(world.box, forwards=(Forward(80, own),))
    assert starting.plan_restart(UpRequest(Project(world.box))).plan
    with bound() as port:
        world.box = attrs.evolve(world.box, forwards=(Forward(80, port),))
        with refused(StateError, "port-in-use", name="tiny", host=str(port), guest="80", owner=""):
            starting.plan_restart(UpRequest(Project(world.box)))
    world.box.source.touch()  # if it were gone, the other spec could be the same one, moved
    elsewhere = attrs.evolve(world.box, forwards=(), source=world.box.source.with_name("other.yaml"))
    with pytest.raises(StateError, match="belongs to the spec"):
        starting.plan_restart(UpRequest(Project(elsewhere)))
    monkeypatch.setattr(plan, "lock_for", fail)
    with pytest.raises(SpecError):
        starting.plan_restart(UpRequest(Project(attrs.evolve(world.box, forwards=()))))
    assert State.READY is state(world.machine)


def fail(_: Project) -> None:
    raise SpecError.at(Path("kimbox.lock"), "it does not match", code="lock-mismatch")


def test_up_uses_the_plan_of_the_restart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the halt nothing is resolved again, which could fail then."""
    up(world)
    request = starting.plan_restart(UpRequest(Project(world.box), timeout_s=5))
    stop.halt(world.machine)
    world.boot = [*world.boot[:-1], *world.after]
    monkeypatch.setattr(plan, "lock_for", fail)
    assert State.HALTED is starting.up(request)
    assert State.READY is state(world.machine)


def test_from_scratch_is_refused_before_anything_is_halted(world: World) -> None:
    """With another mode than resnap, also that of the spec, and for a driver whose disks are not kimbox's own."""
    up(world)
    choice = Choice(from_scratch=True)
    for request in (
        UpRequest(Project(world.box), boot=choice),
        UpRequest(Project(world.box), boot=attrs.evolve(choice, mode=BootMode.MAINTAIN)),
    ):
        with refused(UsageError, "usage", option="--from-scratch"):
            starting.plan_restart(request)
    request = UpRequest(Project(world.box), boot=attrs.evolve(choice, mode=BootMode.RESNAP))
    starting.plan_restart(request)
    world.driver.features = attrs.evolve(world.driver.features, own_disk=False)
    with refused(StateError, "unsupported-by-driver", name="tiny"):
        starting.plan_restart(request)


def test_sealing_and_unsealing_are_planned_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fault of the lock no role is taken, no key is removed, and nothing is halted."""
    world.box = attrs.evolve(world.box, boot=BootMode.RESNAP)
    up(world)
    monkeypatch.setattr(plan, "lock_for", fail)
    monkeypatch.setattr(seal, "_take_role", lambda *_: pytest.fail("it took the role"))
    request = UpRequest(Project(world.box), timeout_s=5)
    role = Role("worker", None, (), (), (), ())
    with pytest.raises(SpecError):
        seal.secure(request, Answers(role, "site", "user", Secret("password", b"x")))
    assert (State.READY, None) == (state(world.machine), world.machine.record().sealed)
    world.machine.write_record(attrs.evolve(world.machine.record(), sealed=Sealed("worker", "site")))
    world.machine.data_key.write_text("key")
    for change in (lambda: seal.unseal(request), lambda: seal.rotate(request, "user", Secret("password", b"x"))):
        with pytest.raises(KimboxError):
            change()
        assert world.machine.data_key.exists()
        assert not world.machine.unseal_mark.exists()
        assert world.machine.running


def test_reload_halts_nothing_if_the_plan_fails(kimbox: Kimbox, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the plan. A suspended box is refused: it would resume with its old shape."""
    up(world)
    calls: list[object] = []
    monkeypatch.setattr(stop, "halt", calls.append)
    monkeypatch.setattr("kimbox.cli.target.project", lambda *_, **__: Project(world.box))
    monkeypatch.setattr(plan, "lock_for", fail)
    code, out, _ = kimbox("--json", "reload")
    assert (3, []) == (code, calls)
    world.end_process()
    world.machine.write_record(attrs.evolve(world.machine.record(), ended=Ended.SUSPENDED))
    code, out, _ = kimbox("--json", "reload")
    assert (5, "wrong-state", []) == (code, error(out, "reload")["code"], calls)
    assert "kimbox resume tiny" in error(out, "reload")["hint"]


@pytest.mark.parametrize(
    ("ended", "now", "commands"),
    [
        (None, "crashed", ["kimbox up tiny", "kimbox halt tiny"]),
        (Ended.SUSPENDED, "suspended", ["kimbox resume tiny", "kimbox halt tiny"]),
    ],
)
def test_the_hints_lead_to_a_halted_box(
    kimbox: Kimbox, world: World, ended: Ended | None, now: str, commands: list[str]
) -> None:
    """`halt` alone does not unmount the disk of a box that crashed, or that is suspended."""
    machine = makemachine.make_machine(ended=ended)
    with refused(StateError, "wrong-state", verb="package", name="tiny", state=now) as not_halted:
        packagedisk._check_halted(machine)
    _, out, err = kimbox("halt", "tiny")
    assert all(f"`{command}`" in str(not_halted.value.hint) for command in commands)
    assert f"`{commands[0]}`" in out + err
