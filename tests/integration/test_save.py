"""`kimbox save` and `kimbox create --from` on real disks, with a folder as the store."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import attrs
import madedisk
import makesaved
import pytest
import saveverbs
import zstandard
from clirun import Kimbox, result
from clirun import kimbox as kimbox
from clirun import world as world
from makemachine import running
from makesaved import HOST_KEY, ID, IMAGE, MIB, SEED
from saveverbs import refused, saved

from kimbox import paths, run
from kimbox.actions.saves import save as saving
from kimbox.image.saves import packs
from kimbox.image.saves.manifest import Manifest
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose, Sealed
from kimbox.transfer.stores.base import failed
from kimbox.transfer.stores.folder import FolderStore

machine, store = saveverbs.machine, saveverbs.store  # fixtures


def contents(store: Path) -> bytes:
    """Everything in a store, the chunks unpacked."""
    parts = []
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        data = path.read_bytes()
        parts.append(data)
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as frames:
            parts += [frames.read()] if path.parent.name == "packs" else []
    return b"".join(parts)


def numbers(kimbox: Kimbox, store: Path) -> list[int]:
    """The saves that the verb lists."""
    return [one["number"] for one in result(kimbox("--json", "save", "--list", str(store))[1], "save")["saves"]]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """A box that is made of a save has the user's files, and an identity of its own."""
    before = machine.disk.read_bytes()
    mine = makesaved.get(machine, world, "persistent/mine")
    code, out, err = kimbox("--json", "save", "tiny", str(store))
    assert 0 == code, err + out
    done = result(out, "save")
    assert (1, "tiny", IMAGE, False, []) == tuple(done[key] for key in ("number", "name", "image", "fat", "removed"))
    assert 3 * MIB < done["uploaded_bytes"] == done["added_bytes"] < 4 * MIB
    assert before == machine.disk.read_bytes()
    assert not (machine.folder / "save").exists()
    code, out, err = kimbox("--json", "create", "other", "--from", str(store))
    assert 0 == code, err + out
    made, other = result(out, "create"), Machine("other")
    assert (1, "other", "tiny") == (made["number"], made["name"], made["box"])
    assert mine == makesaved.get(other, world, "persistent/mine")
    assert b"notes of a user\n" == makesaved.get(other, world, "root/home/notes")
    record, old = other.record(), machine.record()
    assert (Purpose.CLONE, IMAGE, "tiny") == (record.purpose, record.image, record.box)
    assert record.uuid != old.uuid
    assert record.mac != old.mac
    assert f"{record.uuid.replace('-', '')}\n".encode() == makesaved.get(other, world, "root/etc/machine-id")
    seed = makesaved.get(other, world, "root/var/lib/systemd/random-seed")
    assert len(SEED) == len(seed)
    assert SEED != seed
    assert makesaved.get(other, world, "persistent/ssh/ssh_host_ed25519_key") == b""
    assert machine.key.read_bytes() != other.key.read_bytes()
    assert not other.unfinished.exists()


