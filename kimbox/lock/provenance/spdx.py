"""The SBOM of a box in the format SPDX 2.3, as JSON.

The format needs no library to write: it is one JSON object. Format: SPDX Specification 2.3, its JSON schema.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from kimbox import __version__
from kimbox.lock.provenance.inputs import Provenance, commits, git_uri
from kimbox.spec.urls import is_folder

#: UUID namespace for the document's own URI, which is derived from its content.
_NAMESPACE = uuid.UUID("0f4f7d26-5c37-5d5b-8f0f-6f2c2c1d9a44")

#: Time of a document whose lock has no time. The format requires one, and the same input must give the same bytes.
_NO_TIME = "1970-01-01T00:00:00Z"

_DOCUMENT, _BOX = "SPDXRef-DOCUMENT", "SPDXRef-Box"


def spdx(whole: Provenance) -> str:
    """The SBOM as JSON. The box is described; it contains each base, package, repository and submodule."""
    box = _package(_BOX, whole.name, whole.lock.digest[:12], sha256=whole.image_sha256) | {
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "comment": f"Image {whole.image or 'unknown'}, lock {whole.lock.digest}, spec {whole.lock.spec_digest}.",
    }
    if unpinned := whole.unpinned:
        box["comment"] += f" Not pinned: {', '.join(unpinned)}."
    if missing := whole.mismatch.removed:
        box["comment"] += f" In the lock, but not on the disk: {', '.join(missing)}."
    parts = _parts(whole)
    value = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": whole.name,
        "documentNamespace": "",
        "creationInfo": {"created": _time(whole), "creators": [f"Tool: kimbox-{__version__}"]},
        "packages": [box, *parts],
        "relationships": [
            _relationship(_DOCUMENT, "DESCRIBES", _BOX),
            *(_relationship(_BOX, "CONTAINS", part["SPDXID"]) for part in parts),
        ],
    }
    identity = uuid.uuid5(_NAMESPACE, json.dumps(value, sort_keys=True))
    value["documentNamespace"] = f"https://kimbox.invalid/spdx/{whole.name}-{identity}"
    return json.dumps(value, indent=2) + "\n"


def _parts(whole: Provenance) -> list[dict[str, Any]]:
    """Bases, then packages by name, then repositories, each followed by its submodules."""
    parts = []
    for number, base in enumerate(whole.bases):
        version = base.key[:12]
        name = f"base image {version}"
        parts.append(_package(f"SPDXRef-Base-{number}", name, version, sha256=base.sha256, url=base.url))
    for number, (name, package) in enumerate(sorted(whole.packages.items())):
        part = _package(f"SPDXRef-Deb-{number}", name.partition(":")[0], package.version, sha256=package.sha256)
        purl = {
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": whole.purl(name),
        }
        parts.append(part | {"externalRefs": [purl]})
    for number, (name, url, commit, _) in enumerate(commits(whole.lock)):
        location = "" if is_folder(url) else git_uri(url, commit)
        parts.append(_package(f"SPDXRef-Git-{number}", name, commit, url=location))
    return parts


def _package(identity: str, name: str, version: str, *, sha256: str | None = None, url: str = "") -> dict[str, Any]:
    package: dict[str, Any] = {
        "SPDXID": identity,
        "name": name,
        "versionInfo": version,
        "downloadLocation": url or "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }
    return package | ({"checksums": [{"algorithm": "SHA256", "checksumValue": sha256}]} if sha256 else {})


def _relationship(element: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}


def _time(whole: Provenance) -> str:
    """The date of the packages in the lock: the format requires a time in UTC without fractions."""
    return whole.lock.packages.as_of if whole.lock.packages and whole.lock.packages.as_of else _NO_TIME
