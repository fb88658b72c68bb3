"""The boot mode, set in a qcow2 that is not booted, with real mke2fs, qemu-img, qemu-nbd and debugfs."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import makemachine
import pytest
from madedisk import CREATED
from refused import refused

from kimbox import run
from kimbox.errors import KimboxError
from kimbox.image.disk import grubenv
from kimbox.image.disk.ext4 import inodes
from kimbox.image.disk.grubenv import NEXT, SAVED, changed, values
from kimbox.machine.bootmode import NoEnvironment, set_entries
from kimbox.machine.folder import Machine
from kimbox.settings import settings
from kimbox.spec.model import BootMode

MIB = 1 << 20
START = MIB
SIZE = 16 * MIB

KEEP, RESNAP, MAINTAIN = BootMode.KEEP, BootMode.RESNAP, BootMode.MAINTAIN


def make_image(folder: Path, *options: str, content: bytes = CREATED, label: str = "kimbox-boot") -> Path:
    """A raw disk with an MBR and, in partition 1, /grub/grubenv among other files."""
    files = folder / "files"
    (files / "grub").mkdir(parents=True)
    (files / "grub/grubenv").write_bytes(content)
    for name in ("vmlinuz", "initrd.img", "grub/grub.cfg"):
        (files / name).write_bytes(name.encode() * 10000)
    disk = folder / "image.raw"
    with disk.open("wb") as file:
        mbr = bytearray(512)
        mbr[446:462] = (
            bytes([0x80, 0xFE, 0xFF, 0xFF, 0x83, 0xFE, 0xFF, 0xFF]) + (START // 512).to_bytes(4, "little") * 2
        )
        mbr[510:] = b"\x55\xaa"
        file.write(mbr)
        file.truncate(START + SIZE + MIB)
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-d", files, "-E", f"offset={START}", *options]
    run.run([*argv, disk, f"{SIZE // 1024}k"])
    return disk


def machine_on(image: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose disk is an overlay, in a folder whose name has blanks and quotes."""
    monkeypatch.setenv("KIMBOX_HOME", str(image.parent / "a home, with 'blanks'"))
    monkeypatch.setattr(settings, "quiet", True)
    machine = makemachine.make_machine()
    machine.disk.unlink()
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", machine.disk])
    return machine


def flattened(machine: Machine) -> Path:
    """The disk as a guest reads it."""
    raw = machine.folder / "flat.raw"
    run.run(["qemu-img", "convert", "-O", "raw", machine.disk, raw])
    return raw


