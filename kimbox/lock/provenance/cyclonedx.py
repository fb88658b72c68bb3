"""The SBOM of a box in the format CycloneDX 1.6."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from kimbox import __version__
from kimbox.lock.lockfile import Lock
from kimbox.lock.provenance.inputs import Provenance, commits, git_uri
from kimbox.spec.urls import is_folder

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

#: UUID namespace for the serial number of an SBOM, which is derived from its content.
_SERIAL = uuid.UUID("7f6a3c1e-7d0b-5b52-9d43-2b1f3f0f6a11")


def sbom(whole: Provenance) -> str:
    """The SBOM as JSON. Each package, repository and submodule, and each base, is a component of the box."""
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
        properties=[
            *_properties(about),
            *(_property("stale", _stale_text(step, pins)) for step, pins in whole.stale.items()),
            *(_property("unpinned", change) for change in whole.unpinned),
            *(_property("not-on-disk", f"{name} {p.version}") for name, p in whole.mismatch.removed.items()),
        ],
    )
    bom.metadata.component = box
    parts = [*_bases(whole), *_packages(whole), *_repositories(whole.lock)]
    bom.components.update(parts)
    bom.register_dependency(box, parts)
    bom.serial_number = uuid.UUID(int=0)
    bom.serial_number = uuid.uuid5(_SERIAL, JsonV1Dot6(bom).output_as_string())
    return f"{JsonV1Dot6(bom).output_as_string(indent=2)}\n"


def _bases(whole: Provenance) -> Iterator[Component]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType

    for number, base in enumerate(whole.bases):
        source = XsUri(base.url) if base.url else None
        yield Component(
            name=f"base image {base.key[:12]}",
            type=ComponentType.OPERATING_SYSTEM,
            bom_ref=f"base:{number}",
            hashes=_sha256(base.sha256),
            external_references=[ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=source)]
            if source
            else [],
            properties=_properties({"image": base.key}),
        )


def _packages(whole: Provenance) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    locked = whole.mismatch.moved
    for name, package in sorted(whole.packages.items()):
        yield Component(
            name=name.partition(":")[0],
            version=package.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"deb:{name}",
            purl=PackageURL.from_string(whole.purl(name)),
            hashes=_sha256(package.sha256),
            properties=_properties({"locked_version": locked[name][0].version if name in locked else None}),
        )


def _repositories(lock: Lock) -> Iterator[Component]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType

    for name, url, commit, tree in commits(lock):
        pin = lock.repositories[name.partition(":")[0]]
        about = {"tree": tree}
        if name in lock.repositories:
            about |= {"ref": pin.ref, "unpinned": "yes" if name in lock.unpinned else None}
        source = XsUri(git_uri(url, commit)) if not is_folder(url) else None
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


def _stale_text(step: str, pins: Mapping[str, str]) -> str:
    """The value of the property of a stale step: `STEP REPOSITORY@COMMIT ...`."""
    return " ".join([step, *(f"{name}@{commit}" for name, commit in sorted(pins.items()))])


def _properties(values: Mapping[str, str | None]) -> list[Any]:
    return [_property(name, value) for name, value in values.items() if value]


def _property(name: str, value: str) -> Any:
    from cyclonedx.model import Property

    return Property(name=f"kimbox:{name}", value=value)
