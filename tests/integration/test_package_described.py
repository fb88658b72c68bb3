"""What a package says about itself: it comes from its own disk, and public validators accept it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import tinyimage
import tinypackage
from clirun import Kimbox
from clirun import kimbox as kimbox
from clirun import world as world
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from packageurl import PackageURL
from tinypackage import Made, image_of, machine_of, members

from kimbox import run
from kimbox.files import sha256_file
from kimbox.image import namespace
from kimbox.image.build import rootfs
from kimbox.image.formats.export import Format
from kimbox.image.store import images, names
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackage

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

box, made = tinypackage.box, tinypackage.made  # fixtures

#: Adds a dpkg database with two packages, an os-release and the host name $1 to the tiny image.
DPKG = """
printf '%s\\n' "$1" >root/etc/hostname
mkdir -p root/var/lib/dpkg root/usr/lib root/etc
printf 'Package: %s\\nStatus: install ok installed\\nArchitecture: amd64\\nVersion: %s\\n\\n' one 1 g++ 4:14.2-1 \\
    >root/var/lib/dpkg/status
printf 'NAME="Debian GNU/Linux"\\nID=debian\\nVERSION_CODENAME=trixie\\n' >root/usr/lib/os-release
ln -s ../usr/lib/os-release root/etc/os-release
"""


@pytest.fixture
def _with_dpkg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, box: Path, kimbox: Kimbox) -> None:
    """The image of the tiny box has a dpkg database with a package of the lock, and one that the lock lacks.

    The parameter is its host name: `kimbox` by default, as in all images that kimbox builds.
    """
    fill, host_name = rootfs.build, getattr(request, "param", "kimbox")

    def fill_more(*args: Any, **options: Any) -> Path:
        root = fill(*args, **options)
        namespace.call(["sh", "-c", DPKG, "sh", host_name], cwd=args[1])
        return root

    monkeypatch.setattr(rootfs, "build", fill_more)
    versions = {"one": LockedPackage("1", "amd64", "1" * 64)}
    monkeypatch.setattr(tinyimage, "LOCKED", attrs.evolve(tinyimage.LOCKED, versions=versions))
    monkeypatch.setattr(cache, "ensure", lambda *_, **__: None)  # the tiny root is not made of its packages
    (box / "kimbox.lock").unlink()
    assert 0 == kimbox("build")[0]


def statement_of(path: Path) -> dict[str, Any]:
    """The statement beside the packages of a folder."""
    document: dict[str, Any] = json.loads((path / "tiny.provenance.intoto.json").read_text())
    return document


@pytest.mark.usefixtures("_with_dpkg")
def test_public_validators(made: Made, box: Path) -> None:
    """The SBOMs, package URLs and statements are valid for the libraries of their formats. COT accepts the OVA."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    made("-o", "out", "--format", "libvirt", "--format", "ova")
    out = box / "out"
    bom = (out / "tiny.sbom.cdx.json").read_text()
    assert None is JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom)
    purls = {part["name"]: PackageURL.from_string(part["purl"]) for part in json.loads(bom)["components"]}
    assert {"one", "g++"} == set(purls)
    gxx = purls["g++"]
    assert ("deb", "debian", "g++", "4:14.2-1") == (gxx.type, gxx.namespace, gxx.name, gxx.version)
    assert {"arch": "amd64", "distro": "trixie"} == gxx.qualifiers
    document = parse_file(str(out / "tiny.sbom.spdx.json"))
    assert [] == validate_full_spdx_document(document)
    assert {"tiny", "one", "g++"} == {package.name for package in document.packages}
    inside = members(out / "tiny-libvirt.box")["provenance.intoto.json"]
    for text in ((out / "tiny.provenance.intoto.json").read_bytes(), inside):
        parsed = json_format.Parse(text, statement_pb2.Statement())
        Statement.copy_from_pb(parsed).validate()
    shown = run.run([Path(sys.executable).with_name("cot"), "info", out / "tiny.ova"])
    assert "tiny" in shown.stdout
    assert "tampered" not in shown.stdout + shown.stderr


def test_every_file_is_a_subject(made: Made, box: Path) -> None:
    """Beside the packages by the digest of each, and in a box by the digest of the disk in it."""
    made("-o", "out", *(word for kind in Format for word in ("--format", str(kind))))
    out = box / "out"
    packages = [out / kind.file_name("tiny") for kind in Format]
    subjects = {subject["name"]: subject["digest"] for subject in statement_of(out)["subject"]}
    assert image_of(box).key == subjects.pop("tiny")["kimboxImageKey"]
    assert {path.name: {"sha256": sha256_file(path).removeprefix("sha256:")} for path in packages} == subjects
    for package, disk in (("tiny-libvirt.box", "box.img"), ("tiny-virtualbox.box", "box-disk001.vmdk")):
        there = members(out / package)
        (out / "disk").write_bytes(there[disk])
        subjects = {s["name"]: s["digest"] for s in json.loads(there["provenance.intoto.json"])["subject"]}
        assert {"sha256": sha256_file(out / "disk").removeprefix("sha256:")} == subjects[disk]