def block_of(machine: Machine) -> bytes:
    """/grub/grubenv as e2fsprogs read it from the disk; the file system is sound."""
    raw = flattened(machine)
    device = f"{raw}?offset={START}"
    run.run(["e2fsck", "-fn", device])
    run.run(["debugfs", "-R", "dump /grub/grubenv taken", device], cwd=machine.folder)
    return (machine.folder / "taken").read_bytes()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a boot partition as kimbox creates it."""
    return machine_on(make_image(tmp_path, "-b", "4096", "-I", "256"), monkeypatch)


def modes(machine: Machine) -> tuple[bytes | None, bytes | None]:
    """The mode of all boots, and of the next boot, in the block."""
    variables = values(block_of(machine))
    assert variables is not None
    return variables.get(SAVED), variables.get(NEXT)


def test_the_mode_is_set_and_nothing_else_changes(machine: Machine) -> None:
    """e2fsprogs read the mode back. All other bytes of the disk, and the backing image, are unchanged."""
    image = machine.folder.parents[2] / "image.raw"
    before = flattened(machine).read_bytes()
    digest = hashlib.sha256(image.read_bytes()).digest()
    files = sorted(machine.folder.iterdir())
    assert set_entries(machine, RESNAP)
    assert files == sorted(machine.folder.iterdir())
    assert (b"resnap", None) == modes(machine)
    assert set_entries(machine, KEEP, MAINTAIN)
    assert (b"keep", b"maintain") == modes(machine)
    assert set_entries(machine, RESNAP)
    assert changed(CREATED, {SAVED: b"resnap"}) == block_of(machine)
    after = flattened(machine).read_bytes()
    at = after.index(grubenv.SIGNATURE)
    assert before[:at] + before[at + 1024 :] == after[:at] + after[at + 1024 :]
    assert digest == hashlib.sha256(image.read_bytes()).digest()


def test_an_unchanged_mode_is_not_written(machine: Machine) -> None:
    """Nor if GRUB has cleared next_entry. The file of the disk has the same bytes."""
    set_entries(machine, KEEP)
    raw = flattened(machine)
    offset = raw.read_bytes().index(grubenv.SIGNATURE)
    emptied = machine.folder / "emptied"
    emptied.write_bytes(changed(block_of(machine), {NEXT: b""}))
    run.run(["qemu-io", "-f", "qcow2", "-c", f"write -s emptied {offset} 1024", machine.disk], cwd=machine.folder)
    assert (b"keep", b"") == modes(machine)
    before = machine.disk.read_bytes()
    assert not set_entries(machine, KEEP)
    assert before == machine.disk.read_bytes()
    assert set_entries(machine, KEEP, RESNAP)


def test_a_replaced_file_is_found(machine: Machine) -> None:
    """A guest may replace the file. GRUB then no longer reads the old block, which still has the signature."""
    set_entries(machine, RESNAP)
    raw = flattened(machine)
    old = raw.read_bytes().index(grubenv.SIGNATURE)
    device = f"{raw}?offset={START}"
    (machine.folder / "new").write_bytes(changed(CREATED, {b"mine": b"1"}))
    script = machine.folder / "script"
    script.write_text("write new /grub/new\nunlink /grub/grubenv\nln /grub/new /grub/grubenv\nunlink /grub/new\n")
    run.run(["debugfs", "-w", "-f", script, device], cwd=machine.folder)
    run.run(["qemu-img", "convert", "-O", "qcow2", raw, machine.disk])
    assert set_entries(machine, KEEP)
    run.run(["qemu-img", "convert", "-O", "raw", machine.disk, raw])
    data = raw.read_bytes()
    offsets = [at for at in range(START, START + SIZE, 1024) if data.startswith(grubenv.SIGNATURE, at)]
    assert 2 == len(offsets)
    assert values(data[old : old + 1024]) == {SAVED: b"resnap"}
    [new] = set(offsets) - {old}
    assert values(data[new : new + 1024]) == {b"mine": b"1", SAVED: b"keep"}


@pytest.mark.parametrize(
    "options",
    [
        ["-b", "1024", "-I", "128"],
        ["-b", "1024", "-O", "^64bit,^metadata_csum"],
        ["-b", "2048", "-O", "^flex_bg,^has_journal"],
        ["-b", "4096", "-O", "metadata_csum_seed"],
        ["-b", "4096", "-N", "4096"],
    ],
)
def test_other_forms_of_ext4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """An image of another tool may have other settings. debugfs finds the same block."""
    machine = machine_on(make_image(tmp_path, *options), monkeypatch)
    set_entries(machine, RESNAP)
    assert (b"resnap", None) == modes(machine)
    raw = flattened(machine).read_bytes()[START:]
    system = inodes.open_at(lambda offset, size: raw[offset : offset + size])
    printed = run.run(["debugfs", "-R", "bmap /grub/grubenv 0", f"{tmp_path / 'image.raw'}?offset={START}"]).stdout
    assert int(printed) * system.block_bytes == inodes.locate(system, "/grub/grubenv", 1024)


def test_a_damaged_block_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is found by its name, with any content."""
    machine = machine_on(make_image(tmp_path, content=b"x" * 1024), monkeypatch)
    assert set_entries(machine, RESNAP)
    assert {SAVED: b"resnap"} == values(block_of(machine))


