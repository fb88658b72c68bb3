"""The key of an image: it differs for each relevant difference, and does not depend on host, user or process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from makebox import make_box
from tinyimage import LOCKED

from kimbox import paths, run
from kimbox.image import obtain
from kimbox.image.inputs import provisioners, recipe
from kimbox.lock.apt.packages import LockedPackage, LockedPackages
from kimbox.spec.model import BootMode, Box, PackageImage, RemoteImage, Volume

MIB = 1 << 20

#: Module search path for another Python process, which needs kimbox and its libraries.
PYTHONPATH = os.pathsep.join([str(Path(__file__).resolve().parents[4]), *filter(None, sys.path)])

IMAGE = PackageImage("debian", "trixie", ("gcc", "gfortran"))


def box_of(image: PackageImage = IMAGE) -> Box:
    """A small box."""
    return attrs.evolve(make_box(Path("/nowhere")), image=image)


def key(box: Box, locked: LockedPackages = LOCKED) -> str:
    """The key of a box's image."""
    assert isinstance(box.image, PackageImage)
    return recipe.recipe(box, box.image, locked).key


def disk(box: Box, **change: object) -> Box:
    """The box with a changed disk."""
    return attrs.evolve(box, disk=attrs.evolve(box.disk, **change))


CHANGES: dict[str, Callable[[Box], Box]] = {
    "distribution": lambda b: attrs.evolve(b, image=attrs.evolve(IMAGE, distribution="ubuntu")),
    "suite": lambda b: attrs.evolve(b, image=attrs.evolve(IMAGE, suite="bookworm")),
    "packages": lambda b: attrs.evolve(b, image=attrs.evolve(IMAGE, packages=("gcc",))),
    "docs": lambda b: attrs.evolve(b, image=attrs.evolve(IMAGE, docs=True)),
    "disk size": lambda b: disk(b, size_bytes=b.disk.size_bytes + 4 * MIB),
    "boot size": lambda b: disk(b, boot_bytes=b.disk.boot_bytes + 4 * MIB),
    "volume group": lambda b: disk(b, volume_group="other"),
    "root size": lambda b: disk(b, root=Volume("root", 68 * MIB)),
    "root name": lambda b: disk(b, root=Volume("other", 64 * MIB)),
    "persistent size": lambda b: disk(b, persistent=Volume("persistent", 68 * MIB)),
    "no swap": lambda b: disk(b, swap=None),
    "snapshot size": lambda b: disk(b, snapshot=Volume("root_snap", 32 * MIB)),
}


def test_every_input_changes_the_key() -> None:
    """No two of these recipes have the same key."""
    keys = {name: key(change(box_of())) for name, change in CHANGES.items()} | {"none": key(box_of())}
    one = LockedPackage("1", "all", "1" * 64)
    for name, change in {
        "locked package": {"versions": {"one": one}},
        "locked version": {"versions": {"one": attrs.evolve(one, version="2")}},
        "locked digest": {"versions": {"one": attrs.evolve(one, sha256="2" * 64)}},
        "sources": {"sources": ("deb http://other.example.org/debian trixie main",)},
        "keys": {"keys": {"kimbox-0123456789abcdef.asc": "key"}},
    }.items():
        keys[name] = key(box_of(), attrs.evolve(LOCKED, **change))
    assert len(keys) == len(set(keys.values())), keys
    assert keys["none"] == key(box_of(), attrs.evolve(LOCKED, as_of="2027-01-01T00:00:00Z", request="1" * 64))


def files(locked: LockedPackages) -> dict[str, str]:
    """The rendered files of an image."""
    assert isinstance(IMAGE, PackageImage)
    return {file.path: file.data.decode() for file in recipe.recipe(box_of(), IMAGE, locked).files if not file.link}


def test_apt_sources_of_a_guest() -> None:
    """Those that it can reach, and their keys. A comment explains an empty list."""
    good, name = "deb http://m.example.org/debian trixie main", "kimbox-0123456789abcdef.asc"
    bad = ("deb mirror+file:/etc/apt/mirrors/debian.list trixie main", "deb http://localhost:3142/debian trixie main")
    made = files(attrs.evolve(LOCKED, sources=(good, *bad), keys={name: "key\n"}))
    assert (f"{good}\n", "key\n") == (made["usr/lib/kimbox/sources.list"], made[f"etc/apt/keyrings/{name}"])
    lines = files(attrs.evolve(LOCKED, sources=bad))["usr/lib/kimbox/sources.list"].splitlines()
    assert lines
    assert all(line.startswith("#") for line in lines)


def test_settings_of_the_machine_do_not_change_the_key() -> None:
    """Boxes that differ only in them share one image."""
    box = box_of()
    other = attrs.evolve(
        box,
        name="other", description="x", digest="e" * 64, cpus=7, memory_bytes=1 << 30, source=Path("/else/where"),
        boot=BootMode.RESNAP,
    )  # fmt: skip
    assert key(box) == key(other)