def test_nothing_private_is_in_a_store(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """Neither the host key nor the ids and seeds of the machine. What a user wrote is there."""
    done = saved(kimbox, store, "--fat")
    everything = contents(store)
    for private in (HOST_KEY, ID.encode(), SEED, machine.key.read_bytes(), machine.record().uuid.encode()):
        assert private not in everything
    assert b"notes of a user" in everything
    assert {"/persistent/ssh/ssh_host_ed25519_key", "/etc/machine-id"} <= set(done["cleaned"])


def test_a_second_save_uploads_what_changed(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """1 MiB of new data costs little more than that; an unchanged box costs an index at most."""
    first = saved(kimbox, store)
    assert 0 == saved(kimbox, store)["uploaded_bytes"] < first["uploaded_bytes"]
    makesaved.write(machine, world, {"persistent/more": os.urandom(MIB)})
    third = saved(kimbox, store)
    assert MIB < third["uploaded_bytes"] < 1.3 * MIB
    assert [3, 2, 1] == numbers(kimbox, store)
    assert 0 == kimbox("create", "old", "--from", str(store), "--save", "1")[0]
    assert 0 == kimbox("create", "new", "--from", str(store))[0]
    assert b"" == makesaved.get(Machine("old"), world, "persistent/more")
    assert MIB == len(makesaved.get(Machine("new"), world, "persistent/more"))


def test_removed_files_and_free_space_are_not_saved(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """The blocks of a removed file are free: their content is not in the save."""
    makesaved.write(machine, world, {"persistent/secret": b"do not keep this" * 1000})
    raw = makesaved.shown(machine, world)
    madedisk.remove(raw, madedisk.PLACES["persistent"], "secret")
    machine.disk.unlink()
    madedisk.overlaid(paths.images_dir() / IMAGE / "disk.raw", raw, machine.disk)
    assert b"do not keep this" in raw.read_bytes()
    saved(kimbox, store)
    assert b"do not keep this" not in contents(store)


def test_only_kept_saves_stay(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """--keep removes older saves and what only they need. Each save that stays is whole."""
    sizes = []
    for turn in range(6):
        makesaved.write(machine, world, {"persistent/turn": os.urandom(MIB) + bytes([turn])})
        saved(kimbox, store, "--keep", "2")
        sizes.append(sum(path.stat().st_size for path in store.rglob("packs/*")))
    assert [6, 5] == numbers(kimbox, store)
    assert sizes[5] < sizes[3] + MIB // 2
    for number in (5, 6):
        assert 0 == kimbox("create", f"made-{number}", "--from", str(store), "--save", str(number))[0]
        assert number - 1 == makesaved.get(Machine(f"made-{number}"), world, "persistent/turn")[-1]
    assert "save-not-found" == refused(kimbox, "create", "x", "--from", str(store), "--save", "1")["code"]


def test_what_no_save_needs_is_removed_by_the_next(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """Objects that an interrupted save left, and temporary names, do not stay. Foreign files do."""
    saved(kimbox, store)
    (store / "packs" / f"000001-{'0' * 64}").write_bytes(b"left")
    (store / "packs" / f"000009-{'0' * 64}").write_bytes(b"of a saver that is at work")
    (store / "packs" / "README").write_bytes(b"mine")
    saved(kimbox, store)
    assert not (store / "packs" / f"000001-{'0' * 64}").exists()
    assert (store / "packs" / f"000009-{'0' * 64}").exists()
    assert (store / "packs" / "README").exists()


def test_a_bit_flipped_anywhere_is_found_and_named(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """In each object of a fat save, at its start, in the middle and at its end."""
    saved(kimbox, store, "--fat")
    shutil.rmtree(paths.images_dir() / IMAGE)
    needed = [path for path in sorted(store.rglob("*")) if path.is_file()]
    assert {"saves", "packs", "indexes", "files"} == {path.parent.name for path in needed}
    for path in needed:
        data = path.read_bytes()
        for at in {0, len(data) // 2, len(data) - 1}:
            for left in (paths.images_dir(), Machine("other").unfinished):  # of the attempt before
                shutil.rmtree(left, ignore_errors=True)
            path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            problem = refused(kimbox, "create", "other", "--from", str(store))
            assert ("save-damaged", f"{path.parent.name}/{path.name}") == (
                problem["code"], problem["fields"]["object"],
            ), (path, at)  # fmt: skip
            assert not Machine("other").exists
        path.write_bytes(data)
    assert 0 == kimbox("create", "other", "--from", str(store))[0]
    assert b"notes of a user\n" == makesaved.get(Machine("other"), world, "root/home/notes")


def test_a_damaged_newest_save_does_not_hide_the_others(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """It is listed with its problem, and the next save is made without it."""
    saved(kimbox, store)
    saved(kimbox, store)
    (store / "saves/000002.json").write_bytes(b"kimbox-save 1 nonsense")
    rows = result(kimbox("--json", "save", "--list", str(store))[1], "save")["saves"]
    assert [(2, True), (1, False)] == [(row["number"], row["problem"] is not None) for row in rows]
    assert 3 == saved(kimbox, store)["number"]
    assert 0 == kimbox("create", "other", "--from", str(store), "--save", "1")[0]


def test_a_fat_save_needs_no_image(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """The image comes from the save. Unless the save is signed, it gets a key of its own."""
    saved(kimbox, store, "--fat")
    shutil.rmtree(paths.images_dir() / IMAGE)
    assert 0 == kimbox("create", "other", "--from", str(store))[0]
    image = Machine("other").record().image
    assert IMAGE != image
    assert b"notes of a user\n" == makesaved.get(Machine("other"), world, "root/home/notes")
    assert (paths.images_dir() / image / "disk.raw").stat().st_blocks * 512 < 20 * MIB


def test_a_thin_save_needs_its_image(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """Another image under the same key is refused; a missing one that cannot be made is an error."""
    saved(kimbox, store)
    facts = paths.images_dir() / IMAGE / "image.json"
    facts.write_text(facts.read_text().replace('"disk_digest": "', '"disk_digest": "0'))
    assert "checksum-mismatch" == refused(kimbox, "create", "other", "--from", str(store))["code"]
    shutil.rmtree(paths.images_dir() / IMAGE)
    assert "image-not-found" == refused(kimbox, "create", "other", "--from", str(store))["code"]
    assert not Machine("other").exists


def test_signatures(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """With --key only a save that the key has signed is used."""
    for name in ("mine", "other"):
        run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", world / name])
    key = str(world / "mine.pub")
    saved(kimbox, store)
    assert "signature-missing" == refused(kimbox, "create", "x", "--from", str(store), "--key", key)["code"]
    saved(kimbox, store, "--sign", str(world / "mine"))
    rows = result(kimbox("--json", "save", "--list", str(store))[1], "save")["saves"]
    assert [True, False] == [row["signed"] for row in rows]
    wrong = refused(kimbox, "create", "x", "--from", str(store), "--key", str(world / "other.pub"))
    assert "signature-wrong" == wrong["code"]
    assert 0 == kimbox("create", "x", "--from", str(store), "--key", key)[0]


def test_what_cannot_be_saved(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """A box that runs, a sealed one, and one whose file systems were not unmounted. Nothing is written."""
    with running(machine):
        assert "wrong-state" == refused(kimbox, "save", "tiny", str(store))["code"]
    record = machine.record()
    machine.write_record(attrs.evolve(record, sealed=Sealed("worker", "x.org")))
    assert "box-sealed" == refused(kimbox, "save", "tiny", str(store))["code"]
    machine.write_record(record)
    machine.unseal_mark.touch()
    assert "box-sealed" == refused(kimbox, "save", "tiny", str(store))["code"]
    assert not store.exists()


def test_a_taken_name_and_an_empty_store(kimbox: Kimbox, machine: Machine, store: Path) -> None:
    """create does not touch a machine that exists. A store without saves is an error, and its list is empty."""
    assert "save-not-found" == refused(kimbox, "create", "x", "--from", str(store))["code"]
    assert [] == numbers(kimbox, store)
    saved(kimbox, store)
    before = machine.disk.read_bytes()
    assert "name-taken" == refused(kimbox, "create", "--from", str(store))["code"]
    assert before == machine.disk.read_bytes()


def test_two_savers(kimbox: Kimbox, machine: Machine, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one is told, and has changed nothing; the same command then works."""
    real = saving.pack_manifest
    theirs: dict[str, bytes] = {}

    def pack(manifest: Manifest) -> bytes:
        data = real(manifest)
        if not theirs:
            theirs["saves/000001.json"] = real(attrs.evolve(manifest, machine="theirs"))
            (store / "saves").mkdir()
            (store / "saves/000001.json").write_bytes(theirs["saves/000001.json"])
        return data

    monkeypatch.setattr(saving, "pack_manifest", pack)
    assert "save-conflict" == refused(kimbox, "save", "tiny", str(store))["code"]
    assert theirs["saves/000001.json"] == (store / "saves/000001.json").read_bytes()
    assert 2 == saved(kimbox, store)["number"]


def test_what_an_interrupted_creation_fetched_is_not_fetched_again(
    kimbox: Kimbox, machine: Machine, store: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call reads back what is on the unfinished disk. Another save starts from the beginning."""
    saved(kimbox, store)
    real, served = FolderStore.read, []

    def read(self: FolderStore, name: str, offset: int, size: int) -> bytes:
        if name.startswith("packs/"):
            served.append(name)
            if len(served) > 1:
                raise failed(self.url, "reading", "the connection was lost")
        return real(self, name, offset, size)

    monkeypatch.setattr(packs, "READ_BYTES", 3 * MIB)
    monkeypatch.setattr(FolderStore, "read", read)
    assert "store-failed" == refused(kimbox, "create", "other", "--from", str(store))["code"]
    assert not Machine("other").exists
    assert Machine("other").unfinished.is_dir()
    monkeypatch.setattr(FolderStore, "read", real)
    done = result(kimbox("--json", "create", "other", "--from", str(store))[1], "create")
    assert 0 < done["fetched_bytes"] < 2.5 * MIB
    assert b"notes of a user\n" == makesaved.get(Machine("other"), world, "root/home/notes")
    assert makesaved.get(machine, world, "persistent/mine") == makesaved.get(Machine("other"), world, "persistent/mine")


def test_the_snapshot_of_a_box_that_keeps_its_changes(
    kimbox: Kimbox, machine: Machine, store: Path, world: Path
) -> None:
    """Its files are saved, and its ids and seeds are not: they are replaced inside the COW store, in their length."""
    other_id = b"f" * 32
    files = {
        "root/home/kept": b"kept in the snapshot",
        "root/etc/machine-id": other_id + b"\n",
        "root/var/lib/dbus/machine-id": other_id + b"\n",
        "root/var/lib/systemd/random-seed": b"another seed of it" * 28,
    }
    makesaved.into_snapshot(machine, world, files)
    assert b"kept in the snapshot" == makesaved.in_snapshot(machine, world, "/home/kept")
    saved(kimbox, store)
    everything = contents(store)
    assert b"kept in the snapshot" in everything
    for private in (other_id, ID.encode(), b"another seed of it", SEED):
        assert private not in everything
    assert 0 == kimbox("create", "other", "--from", str(store))[0]
    other = Machine("other")
    assert b"kept in the snapshot" == makesaved.in_snapshot(other, world, "/home/kept")
    own_id = f"{other.record().uuid.replace('-', '')}\n".encode()
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        assert own_id == makesaved.in_snapshot(other, world, path)
    seed = makesaved.in_snapshot(other, world, "/var/lib/systemd/random-seed")
    assert seed
    assert 28 * 18 == len(seed)
    assert b"another seed" not in seed
    assert own_id == makesaved.get(other, world, "root/etc/machine-id")


def test_a_disk_that_was_not_unmounted(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """Of root, its free space is not known: it is refused. /persistent is repaired in the save."""
    raw = makesaved.shown(machine, world)
    for volume, code in (("persistent", 0), ("root", 5)):
        place = madedisk.PLACES[volume]
        run.run(["debugfs", "-w", "-R", "feature needs_recovery", madedisk.device(raw, place)])
        machine.disk.unlink()
        madedisk.overlaid(paths.images_dir() / IMAGE / "disk.raw", raw, machine.disk)
        found, out, err = kimbox("save", "tiny", str(store))
        assert code == found, out + err
    assert "was not unmounted" in err
    assert 0 == kimbox("create", "other", "--from", str(store))[0]
    assert 3 * MIB == len(makesaved.get(Machine("other"), world, "persistent/mine"))
    assert madedisk.is_sound(makesaved.shown(Machine("other"), world), madedisk.PLACES["persistent"])


def test_the_store_of_a_spec(kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """Without a URL it is that of the spec, with the name of the box in it; without either it is an error."""
    spec = world / "work/kimbox.yaml"
    machine.write_record(attrs.evolve(machine.record(), source=str(spec)))
    spec.write_text(json.dumps(makesaved.SPEC))
    assert "usage" == refused(kimbox, "save")["code"]
    spec.write_text(json.dumps({**makesaved.SPEC, "store": f"file://{world}/saves/{{name}}"}))
    code, out, err = kimbox("--json", "save")
    assert 0 == code, out + err
    assert (world / "saves/tiny/saves/000001.json").is_file()
    for wrong in ("ftp://h/x", "https://me:secret@h/x", "relative"):
        spec.write_text(json.dumps({**makesaved.SPEC, "store": wrong}))
        assert 3 == kimbox("validate")[0], wrong


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
def test_a_full_store_changes_nothing(kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """The former save stays whole, and after space was made the next one is complete."""
    store = world / "small"
    store.mkdir()
    run.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", store])
    try:
        saved(kimbox, store)
        makesaved.write(machine, world, {"persistent/more": os.urandom(6 * MIB)})
        before = snapshot(store)
        assert "no-space" == refused(kimbox, "save", "tiny", str(store))["code"]
        after = snapshot(store)
        assert before == {name: after[name] for name in before}
        assert [1] == numbers(kimbox, store)
        run.run(["mount", "-o", "remount,size=32m", store])
        assert 2 == saved(kimbox, store)["number"]
    finally:
        run.run(["umount", store])
