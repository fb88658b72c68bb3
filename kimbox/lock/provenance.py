"""The provenance of a box: an SBOM (CycloneDX 1.6) and an in-toto statement (SLSA provenance v1).

Equal input gives equal bytes: the documents contain no time, no random number and no path of this machine. What is not
known, such as the URL of a folder, is left out.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs

from kimbox import __version__
from kimbox.lock.apt.packages import LockedPackage, LockedPackages
from kimbox.lock.lockfile import Lock, in_order
from kimbox.spec.urls import is_folder

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

#: URI of the build type. Section "Provenance" of docs/how-it-works.md documents its parameters.
BUILD_TYPE = "https://kimbox.invalid/build/v1"

BUILDER = "https://kimbox.invalid/kimbox"

#: Name of the image key among the digests of a statement. It is a digest of the image's inputs, not of its bytes.
IMAGE_KEY = "kimboxImageKey"

#: UUID namespace for the serial number of an SBOM, which is derived from its content.
_SERIAL = uuid.UUID("7f6a3c1e-7d0b-5b52-9d43-2b1f3f0f6a11")


@attrs.frozen
class Provenance:
    """A box and all of its inputs."""

    name: str
    lock: Lock
    #: Key of the image, and the sha256 hex digest of its bytes; None if not known.
    image: str | None = None
    image_sha256: str | None = None
    distribution: str = ""
    suite: str = ""
    #: Steps that ran at other commits than those of the lock: step -> repository -> the commit at which it ran.
    stale: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)

    @property
    def packages(self) -> Mapping[str, LockedPackage]:
        """Every package of the image, by name; empty for a downloaded image."""
        return self.lock.packages.versions if self.lock.packages else {}

    def with_installed(self, installed: Mapping[str, tuple[str, str]]) -> Provenance:
        """A copy with the packages that are installed on the disk: name -> version, architecture."""
        packages = (self.lock.packages or LockedPackages("", "", (), {})).as_installed(installed)
        return attrs.evolve(self, lock=attrs.evolve(self.lock, packages=packages, frozen_digest=self.lock.digest))

    def purl(self, name: str) -> str:
        """The package URL of a package (purl-spec, type deb)."""
        from packageurl import PackageURL

        package = self.packages[name]
        about = {"arch": package.architecture, "distro": self.suite}
        return str(PackageURL("deb", self.distribution or None, name, package.version, about).to_string())


def sbom(whole: Provenance) -> str:
    """The SBOM as JSON. Each package, repository and submodule is a component of the box."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    bom, no_time = Bom(), cast("Any", None)
    bom.metadata.timestamp = no_time
    bom.metadata.tools.components.add(
        Component(name="kimbox", version=__version__, type=ComponentType.APPLICATION, bom_ref="kimbox")
    )
    about = {"spec_digest": whole.lock.spec_digest, "lock_digest": whole.lock.digest, "image": whole.image or ""}
    box = Component(
        name=whole.name,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=f"box:{whole.name}",
        hashes=_sha256(whole.image_sha256),
        properties=[*_properties(about), *(_stale_property(step, pins) for step, pins in whole.stale.items())],
    )
    bom.metadata.component = box
    parts = [*_packages(whole), *_repositories(whole.lock)]
    bom.components.update(parts)
    bom.register_dependency(box, parts)
    bom.serial_number = uuid.UUID(int=0)
    bom.serial_number = uuid.uuid5(_SERIAL, JsonV1Dot6(bom).output_as_string())
    return f"{JsonV1Dot6(bom).output_as_string(indent=2)}\n"


