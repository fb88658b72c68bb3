"""All folders of provisioners/ have the same structure. A folder with another structure is refused by name."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from refused import refused

from kimbox import files, paths
from kimbox.errors import ImageError
from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import GuestFile

SHIPPED = sorted(p.name for p in paths.provisioners_dir().iterdir() if p.is_dir())

#: Units of Debian to which units of kimbox refer.
FOREIGN = {
    "dbus.service", "dbus.socket", "local-fs.target", "modprobe@i6300esb.service", "network.target", "shutdown.target",
    "sockets.target", "ssh.service", "sysinit.target", "systemd-logind.service", "systemd-networkd.service",
    "systemd-udevd.service",
}  # fmt: skip

GOOD = {"summary": "a thing", "description": "does it", "packages": "[git]", "enable": "[a.service]"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A provisioner `thing`, the only one. Returns its folder."""
    folder = tmp_path / "provisioners" / "thing"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "provisioners_dir", lambda: tmp_path / "provisioners")
    write(folder, GOOD)
    return folder


def write(folder: Path, meta: dict[str, str]) -> None:
    """Writes a provisioner.yaml."""
    (folder / "provisioner.yaml").write_text("".join(f"{key}: {value}\n" for key, value in meta.items()))


def test_the_schema_is_valid() -> None:
    """It is a JSON Schema 2020-12."""
    Draft202012Validator.check_schema(files.read_json(paths.schemas_dir() / "provisioner.schema.json"))


def test_every_provisioner_is_used() -> None:
    """No folder is unused."""
    assert sorted([*provisioners.BASE, provisioners.ADOPTED]) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_provisioner_is_valid(name: str) -> None:
    """Its folder has no file that kimbox does not read. Programs are executable, units are not."""
    loaded = provisioners.load(name)
    assert loaded.files or loaded.build
    known = {"provisioner.yaml", "root", "persistent", "build", "deliver", "listening"}
    assert {p.name for p in (paths.provisioners_dir() / name).iterdir()} <= known
    for file in (*loaded.files, *loaded.persistent):
        is_program = file.data.startswith(b"#!")
        assert (0o755 if is_program else 0o644) == file.mode, file.path


def test_units_refer_to_existing_units() -> None:
    """A unit on which a unit of kimbox depends is shipped by kimbox or Debian."""
    files = [file for name in SHIPPED for file in provisioners.load(name).files]
    units = {Path(file.path).name: file.data.decode() for file in files if "systemd/system/" in file.path}
    lines = re.findall(r"^(?:After|Before|Wants|Requires|PartOf|Conflicts)=(.*)$", "\n".join(units.values()), re.M)
    named = {name for line in lines for name in line.split()}
    assert named - set(units) <= FOREIGN
    assert {"provisiond.service", "kimbox-early.service"} <= named


def test_enabled_units_exist() -> None:
    """An enabled unit is among the files of a provisioner, or from a package."""
    loaded = [provisioners.load(name) for name in provisioners.BASE]
    units = {Path(f.path).name for p in loaded for f in p.files if "systemd/system/" in f.path}
    enabled = {unit for p in loaded for unit in p.enable}
    assert enabled - units <= {"systemd-networkd.service"}


def test_no_two_provisioners_have_the_same_file() -> None:
    """Otherwise the result would depend on their order."""
    overlay = provisioners.overlay([provisioners.load(name) for name in provisioners.BASE])
    names = [f.path for f in overlay]
    assert len(names) == len(set(names))


