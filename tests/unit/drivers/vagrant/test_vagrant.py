"""The driver `vagrant` against programs that answer as Vagrant and virsh would: what it asks, and makes of it."""

from __future__ import annotations

from pathlib import Path

import attrs
import feignedvagrant
import makebox
import makemachine
import pytest
from feignedvagrant import STATUS, Host

from kimbox import paths
from kimbox.drivers import registry
from kimbox.drivers.base import Launch
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.vagrant import hypervisor, names, virtualbox
from kimbox.drivers.vagrant.driver import Vagrant
from kimbox.drivers.vagrant.fetch import Fetcher
from kimbox.errors import GuestError, KimboxError, MissingToolError, StateError, UsageError
from kimbox.guest.ssh import Answer
from kimbox.image.store.images import Image
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, Record
from kimbox.machine.state import State, derive
from kimbox.run import which
from kimbox.spec.model import BootMode

host, machine = feignedvagrant.host, feignedvagrant.machine  # fixtures


def test_the_folder_tells_whose_the_machine_is(machine: Machine) -> None:
    """A damaged record does not hide it; an unknown name is a usage error that names those that are known."""
    machine.record_file.write_text("{")
    assert "vagrant" == registry.of(machine).name
    machine.vagrantfile.unlink()
    assert "qemu" == registry.of(machine).name
    with pytest.raises(UsageError) as caught:
        registry.named("xen", machine)
    assert "qemu, vagrant" in str(caught.value.hint)


def check_host() -> HostCheck:
    """The one result of this driver's check of the host."""
    (found,) = Vagrant.check_host()
    return found


@attrs.frozen
class Telling:
    """A guest that answers so when it is asked for its events; it has no other log."""

    stdout: str

    def run(self, command: str, **_: object) -> Answer:
        return Answer(0, self.stdout, "") if "events" in command else Answer(1, "", "")

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    "told", ["7 9000000000000000000\nYQ==", "7 1\nYQ==", "7 0\n%%%", "7 0\nYQ", "7 0\n" + "YWFh" * (2 << 20)]
)
def test_a_guest_that_lies_about_its_log(machine: Machine, told: str) -> None:
    """A place beyond what is there, no base64, more than was asked for: nothing of it reaches the host's file."""
    machine.events_file.write_text("{}\n{}\n")
    fetcher = Fetcher(machine, machine.endpoint(machine.record()), Telling(told))  # type: ignore[arg-type]
    assert not fetcher.fetch()
    assert "{}\n{}\n" == machine.events_file.read_text()


def test_what_is_new_is_added(machine: Machine) -> None:
    """From where the last copy ended, or all of it, where the file is another one."""
    machine.events_file.write_text("ab")
    endpoint = machine.endpoint(machine.record())
    assert Fetcher(machine, endpoint, Telling("7 2\nYw==")).fetch()  # type: ignore[arg-type]
    assert "abc" == machine.events_file.read_text()
    assert Fetcher(machine, endpoint, Telling("8 0\nYw==")).fetch()  # type: ignore[arg-type]
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


def test_what_works_on_the_disk_is_refused(machine: Machine) -> None:
    """The disk is libvirt's."""
    with pytest.raises(StateError, match="cannot shrink tiny: vagrant has its disk"):
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
def test_states_follow_from_vagrants_words(host: Host, machine: Machine, word: str, state: State) -> None:
    """What Vagrant says decides, and not what was recorded."""
    host.says(STATUS.format(state=word))
    record = attrs.evolve(machine.record(), ended=Ended.HALTED)
    assert state is derive(Vagrant(machine).observe(record))


def test_a_first_up_that_was_cut_short_is_no_machine(host: Host, machine: Machine) -> None:
    """Although its domain may run: the next `up` begins anew, and a `halt` removes what there is."""
    machine.write_record(attrs.evolve(machine.record(), ended=Ended.NEW))
    host.says(STATUS.format(state="running"))
    assert State.HALTED is derive(Vagrant(machine).observe(machine.record()))
    assert [] == host.calls
    Vagrant(machine).tidy()
    assert ["vagrant destroy"] == [" ".join(call.split()[:2]) for call in host.calls if call.startswith("vagrant")]


