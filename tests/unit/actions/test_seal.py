"""Sealing, new credentials and unsealing, with a fake driver. tests/guest tests the scripts in the guest."""

from __future__ import annotations

import io
import stat
import tarfile
from itertools import pairwise
from pathlib import Path

import attrs
import feignedworld
import makemachine
import pytest
from fakedriver import FakeDriver
from feignedworld import World, up
from makemachine import event, tell
from refused import refused

from kimbox.actions import observe, seal, snapshot, stop
from kimbox.actions.observe import state
from kimbox.actions.seal import Answers, Secret
from kimbox.actions.up import UpRequest, plan_restart
from kimbox.drivers.accelerator import KVM_WORKS
from kimbox.drivers.base import Launch
from kimbox.drivers.qemu.command import command
from kimbox.drivers.qemu.driver import invocation
from kimbox.errors import GuestError, StateError
from kimbox.guest.ssh import Answer
from kimbox.machine.bootmode import Choice
from kimbox.machine.record import Ended, Known, PutBack, Record, Sealed
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
    """A fake of the guest's script: returns an answer, and keeps the files that it was sent."""

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
    """A guest that takes its role, and reports at its next boot that it is sealed."""
    world.box = attrs.evolve(world.box, secure=Secure(None, (WORKER,), (), False, (), (), False, keep=True))
    up(world)
    world.did.clear()
    script = Script(Answer(0, "", ""))
    monkeypatch.setattr(seal, "Guest", script)
    monkeypatch.setattr(seal, "endpoint", lambda _: None)
    sealed = event("sealed", manifest=world.digest, role="worker", site="a.org")
    world.boot = [event("booting", mode="resnap"), event("provisioning", manifest=world.digest), sealed]
    return script


def test_a_box_takes_its_role(world: World, script: Script) -> None:
    """It gets answers, rules and a data key, and restarts. A later `secure` or `up` sends nothing."""
    assert SEALED == seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    (sent,) = script.sent
    assert b"hunter2\n" == sent.pop("password")
    assert world.machine.data_key.read_bytes() == sent.pop("data_key")
    assert 0o600 == stat.S_IMODE(world.machine.data_key.stat().st_mode)
    answers = parse_assignments(sent.pop("answers.env"))
    assert {"KIMBOX_ROLE": "worker", "KIMBOX_SITE": "a.org", "KIMBOX_USERNAME": "me"} == answers
    assert {"policy.env", "outbound", "known_hosts", "operator_keys"} == set(sent)
    assert ["power button", "put back", "start"] == world.did
    assert (State.SEALED, SEALED) == (state(world.machine), world.machine.record().sealed)
    world.did.clear()
    assert State.SEALED is up(world)
    assert SEALED == seal.secure(UpRequest(Project(world.box)), ANSWERS)
    assert [] == world.did


def test_the_key_reaches_the_box_as_a_file(world: World, script: Script) -> None:
    """QEMU's command line contains neither the key nor the password."""
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    words = command_line(world)
    given = [after for word, after in pairwise(words) if word == "-fw_cfg"]
    assert f"name=opt/io.systemd.credentials/kimbox.data_key,file={world.machine.data_key}" in given
    assert "kimbox.sealed=yes" in " ".join(words)
    key = world.machine.data_key.read_text().strip()
    assert [] == [word for word in words if key in word or "hunter2" in word]


def test_a_driver_that_cannot_seal(world: World, script: Script) -> None:
    """Nothing is sent to the box."""
    world.driver.features = attrs.evolve(world.driver.features, sealing=False)
    with refused(StateError, "unsupported-by-driver", verb="secure", name="tiny", driver="qemu"):
        seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert ([], [], State.READY) == (script.sent, world.did, state(world.machine))


def test_each_start_puts_the_disk_back(world: World, script: Script) -> None:
    """Before the boot mode is set and the box starts. The record has the time and what the last run had changed."""
    world.changed = ("LV root",)
    request = UpRequest(Project(world.box), timeout_s=5)
    seal.secure(request, ANSWERS)
    first = world.machine.record().put_back
    assert first is not None
    assert (() == first.changed, world.machine.snapshots.exists()) == (True, False)
    stop.halt(world.machine)
    world.did.clear()
    up(world)
    second = world.machine.record().put_back
    assert (["put back", "start"], second) == (world.did, PutBack(second.at if second else "", ("LV root",)))
    assert world.launches[-1].record.put_back == second
    world.end_process()
    world.machine.write_record(attrs.evolve(world.machine.record(), ended=Ended.SUSPENDED))
    world.did.clear()
    with refused(StateError, "box-sealed", name="tiny", verb="resume"):
        up(world)
    assert [] == world.did