def test_a_valid_provisioner(own: Path) -> None:
    """Files, masks, drop-ins and the build script have their paths in the guest."""
    write(
        own,
        GOOD | {"mask": "[b.timer]", "mask_generators": "[gen]", "mask_tmpfiles": "[x.conf]", "later": "[c.service]"},
    )
    (own / "root/etc").mkdir(parents=True)
    (own / "root/etc/thing").write_text("x")
    (own / "build").write_text("#!/bin/sh\n")
    overlay = {f.path: f for f in provisioners.overlay([provisioners.load("thing")])}
    assert {
        "etc/systemd/system-generators/gen",
        "etc/systemd/system/b.timer",
        "etc/systemd/system/c.service.d/kimbox-later.conf",
        "etc/thing",
        "etc/tmpfiles.d/x.conf",
        "usr/lib/kimbox/build.d/00-thing",
    } == set(overlay)
    assert "/dev/null" == overlay["etc/systemd/system/b.timer"].link
    assert 0o755 == overlay["usr/lib/kimbox/build.d/00-thing"].mode


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packages": "git"}, "$.packages"),
        ({"packages": "[git=1]"}, "$.packages[0]"),
        ({"enable": "[a]"}, "$.enable[0]"),
        ({"mask": "[../../etc/passwd.service]"}, "$.mask[0]"),
        ({"mask_generators": "['..']", "mask_tmpfiles": "[a/b.conf]"}, "$.mask_tmpfiles[0]"),
        ({"summary": "Ends in a full stop."}, "$.summary"),
        ({"enabel": "[]"}, "'enabel' was unexpected"),
        ({"summary": "[1, 2"}, "cannot be read"),
        ({"summary": "\0"}, "cannot be read"),
    ],
)
def test_another_structure_is_refused(own: Path, change: dict[str, str], words: str) -> None:
    """The error names the provisioner, the file, and the place in it."""
    write(own, GOOD | change)
    with refused(ImageError, "bad-provisioner", name="thing", path=str(own / "provisioner.yaml")) as caught:
        provisioners.load("thing")
    assert "thing" in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"a: *b"])
def test_a_file_that_is_not_a_mapping_is_refused(own: Path, content: bytes) -> None:
    """Also an empty file, and a file that is not YAML."""
    (own / "provisioner.yaml").write_bytes(content)
    with refused(ImageError, "bad-provisioner", name="thing"):
        provisioners.load("thing")


def test_a_missing_provisioner_is_refused(own: Path) -> None:
    """The error names its folder."""
    shutil.rmtree(own)
    with refused(ImageError, "bad-provisioner", name="thing", path=str(own)):
        provisioners.load("thing")


def test_the_archive_does_not_depend_on_the_order(tmp_path: Path) -> None:
    """Owner root, sorted, all of the same time: equal files result in equal bytes."""
    guest_files = [GuestFile("b", b"2", 0o755), GuestFile("a", b"1"), GuestFile("c", b"", link="/dev/null")]
    for name, order in (("1", guest_files), ("2", guest_files[::-1])):
        provisioners.write_tar(order, tmp_path / name, 1735689600)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    with tarfile.open(tmp_path / "1") as archive:
        members = [(m.name, m.mode, m.uid, m.mtime, m.linkname) for m in archive]
    assert [
        ("a", 0o644, 0, 1735689600, ""),
        ("b", 0o755, 0, 1735689600, ""),
        ("c", 0o777, 0, 1735689600, "/dev/null"),
    ] == members


def test_every_difference_changes_the_digest() -> None:
    """Name, content, mode and link each change it; the order does not."""
    files_of = [
        [GuestFile("a", b"1")],
        [GuestFile("b", b"1")],
        [GuestFile("a", b"2")],
        [GuestFile("a", b"1", 0o755)],
        [GuestFile("a", b"1", link="/dev/null")],
        [GuestFile("a", b"1"), GuestFile("b", b"1")],
    ]
    assert len(files_of) == len({provisioners.digest(f) for f in files_of})
    assert provisioners.digest(files_of[-1]) == provisioners.digest(files_of[-1][::-1])


def test_modes_do_not_depend_on_the_umask(own: Path) -> None:
    """A checkout with a strict umask results in the same files."""
    (own / "root").mkdir()
    (own / "root/program").write_text("#!/bin/sh\n")
    (own / "root/text").write_text("x")
    loaded = []
    for program, text in ((0o755, 0o644), (0o700, 0o600), (0o775, 0o664)):
        (own / "root/program").chmod(program)
        (own / "root/text").chmod(text)
        loaded.append(provisioners.digest(list(provisioners.load("thing").files)))
    assert 1 == len(set(loaded))
