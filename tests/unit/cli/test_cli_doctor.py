"""kimbox doctor on a host with many faults: every check is reported, with the command that fixes the fault."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import time
from pathlib import Path

import clirun
import makemachine
import pytest
from clirun import Kimbox, result

from kimbox import paths, run, utctime
from kimbox.actions import doctor
from kimbox.actions.repair import commands_in
from kimbox.drivers import accelerator
from kimbox.drivers.hostcheck import HostCheck, Outcome, attempt
from kimbox.errors import KimboxError
from kimbox.files import write_json
from kimbox.image import namespace
from kimbox.image.store import images
from kimbox.lock.apt import archive
from kimbox.lock.apt import sources as apt

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guest is booted to try KVM: that takes ten seconds where it hangs."""
    monkeypatch.setattr(accelerator, "probe", lambda: accelerator.KVM_WORKS)


@pytest.fixture
def _poor_host(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without programs on PATH, without ids for builds, with an unreadable apt configuration and a full disk."""

    def no_ids() -> None:
        raise KimboxError("no ids for builds", hint="sudo usermod --add-subuids 100000-165535 $USER")

    def no_apt() -> None:
        raise PermissionError(13, "Permission denied", "/etc/apt")

    monkeypatch.setenv("PATH", str(world / "nothing"))
    monkeypatch.setattr(doctor, "_building", no_ids)
    monkeypatch.setattr(doctor, "_packages", no_apt)
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 80)


@pytest.mark.usefixtures("_poor_host")
def test_everything_is_reported(kimbox: Kimbox) -> None:
    """A failed check does not hide another one. The exit status is that of a missing program."""
    code, out, err = kimbox("doctor", "--json")
    assert (6, "") == (code, err)
    checks = {check["what"]: check for check in result(out, "doctor")["checks"]}
    assert {"git": "bad", "building": "bad", "packages": "bad", "space": "slow"} == {
        what: checks[what]["verdict"] for what in ("git", "building", "packages", "space")
    }
    assert "sudo apt-get install git" == checks["git"]["mend"]
    assert "no ids for builds" == checks["building"]["found"]
    assert checks["building"]["mend"].startswith("sudo usermod")
    assert None is checks["packages"]["mend"]
    assert "Permission denied" in checks["packages"]["found"]


@pytest.mark.usefixtures("_poor_host")
def test_text(kimbox: Kimbox) -> None:
    """Each check has one line, and below it the command, if there is one."""
    code, out, _ = kimbox("doctor")
    assert 6 == code
    lines = out.splitlines()
    index = next(number for number, line in enumerate(lines) if line.startswith("bad   git: "))
    assert "      fix: sudo apt-get install git" == lines[index + 1]


@pytest.mark.usefixtures("_poor_host")
def test_the_commands_are_run(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command installs all packages. A command that fails does not stop the next one. Then the host is checked."""
    ran: list[tuple[list[str], dict[str, str]]] = []

    def stream(argv: list[str], *, env: dict[str, str], **_: object) -> None:
        ran.append((argv, env))
        if "usermod" in argv:
            raise run.CommandError(argv, "failed", "no such user")

    monkeypatch.setattr(run, "stream", stream)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert 2 == kimbox("doctor", "--fix")[0]  # no terminal
    assert 2 == kimbox("doctor", "--fix", "--store", "-y")[0]
    assert [] == ran
    code, out, err = kimbox("doctor", "--fix", "-y", "--json")
    assert 6 == code
    assert "no such user" in err
    installs = [argv for argv, _ in ran if "install" in argv]
    assert [["sudo", "apt-get", "install", "--yes"]] == [argv[:4] for argv in installs]
    assert {"git", "mmdebstrap", "qemu-utils"} < set(installs[0])
    assert "vagrant" not in installs[0]  # kimbox can do without it
    assert len(installs[0]) == len(set(installs[0]))
    user = pwd.getpwuid(os.getuid()).pw_name
    assert ["sudo", "usermod", "--add-subuids", "100000-165535", user] in [argv for argv, _ in ran]
    failed = {each["command"].split()[1]: each["failed"] for each in result(out, "doctor")["ran"]}
    assert ("false", "true") == (failed["apt-get"], failed["usermod"])


@pytest.mark.parametrize(
    ("repair", "expected"),
    [
        ("sudo apt-get install a b", ["sudo apt-get install a b"]),
        ("sudo usermod --append --groups kvm $USER  # then log in again", ["sudo usermod --append --groups kvm ME"]),
        ("sudo systemctl start x && sudo sysctl -w a.b=1", ["sudo systemctl start x", "sudo sysctl -w a.b=1"]),
        ("VAGRANT_HOME=/a/b vagrant plugin install p", ["VAGRANT_HOME=/a/b vagrant plugin install p"]),
        ("kimbox prune", ["kimbox prune"]),
        ("sudo rm -rf /", []),
        ("sudo systemctl start x && rm y", []),
        ("set KIMBOX_HOME to a folder that you can write", []),
        ("in a container, start it with `--privileged`; this machine's", []),
        ("", []),
    ],
)
def test_a_repair_is_a_command_or_advice(repair: str, expected: list[str]) -> None:
    """Only programs that kimbox's own checks name are run, without a shell."""
    user = pwd.getpwuid(os.getuid()).pw_name
    assert [text.replace(" ME", f" {user}") for text in expected] == [str(command) for command in commands_in(repair)]


def _check(what: str) -> HostCheck:
    return next(check for check in doctor.examine() if check.what == what)


@pytest.mark.usefixtures("world")
def test_a_home_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """doctor takes a lock in the home of kimbox; elsewhere, locks are not needed."""
    assert Outcome.GOOD == _check("locks").outcome

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    found = _check("locks")
    assert Outcome.BAD == found.outcome
    assert str(paths.home().parent) in found.result
    assert "KIMBOX_HOME" in str(found.repair)


@pytest.mark.usefixtures("world")
def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """doctor writes a file where the home of kimbox is, or will be."""
    assert Outcome.GOOD == _check("home").outcome
    monkeypatch.setenv("KIMBOX_HOME", "/proc/kimbox")
    found = _check("home")
    assert Outcome.BAD == found.outcome
    assert "/proc/kimbox" in found.result
    assert "KIMBOX_HOME" in str(found.repair)


@pytest.mark.usefixtures("world")
def test_no_key_of_the_archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a key that this user can read, apt rejects every archive. The package of the keys is named."""
    monkeypatch.setattr(apt, "sources", lambda *_: [None])
    monkeypatch.setattr(archive, "accepted_keys", lambda _: {"debian.gpg": tmp_path / "nothing.gpg"})
    found = _check("packages")
    assert Outcome.BAD == found.outcome
    assert "sudo apt-get install debian-archive-keyring" == found.repair
    (tmp_path / "nothing.gpg").touch()
    assert Outcome.GOOD == _check("packages").outcome


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("uid", "settings", "expected"),
    [
        (0, {}, "--privileged"),
        (1000, {"kernel.unprivileged_userns_clone": "0"}, "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        (1000, {"user.max_user_namespaces": "0"}, "sudo sysctl -w user.max_user_namespaces=10000"),
        (1000, {"kernel.apparmor_restrict_unprivileged_userns": "0"}, "--privileged"),
    ],
)
def test_a_host_without_namespaces(
    monkeypatch: pytest.MonkeyPatch, uid: int, settings: dict[str, str], expected: str
) -> None:
    """The cause is named (a container, a setting of the kernel) and never the program of the attempt."""
    failed = run.Completed(1, "", "unshare: unshare failed: Operation not permitted\n")
    monkeypatch.setattr(namespace, "_check_ids", lambda: None)
    monkeypatch.setattr(namespace, "_setting", settings.get)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(run, "run", lambda *_, **__: failed)
    found = attempt("building", doctor._building)
    assert Outcome.BAD == found.outcome
    assert "unshare failed: Operation not permitted" in found.result
    assert expected in str(found.repair)


@pytest.mark.usefixtures("world")
def test_old_packages() -> None:
    """The boxes whose packages are older than a week are named. A box whose date is not known is not."""
    makemachine.make_machine("unknown")
    for name, days in (("fresh", 6), ("stale", 8)):
        machine = makemachine.make_machine(name, image=name * 8)
        images.folder(machine.record().image).mkdir(parents=True)
        write_json(images.folder(name * 8) / images.PACKAGES, {"as_of": utctime.text(time.time() - days * 86400)})
    found = _check("age of packages")
    assert Outcome.SLOW == found.outcome
    assert "kimbox lock --update packages" in str(found.repair)
    assert "stale: " in found.result
    assert "8 days old" in found.result
    assert "fresh" not in found.result
    assert "unknown" not in found.result