def test_a_sealed_box_does_not_keep_its_root(world: World, script: Script) -> None:
    """Unless its spec allows it: in the mode of the spec and of the command line, when it is sealed and later."""
    assert world.box.secure
    world.box = attrs.evolve(world.box, boot=BootMode.KEEP, secure=attrs.evolve(world.box.secure, keep=False))
    with refused(StateError, "keep-not-allowed", name="tiny", mode="keep"):
        seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert ([], [], None) == (script.sent, world.did, world.machine.record().sealed)
    world.box = attrs.evolve(world.box, boot=BootMode.RESNAP)
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    world.did.clear()
    for choice in (Choice(BootMode.KEEP), Choice(BootMode.KEEP, once=True)):
        with refused(StateError, "keep-not-allowed", name="tiny", mode="keep"):
            plan_restart(UpRequest(Project(world.box), boot=choice))
    assert [] == world.did
    stop.halt(world.machine)
    for choice in (Choice(BootMode.KEEP), Choice(BootMode.KEEP, once=True)):
        with refused(StateError, "keep-not-allowed", name="tiny", mode="keep"):
            up(world, boot=choice)
    world.box = attrs.evolve(world.box, secure=attrs.evolve(world.box.secure, keep=True) if world.box.secure else None)
    up(world, boot=Choice(BootMode.KEEP))
    assert ["power button", "put back", "start"] == world.did


def test_a_sealed_box_whose_spec_has_no_boot_mode_boots_resnap(world: World, script: Script) -> None:
    """The default `keep` is that of a box that is not sealed. A spec with `secure: {keep: true}` keeps it."""
    assert world.box.secure
    cannot_keep, can_keep = (attrs.evolve(world.box.secure, keep=keep) for keep in (False, True))
    world.box = attrs.evolve(world.box, boot=BootMode.KEEP, has_boot_key=False, secure=cannot_keep)
    world.modes.clear()
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    up(world)
    assert [("resnap", None)] == world.modes
    stop.halt(world.machine)
    up(world)
    with refused(StateError, "keep-not-allowed", name="tiny", mode="keep"):
        plan_restart(UpRequest(Project(world.box), boot=Choice(BootMode.KEEP)))
    stop.halt(world.machine)
    world.box = attrs.evolve(world.box, secure=can_keep)
    up(world)
    assert [("resnap", None), ("resnap", None), ("keep", None)] == world.modes


def test_snapshots_are_not_lost(world: World, script: Script) -> None:
    """A box with a snapshot is not secured."""
    (world.machine.snapshots / "mine").mkdir(parents=True)
    with refused(StateError, "has-snapshots", verb="secure", name="tiny", snapshots="mine"):
        seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert ([], []) == (script.sent, world.did)


@pytest.mark.parametrize(("code", "error_code"), [(3, "credentials-refused"), (1, "guest-failed")])
def test_a_site_that_refuses(world: World, script: Script, code: int, error_code: str) -> None:
    """The box does not change, and the error contains the guest's message."""
    script.answer = Answer(code, "", "secure: the gateway g does not accept me\n")
    with refused(GuestError, error_code, name="tiny", site="a.org", exit_status=str(code)) as caught:
        seal.secure(UpRequest(Project(world.box)), ANSWERS)
    assert caught.value.message.endswith(": the gateway g does not accept me")
    assert ([], None, State.READY) == (world.did, world.machine.record().sealed, state(world.machine))


def test_an_interrupted_attempt_is_continued(world: World, script: Script) -> None:
    """The guest has its role already. The key that encrypts its credentials stays."""
    world.machine.data_key.write_text("the first\n")
    script.answer = Answer(seal.ALREADY, "", "secure: the box is secured already\n")
    assert SEALED == seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert "the first\n" == world.machine.data_key.read_text()


