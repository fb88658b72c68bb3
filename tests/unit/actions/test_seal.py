"""The life of a box that takes a role. The world is feigned; the guest's side of it is tested in guests."""

from __future__ import annotations

import io
import stat
import tarfile
from typing import Any

import attrs
import feignedworld
import makemachine
import pytest
from fakedriver import FakeDriver
from feignedworld import World, up
from makemachine import event, tell
from refused import refused

from kimbox.actions import observe, snapshot, stop
from kimbox.actions import seal as secure
from kimbox.actions.observe import state
from kimbox.actions.seal import Answers, Secret
from kimbox.actions.up import UpRequest
from kimbox.drivers.accelerator import KVM_WORKS
from kimbox.drivers.base import Launch
from kimbox.drivers.qemu.command import command
from kimbox.drivers.qemu.driver import invocation
from kimbox.errors import GuestError, StateError
from kimbox.guest.ssh import Answer
from kimbox.machine.bootmode import Choice
from kimbox.machine.record import Record, Sealed
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.render import sealing
from kimbox.render.quote import parse_assignments
from kimbox.spec.model import BootMode, Role, Secure

world = feignedworld.world  # a fixture

WORKER = Role("worker", None, (), (), (), ())
ANSWERS = Answers(WORKER, "a.org", "me", Secret("password", b"hunter2\n"))
SEALED = Sealed("worker", "a.org")


def command_line(world: World) -> list[str]:
    """QEMU's command line of the last start."""
    return command(invocation(world.machine, world.launches[-1], KVM_WORKS))


@attrs.define
class Script:
    """The guest's script, as it is called over ssh."""

    answer: Answer
    sent: list[dict[str, bytes]] = attrs.field(factory=list)

    def __call__(self, *_: object) -> Script:
        return self

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, command: str, *, timeout_s: float, stdin: bytes) -> Answer:
        assert command == "sudo -n /usr/lib/kimbox/secure"
        with tarfile.open(fileobj=io.BytesIO(stdin)) as archive:
            files = {info.name: archive.extractfile(info) for info in archive}
            self.sent.append({name: file.read() for name, file in files.items() if file})
        return self.answer


@pytest.fixture
def script(world: World, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A guest that takes what it is told, and tells at its next boot that it is sealed."""
    world.box = attrs.evolve(world.box, secure=Secure(None, (WORKER,), (), False, (), (), False))
    up(world)
    world.did.clear()
    script = Script(Answer(0, "", ""))
    monkeypatch.setattr(secure, "Guest", script)
    monkeypatch.setattr(secure, "endpoint", lambda _: None)
    sealed = event("sealed", manifest=world.digest, role="worker", site="a.org")
    world.boot = [event("booting", mode="resnap"), event("provisioning", manifest=world.digest), sealed]
    return script


def test_a_box_takes_its_role(world: World, script: Script) -> None:
    """It is sent answers, rules and a key of its own, restarts, and nothing is brought to it any more."""
    assert SEALED == secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    (sent,) = script.sent
    assert b"hunter2\n" == sent.pop("password")
    assert world.machine.data_key.read_bytes() == sent.pop("data_key")
    assert 0o600 == stat.S_IMODE(world.machine.data_key.stat().st_mode)
    told = parse_assignments(sent.pop("answers.env"))
    assert {"KIMBOX_ROLE": "worker", "KIMBOX_SITE": "a.org", "KIMBOX_USERNAME": "me"} == told
    assert {"policy.env", "outbound", "known_hosts", "operator_keys"} == set(sent)
    assert ["power button", "start"] == world.did
    assert (State.SEALED, SEALED) == (state(world.machine), world.machine.record().sealed)
    world.did.clear()
    assert State.SEALED is up(world)
    assert SEALED == secure.secure(UpRequest(Project(world.box)), ANSWERS)
    assert [] == world.did


def test_the_key_reaches_the_box_as_a_file(world: World, script: Script) -> None:
    """No word of QEMU's command line holds it, nor the password."""
    secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    words = command_line(world)
    given = words[words.index("-fw_cfg") + 1]
    assert f"name=opt/io.systemd.credentials/kimbox.data_key,file={world.machine.data_key}" == given
    assert "kimbox.sealed=yes" in " ".join(words)
    key = world.machine.data_key.read_text().strip()
    assert [] == [word for word in words if key in word or "hunter2" in word]


def test_a_driver_that_cannot_seal(world: World, script: Script) -> None:
    """The box is sent nothing."""
    world.driver.features = attrs.evolve(world.driver.features, sealing=False)
    with refused(StateError, "unsupported-by-driver", verb="secure", name="tiny", driver="qemu"):
        secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert ([], [], State.READY) == (script.sent, world.did, state(world.machine))


@pytest.mark.parametrize(("code", "what"), [(3, "was refused"), (1, "could not take its role")])
def test_a_site_that_refuses(world: World, script: Script, code: int, what: str) -> None:
    """The box is as it was, and its own words are told."""
    script.answer = Answer(code, "", "secure: the gateway g does not accept me\n")
    with pytest.raises(GuestError) as caught:
        secure.secure(UpRequest(Project(world.box)), ANSWERS)
    assert f"tiny {what}: the gateway g does not accept me" == caught.value.message
    assert ([], None, State.READY) == (world.did, world.machine.record().sealed, state(world.machine))


def test_an_interrupted_try_is_gone_on_with(world: World, script: Script) -> None:
    """The guest had taken its role already: the key that it has locked with stays."""
    world.machine.data_key.write_text("the first\n")
    script.answer = Answer(secure.ALREADY, "", "secure: the box is secured already\n")
    assert SEALED == secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert "the first\n" == world.machine.data_key.read_text()


def test_the_answers_of_an_interrupted_try_hold(world: World, script: Script) -> None:
    """The guest says what it became then; what is no such word is not believed."""
    for said in ("KIMBOX_ROLE=$(id)\n", "\0"):
        script.answer = Answer(secure.ALREADY, said, "")
        with pytest.raises(GuestError, match="not which"):
            secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    earlier = sealing.answers(attrs.evolve(WORKER, name="director"), "b.org", "you").decode()
    script.answer = Answer(secure.ALREADY, earlier, "")
    assert Sealed("director", "b.org") == secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)