def test_a_machine_that_vagrant_has_not_made_needs_no_question(host: Host, machine: Machine) -> None:
    """Without Vagrant's own mark there is nothing to ask about."""
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
def test_an_answer_that_says_nothing_known_is_an_error(host: Host, machine: Machine, text: str) -> None:
    """No state, an unknown one, another machine's, or two: never a guess."""
    host.says(text)
    with pytest.raises(GuestError, match="vagrant status says nothing that is known of tiny"):
        Vagrant(machine).running()


def test_a_plain_warning_among_the_lines_does_no_harm(host: Host, machine: Machine) -> None:
    """Lines that are no answer are passed over."""
    host.says("warning: constant ::Fixnum is deprecated\n\n" + STATUS.format(state="paused"))
    assert (True, True) == Vagrant(machine).running()


def test_a_failure_is_told_in_vagrants_own_words(host: Host, machine: Machine) -> None:
    """What it wrote to either stream, of this call alone, fit for a terminal; all is kept in its log."""
    machine.vagrant_log.write_text("of an earlier call\n")
    host.says("==> tiny: Halting\n", code=1, on_stderr="The \x1b[31mdomain\x1b[0m is locked\n")
    with pytest.raises(GuestError) as caught:
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
    """Its commas and line breaks are Vagrant's to escape."""
    text = "1,,ui,error,x\n1,,error-exit,Vagrant::Errors::NoEnv,No environment%!(VAGRANT_COMMA) here\\nRun init\n"
    host.says(text, code=1)
    with pytest.raises(GuestError) as caught:
        Vagrant(machine).running()
    assert "    No environment, here\n    Run init" in caught.value.message


def test_a_suspend_that_did_nothing_is_an_error(host: Host, machine: Machine) -> None:
    """vagrant-libvirt ends with 0 where it could not save the memory."""
    host.says(STATUS.format(state="running"), on_stderr="Error doing a managed save\n")
    with pytest.raises(GuestError, match="did not suspend tiny"):
        Vagrant(machine).suspend(lambda: None)


