"""The provenance of a box: its SBOM and its in-toto statement."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import feignedworld
import makemachine
import pytest
from fakeguest import box_with
from feignedworld import World
from refused import refused

from kimbox.actions.provenance import provenance_of
from kimbox.cli import app
from kimbox.errors import SpecError, StateError
from kimbox.lock.apt.packages import LockedPackage, LockedPackages
from kimbox.lock.lockfile import Lock, PinnedRepository, PinnedSubmodule, write_lock
from kimbox.lock.provenance.cyclonedx import sbom
from kimbox.lock.provenance.inputs import Provenance
from kimbox.lock.provenance.statement import statement
from kimbox.machine import delivered_locks
from kimbox.machine.delivered_locks import Delivered
from kimbox.machine.folder import Machine
from kimbox.project.project import Project

world = feignedworld.world  # a fixture

PACKAGES = {
    "libc6": LockedPackage("2.41-12+deb13u1", "amd64", "1" * 64),
    "base-files": LockedPackage("13.8", "all", "2" * 64),
}
REPOSITORIES = {
    "setup": PinnedRepository("https://example.org/setup.git", "main", "a" * 40, "b" * 40),
    "tool": PinnedRepository(
        "git@example.org:x/tool.git", "v1", "c" * 40, "d" * 40, {"lib/z": PinnedSubmodule("https://z.org/z", "e" * 40)}
    ),
    "work": PinnedRepository("./work", "HEAD", "f" * 40, "0" * 40),
}
LOCKED = LockedPackages("3" * 64, "2026-01-01T00:00:00Z", ("deb https://example.org trixie main",), PACKAGES)
LOCK = Lock("9" * 64, None, REPOSITORIES, LOCKED)
PROVENANCE = Provenance("tiny", LOCK, "8" * 64, None, "debian", "trixie")


def test_installed_packages_replace_locked_packages() -> None:
    """A package at its locked version keeps its digest. A moved or added package has none, a removed one is missing."""
    installed = attrs.evolve(PROVENANCE, installed={"base-files": ("13.8", "all"), "extra": ("1:2", "amd64")})
    parts = {
        part["name"]: part for part in json.loads(sbom(installed))["components"] if part["bom-ref"].startswith("deb:")
    }
    assert {"base-files": "13.8", "extra": "1:2"} == {name: part["version"] for name, part in parts.items()}
    assert [{"alg": "SHA-256", "content": "2" * 64}] == parts["base-files"]["hashes"]
    assert "hashes" not in parts["extra"]
    build = json.loads(statement(installed))["predicate"]["buildDefinition"]
    assert {"lock": {"digest": {"sha256": LOCK.digest}}}.items() <= build["externalParameters"].items()
    assert ["base-files"] == [d["name"] for d in build["resolvedDependencies"] if "sha256" in d.get("digest", {})]
    moved = attrs.evolve(PROVENANCE, installed={"base-files": ("13.9", "all")})
    assert not moved.packages["base-files"].sha256


def test_the_sbom_has_packages_repositories_and_submodules() -> None:
    """Packages have a purl and a sha256, repositories their URL and tree. An unknown value is left out."""
    bom = json.loads(sbom(PROVENANCE))
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["bom-ref"]: part for part in bom["components"]}
    assert set(parts) == {
        "deb:libc6", "deb:base-files", "git:setup", "git:tool", "git:tool:lib/z", "git:work"
    }  # fmt: skip
    libc = parts["deb:libc6"]
    assert libc["purl"] == "pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64&distro=trixie"
    assert (libc["version"], libc["hashes"]) == ("2.41-12+deb13u1", [{"alg": "SHA-256", "content": "1" * 64}])
    tool = parts["git:tool"]
    assert tool["externalReferences"] == [{"type": "vcs", "url": f"git+ssh://git@example.org/x/tool.git@{'c' * 40}"}]
    assert {p["name"]: p["value"] for p in tool["properties"]} == {"kimbox:ref": "v1", "kimbox:tree": "d" * 40}
    assert parts["git:tool:lib/z"]["version"] == "e" * 40
    assert "externalReferences" not in parts["git:work"]
    about = {p["name"]: p["value"] for p in bom["metadata"]["component"]["properties"]}
    assert about == {"kimbox:image": "8" * 64, "kimbox:lock_digest": LOCK.digest, "kimbox:spec_digest": "9" * 64}
    assert "hashes" not in bom["metadata"]["component"]
    (box,) = [entry for entry in bom["dependencies"] if entry["ref"] == "box:tiny"]
    assert set(box["dependsOn"]) == set(parts)


def test_the_library_reads_the_sbom() -> None:
    """The CycloneDX library reads the same components."""
    from cyclonedx.model.bom import Bom

    read = Bom.from_json(json.loads(sbom(PROVENANCE)))  # type: ignore[attr-defined]
    assert {part.name for part in read.components} == {*PACKAGES, *REPOSITORIES, "tool:lib/z"}


def test_the_statement_links_the_image_to_the_lock() -> None:
    """It has the subject, the digests of spec and lock, and the known digests of every dependency."""
    document = json.loads(statement(PROVENANCE))
    assert (document["_type"], document["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    assert document["subject"] == [{"name": "tiny", "digest": {"kimboxImageKey": "8" * 64}}]
    build = document["predicate"]["buildDefinition"]
    assert build["externalParameters"]["lock"] == {"digest": {"sha256": LOCK.digest}}
    by_name = {entry["name"]: entry for entry in build["resolvedDependencies"]}
    assert by_name["libc6"]["digest"] == {"sha256": "1" * 64}
    assert by_name["setup"] == {
        "name": "setup",
        "uri": f"git+https://example.org/setup.git@{'a' * 40}",
        "digest": {"gitCommit": "a" * 40, "gitTree": "b" * 40},
    }
    assert by_name["work"] == {"name": "work", "digest": {"gitCommit": "f" * 40, "gitTree": "0" * 40}}
    remote = json.loads(statement(attrs.evolve(PROVENANCE, image_sha256="7" * 64)))
    assert remote["subject"][0]["digest"] == {"kimboxImageKey": "8" * 64, "sha256": "7" * 64}


def test_equal_input_gives_equal_bytes() -> None:
    """The order of the input has no effect. Other input gives another serial number."""
    for turn in range(3):
        packages, repositories = list(PACKAGES.items()), list(REPOSITORIES.items())
        packages, repositories = packages[turn:] + packages[:turn], repositories[turn:] + repositories[:turn]
        locked = attrs.evolve(LOCKED, versions=dict(packages))
        reordered = attrs.evolve(PROVENANCE, lock=attrs.evolve(LOCK, repositories=dict(repositories), packages=locked))
        assert (sbom(reordered), statement(reordered)) == (sbom(PROVENANCE), statement(PROVENANCE))
    other = attrs.evolve(PROVENANCE, suite="forky")
    assert json.loads(sbom(other))["serialNumber"] != json.loads(sbom(PROVENANCE))["serialNumber"]


def test_unpinned_repositories_are_named() -> None:
    """The statement and the SBOM name them."""
    provenance = attrs.evolve(PROVENANCE, lock=attrs.evolve(LOCK, unpinned=("work",)))
    assert json.loads(statement(provenance))["predicate"]["buildDefinition"]["externalParameters"]["unpinned"] == [
        "work"
    ]
    (work,) = [part for part in json.loads(sbom(provenance))["components"] if part["name"] == "work"]
    assert {"name": "kimbox:unpinned", "value": "yes"} in work["properties"]


def test_the_lock_of_the_machine_comes_first(world: World, tmp_path: Path) -> None:
    """It is the lock that the machine reports, or of the plan that it was made from. Without a machine: of the spec."""
    box = attrs.evolve(world.box, repositories=box_with(tmp_path).repositories)
    with refused(SpecError, "lock-not-found", path=str(Project(box).lock_path)):
        provenance_of(Project(box))
    write_lock(Project(box).lock_path, LOCK)
    described = provenance_of(Project(box))
    assert (described.provenance.lock, described.lock_name) == (LOCK, str(tmp_path / "kimbox.lock"))
    machine = makemachine.make_machine()
    with refused(StateError, "lock-unknown", name="tiny", manifest=""):
        provenance_of(Project(box))
    delivered_locks.keep(machine, Delivered("a" * 64, attrs.evolve(LOCK, spec_digest="7" * 64)))
    makemachine.tell(machine, makemachine.event("ready", manifest="a" * 64))
    described = provenance_of(Project(box))
    provenance, lock_name = described.provenance, described.lock_name
    assert (provenance.lock.spec_digest, provenance.image, lock_name) == ("7" * 64, "e" * 64, "the box tiny")
    assert Machine("tiny").exists
    about = {"manifest": "a" * 64, "mode": "keep", "role": "dev", "site": "", "by": "keep", "at": "", "part": ""}
    makemachine.tell(machine, makemachine.event("box", **about, unpinned="setup gone", commit="5" * 40))
    provenance = provenance_of(Project(box)).provenance
    lock = provenance.lock
    assert (lock.unpinned, lock.repositories["setup"].commit) == (("setup",), "5" * 40)
    assert lock.digest == attrs.evolve(LOCK, spec_digest="7" * 64, image="e" * 64).digest
    (setup,) = [part for part in json.loads(sbom(provenance))["components"] if part["name"] == "setup"]
    assert {p["name"]: p["value"] for p in setup["properties"]} == {"kimbox:ref": "main", "kimbox:unpinned": "yes"}


def test_the_verb_writes_both(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes them to the folder of --output. A second run writes the same bytes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: tiny\n")
    write_lock(tmp_path / "kimbox.lock", attrs.evolve(LOCK, repositories={}))
    texts = []
    for _ in range(2):
        assert app.run(["provenance", "--output", "out", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)["result"]
        assert result["sbom"] == "out/tiny.cdx.json"
        texts.append([(tmp_path / result[kind]).read_text() for kind in ("sbom", "statement")])
    assert texts[0] == texts[1]
    assert json.loads(texts[0][1])["subject"][0]["name"] == "tiny"