def test_the_answers_of_an_interrupted_attempt_stay_valid(world: World, script: Script) -> None:
    """The guest reports its role. A report in another form is an error."""
    for report in ("KIMBOX_ROLE=$(id)\n", "\0"):
        script.answer = Answer(seal.ALREADY, report, "")
        with refused(GuestError, "unexpected-output", name="tiny"):
            seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    earlier = sealing.answers(attrs.evolve(WORKER, name="director"), "b.org", "you").decode()
    script.answer = Answer(seal.ALREADY, f"{earlier}KIMBOX_CACHES='{'c' * 64}'\n", "")
    assert Sealed("director", "b.org") == seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert world.machine.record().known == Known((world.digest,), "c" * 64)
    assert parse_assignments(given_files(world)["answers.env"]) == {"KIMBOX_ROLE": "director", "KIMBOX_SITE": "b.org"}


def given_files(world: World) -> dict[str, bytes]:
    """Returns the files with role and rules that the box gets at each start."""
    with tarfile.open(world.machine.role_file) as archive:
        files = {info.name: archive.extractfile(info) for info in archive}
        return {name: file.read() for name, file in files.items() if file}


def test_each_start_passes_what_the_host_knows(world: World, script: Script) -> None:
    """Role and rules in a file, and the digests of the manifest and of the list of caches. Unsealing forgets them."""
    script.answer = Answer(0, f"KIMBOX_CACHES='{'c' * 64}'\n", "")
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    words = " ".join(command_line(world))
    assert f"kimbox.manifests={world.digest}" in words
    assert f"kimbox.caches={'c' * 64}" in words
    assert f"name=opt/io.systemd.credentials/kimbox.role,file={world.machine.role_file}" in words
    assert {"answers.env", "policy.env", "outbound", "known_hosts", "operator_keys"} == set(given_files(world))
    assert parse_assignments(given_files(world)["answers.env"]) == {"KIMBOX_ROLE": "worker", "KIMBOX_SITE": "a.org"}
    world.boot = [event("booting", mode="maintain"), event("unsealed"), event("ready", manifest="", mode="maintain")]
    seal.unseal(UpRequest(Project(world.box), timeout_s=5))
    assert (None, False) == (world.machine.record().known, world.machine.role_file.exists())