@pytest.mark.usefixtures("_with_dpkg")
def test_the_folder_does_not_describe_a_machine(made: Made, kimbox: Kimbox, box: Path) -> None:
    """After a change of spec and lock the machine has its own spec and lock, and `--image` those of the folder."""
    machine = machine_of(box, image_of(box), "")
    old_lock = (box / "kimbox.lock").read_text()
    spec = (box / "kimbox.yaml").read_text()
    (box / "kimbox.yaml").write_text(f"{spec}cpus: 3\n")
    assert 0 == kimbox("lock")[0]
    made("-o", "machine", "--format", "raw")
    made("-o", "image", "--format", "raw", "--image")
    assert old_lock == (box / "machine/tiny.kimbox.lock").read_text()
    assert (box / "kimbox.lock").read_text() == (box / "image/tiny.kimbox.lock").read_text() != old_lock
    cpus = [json.loads((box / folder / "tiny.kimbox.yaml").read_text()).get("cpus") for folder in ("machine", "image")]
    assert [None, 3] == cpus
    for file in machine.locks.glob("*.yaml"):  # an older kimbox kept only the lock
        file.unlink()
    code, out, _ = kimbox("--json", "package", "-o", "other")
    assert (5, "lock-unknown") == (code, json.loads(out)["error"]["code"])


@pytest.mark.usefixtures("_with_dpkg")
def test_changes_by_hand_are_not_pinned(made: Made, box: Path) -> None:
    """Files and packages that a maintainer changed are named, and so are packages of the lock that the disk lacks."""
    machine = machine_of(box, image_of(box), "mkdir /etc/site\nwrite mine /etc/site/changed\nwrite mine /etc/by-hand")
    answer = made("-o", "out", "--format", "raw")
    files = ["/etc/by-hand", "/etc/site", "/etc/site/changed"]
    assert ["package g++ 4:14.2-1", *(f"file {path}" for path in files)] == answer["unpinned"]
    assert answer["unpinned"] == parameters(box / "out")["unpinned"]
    about = json.loads((box / "out/tiny.kimbox.json").read_text())
    assert files == about["changes"]["files"]["added"]
    shutil.rmtree(machine.folder)
    status = "rm /var/lib/dpkg/status\nwrite status /var/lib/dpkg/status"  # it has the package one-more alone
    machine_of(box, image_of(box), status)
    made("-o", "other", "--format", "raw")
    mismatch = parameters(box / "other")["lockMismatch"]
    assert (["one-more"], ["one"]) == (list(mismatch["added"]), list(mismatch["removed"]))


@pytest.mark.usefixtures("_with_dpkg")
def test_provenance_of_a_halted_machine(kimbox: Kimbox, box: Path) -> None:
    """Its SBOM has the packages of its root. Without the machine, it has those of the image."""
    machine = machine_of(box, image_of(box), "rm /var/lib/dpkg/status\nwrite status /var/lib/dpkg/status")
    listed = []
    for _ in range(2):
        assert 0 == kimbox("provenance")[0]
        bom = json.loads((box / "tiny.cdx.json").read_text())
        listed.append({part["purl"] for part in bom["components"]})
        shutil.rmtree(machine.folder, ignore_errors=True)
    gxx, one = (
        "pkg:deb/debian/g%2B%2B@4:14.2-1?arch=amd64&distro=trixie",
        "pkg:deb/debian/one@1?arch=amd64&distro=trixie",
    )
    assert [{"pkg:deb/debian/one-more@3.1?arch=amd64&distro=trixie"}, {gxx, one}] == listed


def parameters(folder: Path) -> dict[str, Any]:
    """The external parameters of the statement in a folder."""
    found: dict[str, Any] = statement_of(folder)["predicate"]["buildDefinition"]["externalParameters"]
    return found


@pytest.mark.parametrize("_with_dpkg", ["kimbox", "worker"], indirect=True, ids=["without traces", "with traces"])
@pytest.mark.usefixtures("_with_dpkg")
def test_a_box_of_a_box(made: Made, kimbox: Kimbox, box: Path) -> None:
    """Its SBOM lists the packages on the disk, the base has the digest of its file, and Vagrant gets the guest."""
    made("-o", "first")
    first = box / "first/tiny-libvirt.box"
    assert 0 == kimbox("box", "add", "first", str(first))[0]
    spec = tinypackage.SPEC.replace("{distribution: debian, packages: [one]}", "{box: first}")
    (box / "kimbox.yaml").write_text(spec)
    assert 0 == kimbox("lock")[0]
    made("-o", "second")
    there = members(box / "second/tiny-libvirt.box")
    assert b"config.vm.guest = 'debian'" in there["Vagrantfile"]
    parts = {part["name"]: part for part in json.loads(there["sbom.cdx.json"])["components"]}
    assert {"one", "g++", f"base image {names.require('first').image[:12]}"} == set(parts)
    assert parts["one"]["hashes"]  # from the lock in the first box
    build = statement_of(box / "second")["predicate"]["buildDefinition"]
    base = build["resolvedDependencies"][0]
    assert {"name": "base image", "digest": {"sha256": sha256_file(first).removeprefix("sha256:")}} == base
    assert images.find(names.require("first").image)
