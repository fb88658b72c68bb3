"""The driver `vagrant` with scripts in place of Vagrant and virsh: their arguments, and the use of their output."""

from __future__ import annotations

from pathlib import Path

import attrs
import feignedvagrant
import makebox
import makemachine
import pytest
from feignedvagrant import STATUS, Host
from refused import refused

from kimbox import paths
from kimbox.drivers import guestboot, names, registry
from kimbox.drivers.base import Launch
from kimbox.drivers.fetch import Fetcher
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.vagrant import hypervisor, virtualbox
from kimbox.drivers.vagrant.driver import Vagrant
from kimbox.errors import GuestError, KimboxError, MissingToolError, StateError, UsageError
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Answer
from kimbox.image.store.images import Image
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.machine.state import State, derive
from kimbox.run import which
from kimbox.spec.model import BootMode

host, machine = feignedvagrant.host, feignedvagrant.machine  # fixtures


def test_the_folder_shows_the_driver(machine: Machine) -> None:
    """This works with a damaged record, too. For an unknown name, the hint has the known names."""
    machine.record_file.write_text("{")
    assert "vagrant" == registry.of(machine).name
    machine.vagrantfile.unlink()
    assert "qemu" == registry.of(machine).name
    with refused(UsageError, "bad-value", provider="xen") as caught:
        registry.named("xen", machine)
    assert "qemu, vagrant" in str(caught.value.hint)


def check_host() -> HostCheck:
    """The result of this driver's check of the host."""
    (check,) = Vagrant.check_host()
    return check


@attrs.frozen
class AnsweringGuest:
    """A guest whose file of events gives this answer; it has no other log."""

    stdout: str

    def run(self, command: str, **_: object) -> Answer:
        return Answer(0, self.stdout, "") if "events" in command else Answer(1, "", "")

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    "stdout", ["7 9000000000000000000\nYQ==", "7 1\nYQ==", "7 0\n%%%", "7 0\nYQ", "7 0\n" + "YWFh" * (2 << 20)]
)
def test_an_invalid_copy_of_a_log_is_rejected(machine: Machine, stdout: str) -> None:
    """A wrong offset, invalid base64, too much data: nothing of it reaches the host's file."""
    machine.events_file.write_text("{}\n{}\n")
    fetcher = Fetcher(machine, machine.endpoint(machine.record()), AnsweringGuest(stdout))  # type: ignore[arg-type]
    assert not fetcher.fetch()
    assert "{}\n{}\n" == machine.events_file.read_text()


def test_new_data_is_appended(machine: Machine) -> None:
    """From the end of the last copy, or all of the file if it was replaced."""
    machine.events_file.write_text("ab")
    endpoint = machine.endpoint(machine.record())
    assert Fetcher(machine, endpoint, AnsweringGuest("7 2\nYw==")).fetch()  # type: ignore[arg-type]
    assert "abc" == machine.events_file.read_text()
    assert Fetcher(machine, endpoint, AnsweringGuest("8 0\nYw==")).fetch()  # type: ignore[arg-type]
    assert "c" == machine.events_file.read_text()


@attrs.frozen
class Failing:
    """A connection that fails with an error of this code; its message says nothing about it."""

    code: str

    def run(self, *_: object, **__: object) -> Answer:
        raise GuestError("x", code=self.code)

    def __exit__(self, *_: object) -> None:
        pass


def test_another_machine_in_place_of_the_guest_is_an_error(machine: Machine) -> None:
    """A guest that does not answer may do so later; another host key is reported at once."""
    endpoint = machine.endpoint(machine.record())
    assert not Fetcher(machine, endpoint, Failing("guest-failed")).fetch()  # type: ignore[arg-type]
    with pytest.raises(GuestError) as caught:
        Fetcher(machine, endpoint, Failing("host-key-mismatch")).fetch()  # type: ignore[arg-type]
    assert "host-key-mismatch" == caught.value.code


def test_a_verb_that_changes_the_disk_is_refused(machine: Machine) -> None:
    """The disk belongs to libvirt."""
    with refused(StateError, "unsupported-by-driver", verb="shrink", name="tiny", driver="vagrant"):
        registry.need_own_disk(machine, "shrink")


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("shutoff", State.HALTED),
        ("not_created", State.HALTED),
        ("paused", State.PAUSED),
        ("crashed", State.HALTED),
    ],
)
def test_the_state_follows_from_the_output_of_vagrant(host: Host, machine: Machine, word: str, state: State) -> None:
    """And not from the record."""
    host.says(STATUS.format(state=word))
    record = attrs.evolve(machine.record(), ended=Ended.HALTED)
    assert state is derive(Vagrant(machine).observe(record))