def test_a_box_that_was_not_restarted_is_not_sealed_yet(
    world: World, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kimbox was killed before the restart: `up` is refused, and `secure` continues."""
    with monkeypatch.context() as patch:
        patch.setattr(seal, "close", lambda _: None)
        seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert (State.READY, SEALED) == (state(world.machine), world.machine.record().sealed)
    with pytest.raises(StateError, match="is open until it restarts"):
        up(world)
    seal.close(UpRequest(Project(world.box), timeout_s=5))
    assert (["power button", "put back", "start"], State.SEALED) == (world.did, state(world.machine))
    seal.close(UpRequest(Project(world.box), timeout_s=5))
    assert ["power button", "put back", "start"] == world.did


def test_the_memory_of_a_sealed_box_is_not_written(world: World, script: Script) -> None:
    """In no state, because a failed box has its credentials in memory, too. No snapshot is restored either."""
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    tell(world.machine, event("failed", manifest=world.digest, kind="secure", name="secure", exit=3, reason="x"))
    assert State.FAILED is state(world.machine)
    for operation in (
        lambda: stop.suspend(world.machine),
        lambda: snapshot.save(world.machine, "x"),
        lambda: snapshot.restore(world.machine, "open"),
    ):
        with pytest.raises(StateError, match="sealed as worker of"):
            operation()


def test_a_record_that_was_not_written(world: World, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """kimbox was killed before it wrote the role to the record: the box reports it, and later starts warn."""
    world.machine.data_key.write_text("0" * 64)
    stop.halt(world.machine)
    up(world)
    assert State.SEALED is up(world)
    assert SEALED == world.machine.record().sealed
    stop.halt(world.machine)
    capsys.readouterr()
    up(world)
    assert "does not know the manifest and the rules of tiny" in capsys.readouterr().err


def test_a_guest_cannot_lock_its_owner_out(world: World, script: Script) -> None:
    """Without the key of this host, a guest that reports `sealed` stays open, and its record does not change."""
    stop.halt(world.machine)
    up(world)
    assert State.PROVISIONING is state(world.machine)
    assert State.PROVISIONING is up(world)
    assert None is world.machine.record().sealed
    observe.refuse_sealed(world.machine, "exec")


def test_a_box_that_fails_to_seal_itself(world: World, script: Script) -> None:
    """The error names the failed step, and the option that opens the box."""
    failed = event("failed", manifest=world.digest, kind="secure", name="secure", exit=3, reason="no gateway")
    world.boot[-1] = failed
    with pytest.raises(GuestError) as caught:
        seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    assert "secure secure (exit status 3): no gateway" in caught.value.message
    assert "--unseal" in str(caught.value.hint)
    with pytest.raises(StateError, match="sealed as worker of"):
        observe.reach(world.machine)


@pytest.mark.parametrize(("status", "reason"), [("done", ""), ("failed", "the gateway does not accept me")])
def test_new_credentials(
    world: World, script: Script, monkeypatch: pytest.MonkeyPatch, status: str, reason: str
) -> None:
    """They are in a file that exists only during one start."""
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    world.boot.insert(1, event("rotated", status=status, reason=reason))
    members: list[list[str]] = []
    start = FakeDriver.start

    def start_and_note(driver: FakeDriver, launch: Launch) -> Record:
        with tarfile.open(world.machine.rotate_file) as archive:
            members.append(archive.getnames())
        return start(driver, launch)

    monkeypatch.setattr(FakeDriver, "start", start_and_note)
    request = UpRequest(Project(world.box), timeout_s=5)
    if reason:
        with refused(GuestError, "credentials-refused", name="tiny", reason=reason):
            seal.rotate(request, "me", ANSWERS.secret)
    else:
        seal.rotate(request, "me", ANSWERS.secret)
    assert [["answers.env", "nonce", "password"]] == members
    assert not world.machine.rotate_file.exists()


def test_unsealing(world: World, script: Script) -> None:
    """The key is removed first. The box boots its real root and reports that it is open. A repetition continues."""
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    with refused(StateError, "box-sealed", name="tiny", site="a.org"):
        up(world, boot=Choice(BootMode.MAINTAIN))
    stop.halt(world.machine)
    world.boot = [event("booting", mode="maintain"), event("ready", manifest="", mode="maintain")]
    with refused(GuestError, "guest-failed", missing_event="unsealed"):
        seal.unseal(UpRequest(Project(world.box), timeout_s=5))
    assert (False, True) == (world.machine.data_key.exists(), world.machine.unseal_mark.exists())
    with refused(StateError, "unseal-interrupted", name="tiny"):
        up(world)
    words = " ".join(command_line(world))
    assert ("kimbox.unseal=yes" in words, "kimbox.sealed" in words) == (True, False)
    world.boot.insert(1, event("unsealed"))
    world.did.clear()
    seal.unseal(UpRequest(Project(world.box), timeout_s=5))
    assert ["power button", "put back", "start"] == world.did  # a new root, also after an attempt that was interrupted
    assert world.machine.record().put_back is None
    assert (None, False) == (world.machine.record().sealed, world.machine.unseal_mark.exists())
    with refused(StateError, "wrong-state", verb="secure", name="tiny"):
        seal.unseal(UpRequest(Project(world.box)))


def test_a_sealed_box_without_its_key_is_not_started(world: World, script: Script) -> None:
    """As after a copy of its disk alone to another host. With the key it starts again."""
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    stop.halt(world.machine)
    world.did.clear()
    key = world.machine.data_key.read_bytes()
    world.machine.data_key.unlink()
    with refused(StateError, "data-key-missing", name="tiny", path=str(world.machine.data_key)):
        up(world)
    assert [] == world.did
    world.machine.data_key.write_bytes(key)
    up(world)
    assert State.SEALED is state(world.machine)


def test_destroy_overwrites_the_key(world: World, script: Script, tmp_path: Path) -> None:
    """Nothing that the host keeps can decrypt a copy of the disk."""
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    (tmp_path / "same").hardlink_to(world.machine.data_key)
    assert stop.destroy(world.machine)
    assert bytes(65) == (tmp_path / "same").read_bytes()


def test_a_sealed_box_gets_no_other_manifest(world: World, script: Script) -> None:
    """It is sealed with its former manifest."""
    seal.secure(UpRequest(Project(world.box), timeout_s=5), ANSWERS)
    stop.halt(world.machine)
    world.boot[-1] = event("sealed", manifest="9" * 64, role="worker", site="a.org")
    assert State.HALTED is up(world)
    assert "deliver" not in world.did
    tell(world.machine, event("jobs", done="3"))
    assert State.SEALED is state(world.machine)
    assert makemachine.BOOT == world.machine.boot_events()[-1].boot
