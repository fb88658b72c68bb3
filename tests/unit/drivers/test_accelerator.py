"""Which accelerator is used. A stand-in for QEMU tells how it was called, and ends as it is told to."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kimbox import paths
from kimbox.drivers import accelerator
from kimbox.drivers.accelerator import EXIT_STATUS, KVM_WORKS, boot_sector, find, probe, try_out
from kimbox.drivers.hostcheck import Outcome
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
    """Puts a qemu-system-x86_64 on PATH that records its arguments, a line a call, and then does what it is told."""
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


def test_the_boot_sector_writes_to_the_exit_port() -> None:
    """Disassembled by hand: mov dx, 0x501; mov al, 0x2a; out dx, al; hlt; jmp to the hlt; the BIOS signature."""
    sector = boot_sector()
    assert 512 == len(sector)
    assert (0xBA, 0x501) == (sector[0], int.from_bytes(sector[1:3], "little"))
    assert (0xB0, 0x2A) == (sector[3], sector[4])
    assert 0xEE == sector[5]
    assert 0xF4 == sector[6]
    assert 0xEB == sector[7]
    after_jump = 9
    assert 6 == after_jump + int.from_bytes(sector[8:9], "little", signed=True)
    assert bytes(501) == sector[9:510]
    assert b"\x55\xaa" == sector[510:]
    assert 85 == EXIT_STATUS == 0x2A << 1 | 1


def test_a_guest_that_ran_is_kvm(fake: Fake) -> None:
    """QEMU ends with the number that the guest wrote; it was asked for KVM and no display."""
    record = fake(f"exit {EXIT_STATUS}")
    assert KVM_WORKS == probe()
    assert ["-accel", "kvm", "-cpu", "host"] == KVM_WORKS.arguments()
    said = record.read_text()
    for part in ("-accel kvm", "-display none", "-nodefaults", "isa-debug-exit,iobase=0x501,iosize=1"):
        assert part in said


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("echo 'failed to initialize kvm: Permission denied' >&2; exit 1", "kvm: Permission denied"),
        ("exit 3", "QEMU ended with status 3"),
        ("kill -ABRT $$", "QEMU ended with status -6"),
        ("exec sleep 60", r"a guest hangs \(did not end within 0.3 s\)"),
    ],
)
def test_a_guest_that_did_not_run(fake: Fake, act: str, why: str) -> None:
    """Whatever goes wrong has a reason; a hang is ended."""
    fake(act)
    assert re.search(why, try_out("kvm", "host", timeout_s=0.3 if "hangs" in why else 60) or "it ran")


def test_software_emulation_is_what_remains(fake: Fake, kvm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No KVM, one that may not be opened, one that does not work: each with its reason."""
    record = fake("echo bad >&2; exit 1")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert ("tcg", "max,-erms") == ((found := probe()).name, found.cpu)
    assert f"may not open {kvm}" in found.why
    assert "usermod" not in found.why
    assert "sudo usermod --append --groups kvm $USER" in str(found.mend)
    assert 0 == calls(record)
    kvm.unlink()
    assert f"there is no {kvm}" == probe().why
    kvm.touch()
    monkeypatch.undo()


def test_kvm_that_does_not_work(fake: Fake, kvm: Path) -> None:
    """It is there and opens, and yet no guest runs."""
    fake("echo bad >&2; exit 1")
    assert f"{kvm} is there, but bad" == probe().why


def test_the_answer_is_kept_while_nothing_changes(fake: Fake, kvm: Path) -> None:
    """One probe; another QEMU, or another device, is asked anew."""
    record = fake(f"exit {EXIT_STATUS}")
    assert [KVM_WORKS] * 3 == [find() for _ in range(3)]
    assert 1 == calls(record)
    fake("echo worse >&2; exit 1")
    os.utime(record.parent / "bin/qemu-system-x86_64", ns=(1, 1))
    assert ("tcg", f"{kvm} is there, but worse") == ((found := find()).name, found.why)
    assert found == find()
    assert 2 == calls(record)
    kvm.unlink()
    assert f"there is no {kvm}" == find().why


def test_a_hang_is_believed_for_an_hour(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may only have been busy: later it is tried again. Another failure is believed."""
    record = fake("exec sleep 60")
    monkeypatch.setattr(accelerator, "try_out", lambda *_: try_out("kvm", "host", timeout_s=1))
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


def test_doctor_probes_anew_and_keeps_what_it_finds(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad probe is not believed until the next boot; what mends is a command of its own."""
    for act in ("echo bad >&2; exit 1", f"exit {EXIT_STATUS}"):
        program = fake(act).parent / "bin/qemu-system-x86_64"
        os.utime(program, ns=(1, 1))  # QEMU is the same as before
        assert "tcg" == find().name
    assert Outcome.GOOD is Qemu.check_host()[-1].outcome
    assert KVM_WORKS == find()
    monkeypatch.setattr(accelerator, "_may_open", lambda: False)
    check = Qemu.check_host()[-1]
    assert (Outcome.SLOW, accelerator.MAY_OPEN) == (check.outcome, check.mend)
    assert "usermod" not in check.found


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", "\0", "x" * (5 << 20), '{"fingerprint": 1}', None, '"accelerator": 5']
)
def test_a_damaged_cache_is_probed_again(fake: Fake, damage: str | None) -> None:
    """Whatever is in the file, the answer is right, and the file afterwards."""
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


def test_nonsense_in_the_cache_never_reaches_qemu(fake: Fake) -> None:
    """A file of the right mark and wrong words gives an accelerator that exists."""
    fake(f"exit {EXIT_STATUS}")
    find()
    file = paths.host_facts_file()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accelerator": ["-evil"], "cpu": 5, "why": 7}))
    assert (["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-erms"], "7") == (find().arguments(), find().why)


def test_without_qemu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing program is an error of its own kind."""
    monkeypatch.setattr("kimbox.run.which", lambda _: None)
    with pytest.raises(MissingToolError) as missing:
        find()
    assert "apt-get install qemu-system-x86" in str(missing.value.hint)
