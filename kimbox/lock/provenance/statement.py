"""The in-toto statement of a box, with the predicate SLSA provenance v1.

Formats: in-toto Attestation Framework, Statement v1 and ResourceDescriptor; SLSA, Build: Provenance v1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kimbox import __version__
from kimbox.lock.provenance.inputs import Provenance, commits, git_uri
from kimbox.spec.urls import is_folder

#: URI of the build type. Section "Provenance" of docs/how-it-works.md documents its parameters.
BUILD_TYPE = "https://kimbox.invalid/build/v1"

BUILDER = "https://kimbox.invalid/kimbox"

#: Name of the image key among the digests of a statement. It is a digest of the image's inputs, not of its bytes.
IMAGE_KEY = "kimboxImageKey"


def statement(whole: Provenance) -> str:
    """The statement as JSON: which lock, packages and commits the disk was made from.

    Its subjects are the image, and each file that was made of the disk, by its sha256.
    """
    digest = {IMAGE_KEY: whole.image} if whole.image else {}
    if whole.image_sha256:
        digest["sha256"] = whole.image_sha256
    subjects = [{"name": whole.name, "digest": digest}]
    subjects += [{"name": name, "digest": {"sha256": whole.files[name]}} for name in sorted(whole.files)]
    mismatch = whole.mismatch
    value = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "spec": {"digest": {"sha256": whole.lock.spec_digest}},
                    "lock": {"digest": {"sha256": whole.lock.digest}},
                    "unpinned": whole.unpinned,
                    **({"lockMismatch": mismatch.as_json()} if mismatch else {}),
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
    """Bases; packages, by name; repositories, each followed by its submodules; commits of stale steps."""
    for base in whole.bases:
        digests = {"sha256": base.sha256} if base.sha256 else {IMAGE_KEY: base.key}
        yield {"name": "base image"} | ({"uri": base.url} if base.url else {}) | {"digest": digests}
    for name in sorted(whole.packages):
        sha256 = whole.packages[name].sha256
        yield {"name": name, "uri": whole.purl(name)} | ({"digest": {"sha256": sha256}} if sha256 else {})
    for name, url, commit, tree in commits(whole.lock):
        digests = {"gitCommit": commit} | ({"gitTree": tree} if tree else {})
        yield {"name": name} | ({"uri": git_uri(url, commit)} if not is_folder(url) else {}) | {"digest": digests}
    stale_pins: dict[tuple[str, str], list[str]] = {}
    for step, pins in sorted(whole.stale.items()):
        for pin in pins.items():
            stale_pins.setdefault(pin, []).append(step)
    for (name, commit), steps in sorted(stale_pins.items()):  # the URL at the time of the step is not known
        yield {"name": name, "digest": {"gitCommit": commit}, "annotations": {"staleSteps": steps}}