def test_a_guest_that_ends_by_itself_is_waited_for(
    host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`vagrant status` is asked until it runs no more, or the time is over."""
    monkeypatch.setattr("kimbox.drivers.vagrant.driver.STATUS_S", 0.01)
    host.says(STATUS.format(state="running"))
    assert not Vagrant(machine).wait_until_gone(0.0)
    off = tmp_path / "off"
    off.write_text(STATUS.format(state="shutoff"))
    host.fake("vagrant", f'cat "{host.bin}/out"; cp "{off}" "{host.bin}/out"')
    assert Vagrant(machine).wait_until_gone(60.0)


def test_the_snapshots_of_a_machine(host: Host, machine: Machine) -> None:
    """A line each; the sentence that there are none is no name."""
    host.says("one\ntwo\n")
    assert ["one", "two"] == Vagrant(machine).disk_snapshots()
    host.says("==> tiny: No snapshots have been taken yet!\n")
    assert [] == Vagrant(machine).disk_snapshots()


def test_without_vagrant_the_package_is_named(host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program is one, with what installs it, and no traceback."""
    (host.bin / "vagrant").unlink()
    monkeypatch.setattr("kimbox.run.which", lambda program: None)
    with pytest.raises(MissingToolError) as caught:
        Vagrant(machine).unpause()
    assert "sudo apt-get install vagrant" in str(caught.value.hint)


def test_vagrant_runs_apart_from_the_users(host: Host, machine: Machine) -> None:
    """It has boxes of kimbox's own, calls nobody, and is told which driver works here."""
    host.fake("vagrant", f'env >"{host.bin}/env"; pwd >>"{host.bin}/env"')
    Vagrant(machine).unpause()
    told = (host.bin / "env").read_text().splitlines()
    assert {
        f"VAGRANT_HOME={paths.vagrant_dir()}",
        "VAGRANT_CHECKPOINT_DISABLE=1",
        "VAGRANT_DEFAULT_PROVIDER=libvirt",
        "KIMBOX_LIBVIRT_DRIVER=qemu",
        str(machine.folder),
    } <= set(told)


def test_an_interrupted_start_knows_which_root_was_wanted(
    host: Host, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box has booted another root than was asked for, and boots once more; that fails at first."""
    vagrant = Vagrant(machine)
    (machine.folder / "box").write_text("kimbox-x\n")
    vagrant.choose_boot(BootMode.RESNAP, Choice(BootMode.KEEP, once=True))
    told: list[str] = []
    booted = [BootMode.RESNAP, BootMode.RESNAP, BootMode.KEEP]

    def sudo(_: Vagrant, __: Record, script: str) -> str:
        told.append(script)
        return "" if "next_entry" in script else f"{booted.pop(0)}\n"

    monkeypatch.setattr(Vagrant, "_sudo", sudo)
    monkeypatch.setattr(Vagrant, "_reached", lambda _, record: record)
    launch = Launch(machine.record(), None, 1, 1 << 30)
    host.fake("vagrant", 'case "$*" in reload*) exit 1 ;; esac')
    with pytest.raises(GuestError):
        vagrant.start(launch)
    assert [True, True] == ["saved_entry=resnap" in told[0], "next_entry=keep" in told[1]]
    host.fake("vagrant", "exit 0")
    vagrant.start(launch)
    assert 4 == len(told)
    assert 2 == sum("reload" in call for call in host.calls)
    vagrant.start(launch)  # nothing was asked for since
    assert 4 == len(told)


@pytest.fixture
def no_libvirt(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with VirtualBox alone, whose VBoxManage is the test's."""
    (host.bin / "virsh").unlink()
    for name in ("qemu-img", "ssh-keyscan", "sh", "cat"):
        (host.bin / name).symlink_to(str(which(name)))
    host.fake("VBoxManage", "exit 0")
    monkeypatch.setenv("PATH", str(host.bin))
    return host


def test_virtualbox_runs_it_where_there_is_no_libvirt(no_libvirt: Host, tmp_path: Path) -> None:
    """The folder remembers; Vagrant is asked for it by name, and its words for states are known."""
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
    with pytest.raises(GuestError, match="vagrant up failed"):
        vagrant.start(Launch(attrs.evolve(machine.record(), ended=Ended.HALTED), None, 1, 1 << 30))
    assert "virtualbox" == (tmp_path / "default").read_text().strip()
    assert any(call.startswith("vagrant up") and "--provider=virtualbox" in call for call in no_libvirt.calls)
    (machine.folder / hypervisor.FILE).write_text("xen\n")
    with pytest.raises(KimboxError, match="names no hypervisor: 'xen'"):
        vagrant.running()
    assert Outcome.GOOD is check_host().outcome


def test_virtualbox_keeps_nothing_of_ours(no_libvirt: Host, tmp_path: Path) -> None:
    """Machines are found by their whole name; a disk is copied as it is now, and not left in VirtualBox's list."""
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
    virtualbox.sweep("tiny")
    virtualbox.sweep("other")
    work = tmp_path / "work"
    work.mkdir()
    copy = virtualbox.copy_disk("tiny", Image("e" * 64, tmp_path / "disk.raw", "raw", {}), work)
    assert [copy] == list(work.iterdir())
    asked = [call.removeprefix("VBoxManage -q ") for call in no_libvirt.calls if "list vms" not in call]
    assert [
        f"controlvm {mine} poweroff",
        f"unregistervm {mine} --delete",
        f"showvminfo {mine} --machinereadable",
        f"clonemedium disk /vms/x/box-disk1.vmdk {work}/virtualbox.vdi --format VDI",
        f"closemedium disk {work}/virtualbox.vdi",
    ] == asked


PLUGIN = """\
1795553798,,ui,info,vagrant-libvirt (0.11.2%!(VAGRANT_COMMA) system)
1795553798,,plugin-name,vagrant-libvirt
1795553798,vagrant-libvirt,plugin-version,0.11.2%!(VAGRANT_COMMA) system
"""


def test_doctor_tells_what_the_driver_lacks(host: Host) -> None:
    """The programs, the plugin, a libvirt that answers: one after the other, each with the command that mends it."""
    host.says("")
    found = check_host()
    assert (Outcome.SLOW, True) == (found.outcome, "lacks Vagrant's plugin" in found.found)
    assert f"VAGRANT_HOME={paths.vagrant_dir()} vagrant plugin install" in str(found.mend)
    host.says(PLUGIN)
    host.fake("virsh", "echo 'error: Failed to connect socket' >&2; exit 1")
    found = check_host()
    assert (Outcome.SLOW, True) == (found.outcome, "Failed to connect socket" in found.found)
    host.fake("virsh", "exit 0")
    assert Outcome.GOOD is check_host().outcome