def test_the_order_of_packages_does_not_matter() -> None:
    """Nor does it matter if the spec requests a package that a provisioner needs anyway."""
    assert key(box_of()) == key(box_of(attrs.evolve(IMAGE, packages=("gfortran", "gcc"))))
    assert key(box_of()) == key(box_of(attrs.evolve(IMAGE, packages=(*IMAGE.packages, "git"))))


def test_the_format_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of kimbox that builds other images does not use the images of this version."""
    before = key(box_of())
    monkeypatch.setattr(recipe, "FORMAT", recipe.FORMAT + 1)
    assert before != key(box_of())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the provisioners, which the test changes."""
    shutil.copytree(paths.provisioners_dir(), tmp_path / "provisioners")
    monkeypatch.setattr(paths, "provisioners_dir", lambda: tmp_path / "provisioners")
    return tmp_path / "provisioners"


@pytest.mark.parametrize("change", ["content", "mode", "build", "new", "gone", "packages", "persistent"])
def test_every_file_of_a_provisioner_changes_the_key(own: Path, change: str) -> None:
    """Contents, modes, new and missing files, and packages."""
    before = key(box_of())
    unit = own / "ssh/root/etc/systemd/system/ssh.service"
    match change:
        case "content":
            unit.write_text(unit.read_text() + "\n")
        case "mode":
            unit.chmod(0o755)
        case "build":
            (own / "ssh/build").write_text("#!/bin/sh\n")
        case "new":
            (own / "ssh/root/etc/new").write_text("")
        case "gone":
            unit.unlink()
        case "packages":
            meta = own / "ssh/provisioner.yaml"
            meta.write_text(meta.read_text().replace("packages: [", "packages: [zsh, "))
        case "persistent":
            (own / "ssh/persistent").mkdir(exist_ok=True)
            (own / "ssh/persistent/new").write_text("")
    assert before != key(box_of())


def test_a_copy_with_another_umask_has_the_same_key(own: Path) -> None:
    """The folder, the times and the umask of the checkout do not matter."""
    before = key(box_of())
    for path in own.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (1, 1))
    assert before == key(box_of())


#: Prints the key, in another process.
COMPUTE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_recipe import box_of, key
print(key(box_of()))
"""


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONHASHSEED": "1"}, {"LANG": "tr_TR.UTF-8", "TZ": "Asia/Tokyo"}])
def test_a_process_in_another_locale_computes_the_same_key(env: dict[str, str], tmp_path: Path) -> None:
    """Hash seed, locale, time zone and working folder do not matter."""
    done = run.run(
        [sys.executable, "-c", COMPUTE, Path(__file__).parent], env={"PYTHONPATH": PYTHONPATH} | env, cwd=tmp_path
    )
    assert key(box_of()) == done.stdout.strip()


def test_a_recipe_is_not_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that has the recipe passes it instead of the packages. Then no provisioner is read a second time."""
    known_recipe = recipe.recipe(box_of(), IMAGE, LOCKED)
    monkeypatch.setattr(provisioners, "load", lambda _: pytest.fail("a provisioner is read"))
    assert known_recipe.key == obtain.key_of(box_of(), known_recipe)


def test_the_key_of_a_remote_image_is_its_digest() -> None:
    """The location does not matter."""
    digest = "0123456789abcdef" * 4
    assert digest == obtain.key_of(attrs.evolve(box_of(), image=RemoteImage("/x", f"sha256:{digest}")), None)


def test_the_recipe_has_all_inputs() -> None:
    """Packages of provisioners and spec, units to enable, GRUB's menu and fstab."""
    complete = recipe.recipe(box_of(), IMAGE, LOCKED)
    assert {"gcc", "gfortran", "lvm2", "openssh-server"} < set(complete.packages)
    files = {f.path: f.data for f in complete.files}
    assert {"boot/grub/grub.cfg", "etc/fstab"} < set(files)
    enabled = {unit for name in provisioners.BASE for unit in provisioners.load(name).enable}
    assert enabled == set(files["usr/lib/kimbox/enabled-units"].decode().split())


def test_documents_are_removed_unless_the_spec_requests_them() -> None:
    """The script that removes them runs before the last one, and is not part of an image with documents."""
    scripts = {}
    for docs in (False, True):
        image = attrs.evolve(IMAGE, docs=docs)
        paths = [file.path for file in recipe.recipe(box_of(image), image, LOCKED).files]
        scripts[docs] = {path.rpartition("-")[2] for path in paths if path.startswith(provisioners.BUILD_DIR)}
    assert {"strip"} == scripts[False] - scripts[True]
    assert set() == scripts[True] - scripts[False]


def test_recommended_packages_are_another_request() -> None:
    """The lock then chooses the packages again. Without them, the request is that of older locks."""
    plain = recipe.request(IMAGE)
    assert plain != recipe.request(attrs.evolve(IMAGE, recommends=True))
    assert plain == recipe.request(attrs.evolve(IMAGE, docs=True))