def test_an_interrupted_first_up(host: Host, machine: Machine) -> None:
    """The state is halted, although its domain may run: the next `up` starts again, and `halt` removes the rest."""
    machine.write_record(attrs.evolve(machine.record(), ended=Ended.NEW))
    host.says(STATUS.format(state="running"))
    assert State.HALTED is derive(Vagrant(machine).observe(machine.record()))
    assert [] == host.calls
    Vagrant(machine).tidy()
    assert ["vagrant destroy"] == [" ".join(call.split()[:2]) for call in host.calls if call.startswith("vagrant")]


def test_a_machine_that_vagrant_has_not_created(host: Host, machine: Machine) -> None:
    """Without Vagrant's own file, kimbox does not call Vagrant."""
    (machine.folder / ".vagrant/machines/tiny/libvirt/id").unlink()
    assert (False, False) == Vagrant(machine).running()
    assert [] == host.calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "warning: something\n",
        STATUS.format(state="dancing"),
        "1,other,state,running\n",
        STATUS.format(state="running") + STATUS.format(state="shutoff"),
    ],
)
def test_unknown_output_of_vagrant_status_is_an_error(host: Host, machine: Machine, text: str) -> None:
    """No state, an unknown state, the state of another machine, or two states."""
    host.says(text)
    with refused(GuestError, "unexpected-output", name="tiny"):
        Vagrant(machine).running()


def test_a_warning_in_the_output_is_ignored(host: Host, machine: Machine) -> None:
    """Lines of another form are ignored."""
    host.says("warning: constant ::Fixnum is deprecated\n\n" + STATUS.format(state="paused"))
    assert (True, True) == Vagrant(machine).running()


def test_a_failure_has_the_output_of_vagrant(host: Host, machine: Machine) -> None:
    """Both streams of this call alone, without escape sequences. The log has all of the output."""
    machine.vagrant_log.write_text("of an earlier call\n")
    host.says("==> tiny: Halting\n", code=1, on_stderr="The \x1b[31mdomain\x1b[0m is locked\n")
    with refused(GuestError, "vagrant-failed", name="tiny", command="halt") as caught:
        Vagrant(machine).stop(State.FAILED, force=True, timeout_s=1)
    message = caught.value.message
    assert "vagrant halt failed with exit status 1 for tiny" in message
    assert "domain" in message
    assert "is locked" in message
    assert "==> tiny: Halting" in message
    assert "\x1b" not in message
    assert "earlier" not in message
    assert str(machine.vagrant_log) in str(caught.value.hint)
    assert "of an earlier call" in machine.vagrant_log.read_text()


def test_an_error_in_machine_readable_form_is_read(host: Host, machine: Machine) -> None:
    """Vagrant escapes its commas and line breaks."""
    text = "1,,ui,error,x\n1,,error-exit,Vagrant::Errors::NoEnv,No environment%!(VAGRANT_COMMA) here\\nRun init\n"
    host.says(text, code=1)
    with refused(GuestError, "vagrant-failed", name="tiny", command="status") as caught:
        Vagrant(machine).running()
    assert "    No environment, here\n    Run init" in caught.value.message


def test_a_suspend_that_did_nothing_is_an_error(host: Host, machine: Machine) -> None:
    """vagrant-libvirt exits with status 0 although it could not save the memory."""
    host.says(STATUS.format(state="running"), on_stderr="Error doing a managed save\n")
    with refused(GuestError, "vagrant-failed", name="tiny", command="suspend") as caught:
        Vagrant(machine).suspend(lambda: None)
    assert caught.value.message.startswith("vagrant suspend did not suspend tiny:\n")


def test_a_machine_without_an_address_or_a_host_key_is_an_error(host: Host, machine: Machine) -> None:
    """Vagrant prints no address, or the ssh server of the guest sends no ed25519 key."""
    host.says("")
    with refused(GuestError, "unexpected-output", name="tiny"):
        Vagrant(machine)._reached(machine.record())
    host.says("Host tiny\n  HostName 127.0.0.1\n  Port 2222\n")
    host.fake("ssh-keyscan", "echo '# 127.0.0.1:2222 SSH-2.0'")
    with refused(GuestError, "host-key-missing", name="tiny"):
        Vagrant(machine)._reached(machine.record())
    assert ("127.0.0.1", 2222) == (machine.record().ssh_host, machine.record().ssh_port)
    assert not machine.known_hosts.exists()