def statement(whole: Provenance) -> str:
    """The in-toto statement as JSON: which lock, packages and commits the image was built from."""
    digest = {IMAGE_KEY: whole.image} if whole.image else {}
    if whole.image_sha256:
        digest["sha256"] = whole.image_sha256
    value = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": whole.name, "digest": digest}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "spec": {"digest": {"sha256": whole.lock.spec_digest}},
                    "lock": {"digest": {"sha256": whole.lock.digest}},
                    "unpinned": list(whole.lock.unpinned),
                    **({"stale": _in_order(whole.stale)} if whole.stale else {}),
                },
                "internalParameters": {"distribution": whole.distribution, "suite": whole.suite},
                "resolvedDependencies": list(_dependencies(whole)),
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"kimbox": __version__}}},
        },
    }
    return json.dumps(value, indent=2) + "\n"


def _in_order(stale: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {step: dict(sorted(pins.items())) for step, pins in sorted(stale.items())}


def _dependencies(whole: Provenance) -> Iterator[dict[str, Any]]:
    """Packages, sorted by name; then repositories, each followed by its submodules; then commits of stale steps."""
    for name in sorted(whole.packages):
        sha256 = whole.packages[name].sha256
        yield {"name": name, "uri": whole.purl(name)} | ({"digest": {"sha256": sha256}} if sha256 else {})
    for name, url, commit, tree in _commits(whole.lock):
        digests = {"gitCommit": commit} | ({"gitTree": tree} if tree else {})
        yield {"name": name} | ({"uri": _git_uri(url, commit)} if not is_folder(url) else {}) | {"digest": digests}
    stale_pins: dict[tuple[str, str], list[str]] = {}
    for step, pins in sorted(whole.stale.items()):
        for pin in pins.items():
            stale_pins.setdefault(pin, []).append(step)
    for (name, commit), steps in sorted(stale_pins.items()):  # the URL at the time of the step is not known
        yield {"name": name, "digest": {"gitCommit": commit}, "annotations": {"staleSteps": steps}}


def _commits(lock: Lock) -> Iterator[tuple[str, str, str, str | None]]:
    """Name, URL, commit and tree of each repository. The name of a submodule is NAME:PATH.

    The tree is None for a submodule (the lock does not have it), and for a commit that the box fetched itself.
    """
    for name in in_order(lock.repositories):
        pin = lock.repositories[name]
        yield name, pin.url, pin.commit, pin.tree or None
        for path in sorted(pin.submodules):
            yield f"{name}:{path}", pin.submodules[path].url, pin.submodules[path].commit, None


def _git_uri(url: str, commit: str) -> str:
    """The URI of a commit in the form of SPDX and pip. `host:path` becomes `ssh://host/path`."""
    if "://" not in url:
        host, _, path = url.partition(":")
        url = f"ssh://{host}/{path.lstrip('/')}"
    return f"git+{url}@{commit}"


def _packages(whole: Provenance) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    for name, package in sorted(whole.packages.items()):
        yield Component(
            name=name,
            version=package.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"deb:{name}",
            purl=PackageURL.from_string(whole.purl(name)),
            hashes=_sha256(package.sha256),
        )


def _repositories(lock: Lock) -> Iterator[Component]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType

    for name, url, commit, tree in _commits(lock):
        pin = lock.repositories[name.partition(":")[0]]
        about = {"tree": tree}
        if name in lock.repositories:
            about |= {"ref": pin.ref, "unpinned": "yes" if name in lock.unpinned else None}
        source = XsUri(_git_uri(url, commit)) if not is_folder(url) else None
        yield Component(
            name=name,
            version=commit,
            type=ComponentType.APPLICATION,
            bom_ref=f"git:{name}",
            external_references=[ExternalReference(type=ExternalReferenceType.VCS, url=source)] if source else [],
            properties=_properties(about),
        )


def _sha256(digest: str | None) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else []


def _stale_property(step: str, pins: Mapping[str, str]) -> Any:
    """The property of a stale step: `STEP REPOSITORY@COMMIT ...`."""
    from cyclonedx.model import Property

    words = [step, *(f"{name}@{commit}" for name, commit in sorted(pins.items()))]
    return Property(name="kimbox:stale", value=" ".join(words))


def _properties(values: Mapping[str, str | None]) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"kimbox:{name}", value=value) for name, value in values.items() if value]
