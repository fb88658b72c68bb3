"""The choice of the accelerator. A script in place of QEMU records its arguments, and exits as a test requires."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kimbox import paths
from kimbox.drivers import accelerator, probeguest
from kimbox.drivers.accelerator import KVM_WORKS, find, probe, probe_failure
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.probeguest import EXIT_STATUS
from kimbox.drivers.qemu.driver import Qemu
from kimbox.errors import MissingToolError

Fake = Callable[[str], Path]


@pytest.fixture(autouse=True)
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of /dev/kvm."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "KVM", device)
    return device


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a script qemu-system-x86_64 on PATH that records its arguments, one line for each call, and runs `act`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(act: str) -> Path:
        program = folder / "qemu-system-x86_64"
        program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n{act}\n')
        program.chmod(0o755)
        return tmp_path / "calls"

    return make


def calls(record: Path) -> int:
    return len(record.read_text().splitlines()) if record.exists() else 0


def test_the_disk_has_the_program_in_its_boot_sector() -> None:
    """Jumps and tables have fixed places. tests/integration/test_probe_boots.py runs it in QEMU."""
    disk = probeguest.disk()
    assert (1 << 20, b"\x55\xaa", bytes(100)) == (len(disk), disk[510:512], disk[512:612])
    assert b"\x0f\x01\x16\x62\x7c" in disk[:512]  # lgdt [0x7c62]
    limit, table = int.from_bytes(disk[0x62:0x64], "little"), int.from_bytes(disk[0x64:0x68], "little")
    assert (15, 0x7C52) == (limit, table)
    assert b"\x31\xc0\x0f\xa2" == disk[0x68:0x6C]  # xor eax, eax; cpuid: the target of the jump to long mode
    assert b"\xba\x01\x05\xb0\x2a\xee" in disk[:512]  # mov dx, 0x501; mov al, 0x2a; out dx, al
    assert 85 == EXIT_STATUS == 0x2A << 1 | 1


def test_kvm_is_used_if_the_guest_ran(fake: Fake) -> None:
    """QEMU exits with the number that the guest wrote. Its arguments have KVM and no display."""
    record = fake(f"exit {EXIT_STATUS}")
    assert KVM_WORKS == probe()
    assert ["-accel", "kvm", "-cpu", "host"] == KVM_WORKS.arguments()
    arguments = record.read_text()
    for part in ("-accel kvm", "-display none", "-nodefaults", "isa-debug-exit,iobase=0x501,iosize=1"):
        assert part in arguments


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("echo 'failed to initialize kvm: Permission denied' >&2; exit 1", "kvm: Permission denied"),
        ("exit 3", "QEMU exited with status 3"),
        ("kill -ABRT $$", "QEMU exited with status -6"),
        ("exec sleep 60", r"a guest hangs \(did not end within 0.3 s\)"),
        ("echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60", r"a guest hangs \(.*, KVM internal error\)"),
    ],
)
def test_a_guest_that_did_not_run(fake: Fake, act: str, why: str) -> None:
    """Each failure has a reason. A guest that hangs is ended."""
    fake(act)
    assert re.search(why, probe_failure("kvm", "host", timeout_s=0.3 if "hangs" in why else 60) or "it ran")


def test_software_emulation_without_kvm(fake: Fake, kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/kvm is missing, or this user may not open it: each case has its reason."""
    record = fake("echo bad >&2; exit 1")
    monkeypatch.setattr(os, "access", lambda *_: False)
    best = probe()
    assert ("tcg", "max,-erms") == (best.name, best.cpu)
    assert f"may not open {kvm}" in best.why
    assert "usermod" not in best.why
    assert "sudo usermod --append --groups kvm $USER" in str(best.repair)
    assert 0 == calls(record)
    kvm.unlink()
    assert f"{kvm} does not exist" == probe().why
    kvm.touch()
    monkeypatch.undo()


def test_kvm_that_does_not_work(fake: Fake, kvm: Path) -> None:
    """/dev/kvm exists and opens, but no guest runs."""
    fake("echo bad >&2; exit 1")
    assert f"{kvm} exists, but a guest does not run with it: bad" == probe().why


@pytest.mark.parametrize(("emulated_s", "name"), [(0.1, "tcg"), (5, "kvm")])
def test_kvm_that_is_slow_is_compared_with_emulation(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, emulated_s: float, name: str
) -> None:
    """A busy host makes both slow, and KVM is used. A KVM that emulates the kernel mode is slower, and is not."""
    record = fake(f"case \"$*\" in *'-accel kvm'*) sleep 1 ;; *) sleep {emulated_s} ;; esac; exit {EXIT_STATUS}")
    monkeypatch.setattr(accelerator, "USUAL_PROBE_S", 0.5)
    best = probe()
    assert (name, 2) == (best.name, calls(record))
    assert ("a guest is slower with it (1" in best.why) is (name == "tcg")