def test_a_box_that_was_not_restarted_is_open_and_says_so(
    world: World, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kimbox died between the two: `up` refuses, and `secure` goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(secure, "close", lambda _: None)
        secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert (State.READY, SEALED) == (state(world.machine), world.machine.record().sealed)
    with pytest.raises(StateError, match="is open until it restarts"):
        up(world)
    secure.close(UpRequest(Project(world.box), timeout_s=5))
    assert (["power button", "start"], State.SEALED) == (world.did, state(world.machine))
    secure.close(UpRequest(Project(world.box), timeout_s=5))
    assert ["power button", "start"] == world.did


def test_its_memory_does_not_reach_the_disk(world: World, script: Script) -> None:
    """Whatever its state: a failed one has its credentials there as well. No snapshot opens it either."""
    secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    tell(world.machine, event("failed", manifest=world.digest, kind="secure", name="secure", exit=3, reason="x"))
    assert State.FAILED is state(world.machine)
    for act in (
        lambda: stop.suspend(world.machine),
        lambda: snapshot.save(world.machine, "x"),
        lambda: snapshot.restore(world.machine, "open"),
    ):
        with pytest.raises(StateError, match="sealed as worker of"):
            act()


def test_a_record_that_was_not_written(world: World, script: Script) -> None:
    """kimbox died before it had noted the role: the box tells it."""
    stop.halt(world.machine)
    up(world)
    assert State.SEALED is up(world)
    assert SEALED == world.machine.record().sealed


def test_a_box_that_fails_to_seal_itself(world: World, script: Script) -> None:
    """What failed is told, and that nobody can go in to look."""
    failed = event("failed", manifest=world.digest, kind="secure", name="secure", exit=3, reason="no gateway")
    world.boot[-1] = failed
    with pytest.raises(GuestError) as caught:
        secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert "secure secure (exit status 3): no gateway" in caught.value.message
    assert "--unseal" in str(caught.value.hint)
    with pytest.raises(StateError, match="sealed as worker of"):
        observe.reach(world.machine)


@pytest.mark.parametrize(("status", "reason"), [("done", ""), ("failed", "the gateway does not accept me")])
def test_new_credentials(
    world: World, script: Script, monkeypatch: pytest.MonkeyPatch, status: str, reason: str
) -> None:
    """They go through a file that is there for one start."""
    secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    world.boot.insert(1, event("rotated", status=status, reason=reason))
    seen: list[Any] = []
    start = FakeDriver.start

    def note(driver: FakeDriver, launch: Launch) -> Record:
        with tarfile.open(world.machine.rotate_file) as archive:
            seen.append(archive.getnames())
        return start(driver, launch)

    monkeypatch.setattr(FakeDriver, "start", note)
    wanted = UpRequest(Project(world.box), timeout_s=5)
    if reason:
        with pytest.raises(GuestError, match=reason):
            secure.rotate(wanted, "me", ANSWERS.secret)
    else:
        secure.rotate(wanted, "me", ANSWERS.secret)
    assert [["answers.env", "nonce", "password"]] == seen
    assert not world.machine.rotate_file.exists()


def test_unsealing(world: World, script: Script) -> None:
    """The key goes first; the box boots its real root and says that it is open; interrupted, it may be asked again."""
    secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    with refused(StateError, "box-sealed", name="tiny", site="a.org"):
        up(world, boot=Choice(BootMode.MAINTAIN))
    stop.halt(world.machine)
    world.boot = [event("booting", mode="maintain"), event("ready", manifest="", mode="maintain")]
    with pytest.raises(GuestError, match="has not said that it is open"):
        secure.unseal(UpRequest(Project(world.box), timeout_s=5))
    assert (False, True) == (world.machine.data_key.exists(), world.machine.unseal_mark.exists())
    with refused(StateError, "unseal-interrupted", name="tiny"):
        up(world)
    words = " ".join(command_line(world))
    assert ("kimbox.unseal=yes" in words, "kimbox.sealed" in words) == (True, False)
    world.boot.insert(1, event("unsealed"))
    secure.unseal(UpRequest(Project(world.box), timeout_s=5))
    assert (None, False) == (world.machine.record().sealed, world.machine.unseal_mark.exists())
    with pytest.raises(StateError, match="is not sealed"):
        secure.unseal(UpRequest(Project(world.box)))


def test_another_manifest_does_not_reach_it(world: World, script: Script) -> None:
    """It is ready all the same, and the user is told."""
    secure.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    stop.halt(world.machine)
    world.boot[-1] = event("sealed", manifest="9" * 64, role="worker", site="a.org")
    assert State.HALTED is up(world)
    assert "deliver" not in world.did
    tell(world.machine, event("jobs", done="3"))
    assert State.SEALED is state(world.machine)
    assert makemachine.BOOT == world.machine.boot_events()[-1].boot
