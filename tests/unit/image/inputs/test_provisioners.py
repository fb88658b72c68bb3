"""Every folder of provisioners/ is of one shape, and what is not is refused by name."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from kimbox import files, paths
from kimbox.errors import ImageError
from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import GuestFile

SHIPPED = sorted(p.name for p in paths.provisioners_dir().iterdir() if p.is_dir())

#: Units of Debian's that those of kimbox name.
FOREIGN = {
    "dbus.service", "local-fs.target", "shutdown.target", "sockets.target", "ssh.service", "sysinit.target",
    "systemd-logind.service", "systemd-networkd.service", "systemd-udevd.service",
}  # fmt: skip

GOOD = {"summary": "a thing", "description": "does it", "packages": "[git]", "enable": "[a.service]"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of provisioners that holds one, `thing`."""
    folder = tmp_path / "provisioners" / "thing"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "provisioners_dir", lambda: tmp_path / "provisioners")
    write(folder, GOOD)
    return folder


def write(folder: Path, meta: dict[str, str]) -> None:
    """Its provisioner.yaml."""
    (folder / "provisioner.yaml").write_text("".join(f"{key}: {value}\n" for key, value in meta.items()))


def test_the_schema_is_one() -> None:
    """It is valid by its own standard."""
    Draft202012Validator.check_schema(files.read_json(paths.schemas_dir() / "provisioner.schema.json"))


def test_every_image_has_all_that_ship() -> None:
    """None lies about without being used."""
    assert sorted(provisioners.BASE) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_loads(name: str) -> None:
    """It has the shape; its folder holds nothing that nobody reads; programs are executable, units are not."""
    loaded = provisioners.load(name)
    assert loaded.files
    known = {"provisioner.yaml", "root", "persistent", "build", "deliver"}
    assert {p.name for p in (paths.provisioners_dir() / name).iterdir()} <= known
    for file in (*loaded.files, *loaded.persistent):
        is_program = file.data.startswith(b"#!")
        assert (0o755 if is_program else 0o644) == file.mode, file.path


def test_units_name_units_that_are_there() -> None:
    """What a unit of ours is ordered by or asks for is shipped, too, or one of Debian's."""
    files = [file for name in SHIPPED for file in provisioners.load(name).files]
    units = {Path(file.path).name: file.data.decode() for file in files if "systemd/system/" in file.path}
    lines = re.findall(r"^(?:After|Before|Wants|Requires|PartOf|Conflicts)=(.*)$", "\n".join(units.values()), re.M)
    named = {name for line in lines for name in line.split()}
    assert named - set(units) <= FOREIGN
    assert {"provisiond.service", "kimbox-early.service"} <= named


def test_units_that_are_enabled_are_there_or_of_a_package() -> None:
    """A unit of kimbox's own that is enabled is among the files."""
    loaded = [provisioners.load(name) for name in provisioners.BASE]
    units = {Path(f.path).name for p in loaded for f in p.files if "systemd/system/" in f.path}
    enabled = {unit for p in loaded for unit in p.enable}
    assert enabled - units <= {"systemd-networkd.service"}


def test_no_two_bring_the_same_file() -> None:
    """Otherwise the order would decide."""
    overlay = provisioners.overlay([provisioners.load(name) for name in provisioners.BASE])
    names = [f.path for f in overlay]
    assert len(names) == len(set(names))


def test_a_good_one(own: Path) -> None:
    """Files, masks, units that come later and the build script are where the guest has them."""
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
    ("change", "said"),
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
def test_another_shape_is_refused(own: Path, change: dict[str, str], said: str) -> None:
    """The error names the file and the place in it."""
    write(own, GOOD | change)
    with pytest.raises(ImageError) as caught:
        provisioners.load("thing")
    assert "thing" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"a: *b"])
def test_what_is_no_mapping_is_refused(own: Path, content: bytes) -> None:
    """Neither nothing nor noise gives a traceback."""
    (own / "provisioner.yaml").write_bytes(content)
    with pytest.raises(ImageError):
        provisioners.load("thing")


def test_a_missing_one_is_refused(own: Path) -> None:
    """Without its folder there is no provisioner."""
    shutil.rmtree(own)
    with pytest.raises(ImageError, match="thing cannot be read"):
        provisioners.load("thing")


def test_the_archive_is_the_same_whatever_the_order(tmp_path: Path) -> None:
    """Owned by root, sorted, of one time: equal files give equal bytes."""
    one = [GuestFile("b", b"2", 0o755), GuestFile("a", b"1"), GuestFile("c", b"", link="/dev/null")]
    for name, order in (("1", one), ("2", one[::-1])):
        provisioners.write_tar(order, tmp_path / name, 1735689600)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    with tarfile.open(tmp_path / "1") as archive:
        found = [(m.name, m.mode, m.uid, m.mtime, m.linkname) for m in archive]
    assert [
        ("a", 0o644, 0, 1735689600, ""),
        ("b", 0o755, 0, 1735689600, ""),
        ("c", 0o777, 0, 1735689600, "/dev/null"),
    ] == found


def test_the_digest_tells_every_difference() -> None:
    """Name, content, mode and link each count; order does not."""
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
    """A checkout under a strict umask gives the same files."""
    (own / "root").mkdir()
    (own / "root/program").write_text("#!/bin/sh\n")
    (own / "root/text").write_text("x")
    loaded = []
    for program, text in ((0o755, 0o644), (0o700, 0o600), (0o775, 0o664)):
        (own / "root/program").chmod(program)
        (own / "root/text").chmod(text)
        loaded.append(provisioners.digest(list(provisioners.load("thing").files)))
    assert 1 == len(set(loaded))