def test_the_result_is_stored_while_nothing_changes(fake: Fake, kvm: Path) -> None:
    """There is one probe. Another QEMU, or another device, causes a new one."""
    record = fake(f"exit {EXIT_STATUS}")
    assert [KVM_WORKS] * 3 == [find() for _ in range(3)]
    assert 1 == calls(record)
    fake("echo worse >&2; exit 1")
    os.utime(record.parent / "bin/qemu-system-x86_64", ns=(1, 1))
    best = find()
    assert ("tcg", f"{kvm} exists, but a guest does not run with it: worse") == (best.name, best.why)
    assert best == find()
    assert 2 == calls(record)
    kvm.unlink()
    assert f"{kvm} does not exist" == find().why


def test_another_guest_of_the_probe_probes_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of an older kimbox, whose guest did less, is not used."""
    record = fake(f"exit {EXIT_STATUS}")
    find()
    monkeypatch.setattr(probeguest, "PROGRAM", b"other")
    find()
    assert 2 == calls(record)


def test_a_rejected_kvm_is_not_used_for_an_hour(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe ran, and a real guest did not. `kimbox doctor` probes again."""
    record = fake(f"exit {EXIT_STATUS}")
    assert KVM_WORKS == find()
    accelerator.reject()
    best = find()
    assert ("tcg", 1) == (best.name, calls(record))
    assert "internal error" in best.why
    now = time.time()
    monkeypatch.setattr("kimbox.drivers.accelerator.time.time", lambda: now + accelerator.HANG_VALID_S + 1)
    assert (KVM_WORKS, 2) == (find(), calls(record))


def test_a_hang_is_valid_for_an_hour(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may only have been busy, so there is a later probe. Another failure stays valid."""
    record = fake("exec sleep 60")
    monkeypatch.setattr(accelerator, "probe_failure", lambda *_: probe_failure("kvm", "host", timeout_s=1))
    now = time.time()
    for later, expected in ((0, 1), (3500, 1), (3700, 2), (-1000, 3)):
        monkeypatch.setattr("kimbox.drivers.accelerator.time.time", lambda at=now + later: at)
        assert "a guest hangs" in find().why
        assert expected == calls(record)
    fake("echo bad >&2; exit 1")
    accelerator.renew()
    count = calls(record)
    monkeypatch.setattr("kimbox.drivers.accelerator.time.time", lambda: now + 1e6)
    assert (True, count) == (find().why.endswith("bad"), calls(record))


def acceleration() -> HostCheck:
    """Returns the check of `kimbox doctor` for the acceleration."""
    (check,) = [check for check in Qemu.check_host() if check.what == "acceleration"]
    return check


def test_doctor_probes_again_and_stores_the_result(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """So one bad probe does not count until the next boot. The command that repairs it is not part of the reason."""
    for act in ("echo bad >&2; exit 1", f"exit {EXIT_STATUS}"):
        program = fake(act).parent / "bin/qemu-system-x86_64"
        os.utime(program, ns=(1, 1))  # QEMU is the same as before
        assert "tcg" == find().name
    assert Outcome.GOOD is acceleration().outcome
    assert KVM_WORKS == find()
    monkeypatch.setattr(accelerator, "_may_open", lambda: False)
    check = acceleration()
    assert (Outcome.SLOW, accelerator.KVM_ACCESS_COMMAND) == (check.outcome, check.repair)
    assert "usermod" not in check.result


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", "\0", "x" * (5 << 20), '{"fingerprint": 1}', None, '"accelerator": 5']
)
def test_a_damaged_cache_is_probed_again(fake: Fake, damage: str | None) -> None:
    """With any content of the file, the result is correct, and the file is then repaired."""
    record = fake(f"exit {EXIT_STATUS}")
    find()
    file = paths.host_facts_file()
    if damage is None:
        facts = json.loads(file.read_text())
        del facts["accelerator"]
        damage = json.dumps(facts)
    file.write_text(damage)
    assert KVM_WORKS == find()
    assert 2 == calls(record)
    assert "kvm" == json.loads(file.read_text())["accelerator"]


def test_values_of_the_cache_never_reach_qemu(fake: Fake) -> None:
    """A file with the right fingerprint and wrong values gives an accelerator that exists."""
    fake(f"exit {EXIT_STATUS}")
    find()
    file = paths.host_facts_file()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accelerator": ["-evil"], "cpu": 5, "why": 7}))
    assert (["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-erms"], "7") == (find().arguments(), find().why)


def test_without_qemu_the_hint_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing program has its own error class."""
    monkeypatch.setattr("kimbox.run.which", lambda _: None)
    with pytest.raises(MissingToolError) as missing:
        find()
    assert "apt-get install qemu-system-x86" in str(missing.value.hint)