def test_a_guest_that_ends_by_itself_is_waited_for(
    host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """kimbox calls `vagrant status` until the guest has ended, or until the timeout."""
    monkeypatch.setattr("kimbox.drivers.vagrant.driver.STATUS_S", 0.01)
    host.says(STATUS.format(state="running"))
    assert not Vagrant(machine).wait_until_gone(0.0)
    off = tmp_path / "off"
    off.write_text(STATUS.format(state="shutoff"))
    host.fake("vagrant", f'cat "{host.bin}/out"; cp "{off}" "{host.bin}/out"')
    assert Vagrant(machine).wait_until_gone(60.0)


def test_the_snapshots_of_a_machine(host: Host, machine: Machine) -> None:
    """Each line is a name, except the message that no snapshots exist."""
    host.says("one\ntwo\n")
    assert ["one", "two"] == Vagrant(machine).disk_snapshots()
    host.says("==> tiny: No snapshots have been taken yet!\n")
    assert [] == Vagrant(machine).disk_snapshots()


def test_without_vagrant_the_package_is_named(host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it."""
    (host.bin / "vagrant").unlink()
    monkeypatch.setattr("kimbox.run.which", lambda program: None)
    with pytest.raises(MissingToolError) as caught:
        Vagrant(machine).unpause()
    assert "sudo apt-get install vagrant" in str(caught.value.hint)


def test_vagrant_is_separate_from_the_users_vagrant(host: Host, machine: Machine) -> None:
    """It has kimbox's own boxes, checks for no update, and gets the domain type that works on this host."""
    host.fake("vagrant", f'env >"{host.bin}/env"; pwd >>"{host.bin}/env"')
    Vagrant(machine).unpause()
    environment = (host.bin / "env").read_text().splitlines()
    assert {
        f"VAGRANT_HOME={paths.vagrant_dir()}",
        "VAGRANT_CHECKPOINT_DISABLE=1",
        "VAGRANT_DEFAULT_PROVIDER=libvirt",
        "KIMBOX_LIBVIRT_DRIVER=qemu",
        str(machine.folder),
    } <= set(environment)


def test_an_interrupted_start_keeps_the_chosen_root(
    host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box booted another root than the chosen one, and boots again. The first reboot fails."""
    vagrant = Vagrant(machine)
    (machine.folder / "box").write_text("kimbox-x\n")
    vagrant.choose_boot(BootMode.RESNAP, Choice(BootMode.KEEP, once=True))
    scripts: list[str] = []
    booted = [BootMode.RESNAP, BootMode.RESNAP, BootMode.KEEP]

    def sudo(_: Machine, __: Endpoint, script: str) -> str:
        scripts.append(script)
        return "" if "next_entry" in script else f"{booted.pop(0)}\n"

    monkeypatch.setattr(guestboot, "_sudo", sudo)
    monkeypatch.setattr(Vagrant, "_reached", lambda _, record: record)
    launch = Launch(machine.record(), None, 1, 1 << 30)
    host.fake("vagrant", 'case "$*" in reload*) exit 1 ;; esac')
    with pytest.raises(GuestError):
        vagrant.start(launch)
    assert [True, True] == ["saved_entry=resnap" in scripts[0], "next_entry=keep" in scripts[1]]
    host.fake("vagrant", "exit 0")
    vagrant.start(launch)
    assert 4 == len(scripts)
    assert 2 == sum("reload" in call for call in host.calls)
    vagrant.start(launch)  # no mode was chosen since then
    assert 4 == len(scripts)


@pytest.fixture
def no_libvirt(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with VirtualBox alone. Its VBoxManage is a script."""
    (host.bin / "virsh").unlink()
    for name in ("qemu-img", "ssh-keyscan", "sh", "cat"):
        (host.bin / name).symlink_to(str(which(name)))
    host.fake("VBoxManage", "exit 0")
    monkeypatch.setenv("PATH", str(host.bin))
    return host


def test_virtualbox_runs_it_without_libvirt(no_libvirt: Host, tmp_path: Path) -> None:
    """The folder has its name, Vagrant gets this name, and its states are known."""
    machine = makemachine.make_machine()
    image = Image("e" * 64, tmp_path / "disk.raw", "raw", {})
    vagrant = Vagrant(machine)
    vagrant.create(machine.folder, makebox.make_box(tmp_path), image)
    assert "virtualbox" == hypervisor.of(machine.folder).NAME
    assert f"virtualbox.name = '{names.prefix()}' + 'tiny'" in machine.vagrantfile.read_text()
    mark = machine.folder / ".vagrant/machines/tiny/virtualbox/id"
    mark.parent.mkdir(parents=True)
    mark.touch()
    for word, expected in (("poweroff", (False, False)), ("paused", (True, True)), ("saved", (False, False))):
        no_libvirt.says(STATUS.format(state=word))
        assert expected == vagrant.running()
    no_libvirt.fake("vagrant", f'echo "$VAGRANT_DEFAULT_PROVIDER" >"{tmp_path}/default"; exit 1')
    with refused(GuestError, "vagrant-failed", name="tiny", command="up"):
        vagrant.start(Launch(attrs.evolve(machine.record(), ended=Ended.HALTED), None, 1, 1 << 30))
    assert "virtualbox" == (tmp_path / "default").read_text().strip()
    assert any(call.startswith("vagrant up") and "--provider=virtualbox" in call for call in no_libvirt.calls)
    (machine.folder / hypervisor.FILE).write_text("xen\n")
    with refused(KimboxError, "file-damaged", path=str(machine.folder / hypervisor.FILE), hypervisor="xen"):
        vagrant.running()
    assert Outcome.GOOD is check_host().outcome


def test_nothing_remains_in_virtualbox(no_libvirt: Host, tmp_path: Path) -> None:
    """Machines are found by their full name. The copy of a disk does not stay in VirtualBox's list."""
    mine = names.domain("tiny")
    listed = f'"{mine}-2" {{00}}\n"{mine}" {{01}}'
    info = 'name="x"\n"SATA Controller-0-0"="/vms/x/box-disk1.vmdk"\n"SATA Controller-1-0"="none"'
    no_libvirt.fake(
        "VBoxManage",
        f"""case "$*" in
        *"list vms"*) printf '%s\\n' '{listed}' ;;
        *showvminfo*) printf '%s\\n' '{info}' ;;
        *clonemedium*) qemu-img create -q -f vdi "$5" 4M ;;
        esac""",
    )
    virtualbox.remove_leftovers("tiny")
    virtualbox.remove_leftovers("other")
    work = tmp_path / "work"
    work.mkdir()
    copy = virtualbox.copy_disk("tiny", Image("e" * 64, tmp_path / "disk.raw", "raw", {}), work)
    assert [copy] == list(work.iterdir())
    commands = [call.removeprefix("VBoxManage -q ") for call in no_libvirt.calls if "list vms" not in call]
    assert [
        f"controlvm {mine} poweroff",
        f"unregistervm {mine} --delete",
        f"showvminfo {mine} --machinereadable",
        f"clonemedium disk /vms/x/box-disk1.vmdk {work}/virtualbox.vdi --format VDI",
        f"closemedium disk {work}/virtualbox.vdi",
    ] == commands


PLUGIN = """\
1795553798,,ui,info,vagrant-libvirt (0.11.2%!(VAGRANT_COMMA) system)
1795553798,,plugin-name,vagrant-libvirt
1795553798,vagrant-libvirt,plugin-version,0.11.2%!(VAGRANT_COMMA) system
"""


def test_doctor_shows_what_the_driver_lacks(host: Host) -> None:
    """The programs, the plugin, a libvirt that answers: each in turn, with the command that repairs it."""
    host.says("")
    check = check_host()
    assert (Outcome.SLOW, True) == (check.outcome, "lacks Vagrant's plugin" in check.result)
    assert f"VAGRANT_HOME={paths.vagrant_dir()} vagrant plugin install" in str(check.repair)
    host.says(PLUGIN)
    host.fake("virsh", "echo 'error: Failed to connect socket' >&2; exit 1")
    check = check_host()
    assert (Outcome.SLOW, True) == (check.outcome, "Failed to connect socket" in check.result)
    host.fake("virsh", "exit 0")
    assert Outcome.GOOD is check_host().outcome