@pytest.mark.parametrize(
    ("reason", "options", "content", "label"),
    [
        ("does not have the label kimbox-boot", [], CREATED, "other"),
        ("is not a regular file of 1024 bytes", [], CREATED[:1000], "kimbox-boot"),
        ("features or sizes that kimbox does not know", ["-O", "inline_data"], CREATED, "kimbox-boot"),
        ("has no file /grub/grubenv", ["-O", "^extents,^64bit"], CREATED, "kimbox-boot"),  # nor any folder kimbox reads
    ],
)
def test_a_disk_that_kimbox_has_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, options: list[str], content: bytes, label: str
) -> None:
    """The error has the reason, and nothing is written."""
    machine = machine_on(make_image(tmp_path, *options, content=content, label=label), monkeypatch)
    before = machine.disk.read_bytes()
    with refused(NoEnvironment, "boot-mode-not-set", name="tiny") as caught:
        set_entries(machine, KEEP)
    assert reason in caught.value.message
    assert "disk of tiny" in caught.value.message
    assert "kimbox destroy tiny" in str(caught.value.hint)
    assert before == machine.disk.read_bytes()


@pytest.mark.parametrize("size", [512, MIB, START + 2048])
def test_a_disk_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """No partition, a partition beyond the end of the disk, a truncated file system."""
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(size))
    with pytest.raises(NoEnvironment):
        set_entries(machine_on(image, monkeypatch), KEEP)


def test_a_disk_that_cannot_be_opened(tmp_path: Path, machine: Machine) -> None:
    """This is not a disk of another tool: the error has the output of QEMU."""
    machine.disk.write_bytes(b"junk")
    with pytest.raises(KimboxError, match="qemu-nbd") as caught:
        set_entries(machine, KEEP)
    assert not isinstance(caught.value, NoEnvironment)


def test_a_hostile_file_system_has_a_bounded_cost(tmp_path: Path) -> None:
    """Any byte of the metadata may have any value. The result is a place in the file system, or an error."""
    image = make_image(tmp_path, "-b", "1024").read_bytes()[START : START + SIZE]
    system = inodes.open_at(lambda offset, size: image[offset : offset + size])
    touched: set[int] = set()

    def read(offset: int, size: int) -> bytes:
        touched.update(range(offset, offset + size))
        return image[offset : offset + size]

    assert CREATED == image[(at := inodes.locate(inodes.open_at(read), "/grub/grubenv", 1024)) : at + 1024]
    chance = random.Random(1)  # noqa: S311 - for tests that are the same each time
    places = sorted(touched)
    outcomes = set()
    for _ in range(3000):
        data = bytearray(image[: 1 << 21])
        for _ in range(chance.choice([1, 2, 8])):
            data[chance.choice(places)] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        reads = []

        def hostile(offset: int, size: int, data: bytearray = data, reads: list[int] = reads) -> bytes:
            reads.append(size)
            piece = bytes(data[offset : offset + size])
            if len(piece) < size:
                raise KimboxError("beyond the end")
            return piece

        try:
            place = inodes.locate(inodes.open_at(hostile), "/grub/grubenv", 1024)
            assert 0 < place < SIZE * 1024
            outcomes.add("found")
        except KimboxError as error:
            outcomes.add(error.fields.get("fault", ""))
        assert len(reads) < 300
        assert sum(reads) < MIB
    assert {"found", "no-file", "no-ext4"} < outcomes
    assert system.label == "kimbox-boot"


def test_a_guest_cannot_keep_the_host_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    """The size of what is read of the disk is bounded, with any directories."""
    monkeypatch.setattr(grubenv, "MAX_READ_BYTES", 4096)
    with pytest.raises(NoEnvironment, match="exceeds the limit of 4096 bytes"):
        set_entries(machine, KEEP)


@pytest.mark.skipif(not run.which("grub-editenv"), reason="no grub here")
def test_grub_reads_what_is_written(machine: Machine) -> None:
    """grub-editenv lists and changes the block, and kimbox keeps the change."""
    set_entries(machine, KEEP, MAINTAIN)
    taken = machine.folder / "taken"
    taken.write_bytes(block_of(machine))
    assert ["next_entry=maintain", "saved_entry=keep"] == sorted(
        run.run(["grub-editenv", taken, "list"]).stdout.splitlines()
    )
    run.run(["grub-editenv", taken, "set", "mine=a b"])
    assert {b"mine": b"a b", SAVED: b"keep", NEXT: b"maintain"} == values(taken.read_bytes())
