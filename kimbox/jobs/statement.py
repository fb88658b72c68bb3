"""The in-toto statement of a job, with the predicate SLSA provenance v1: its results, and what they were made from.

Formats: in-toto Attestation Framework, Statement v1 and ResourceDescriptor; SLSA, Build: Provenance v1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kimbox.lock.lockfile import Lock
from kimbox.lock.provenance.inputs import commits, git_uri
from kimbox.lock.provenance.statement import BUILDER, IMAGE_KEY
from kimbox.spec.urls import is_folder

#: URI of the build type. docs/jobs.md documents its parameters.
BUILD_TYPE = "https://kimbox.invalid/job/v1"


def statement(record: Mapping[str, Any], lock: Lock, digests: Mapping[str, str]) -> bytes:
    """Returns the statement as JSON. `record`: content of job.json; `digests`: sha256 hex digests by name of a file."""
    settings = record["settings"]
    dependencies: list[dict[str, Any]] = [
        {"name": "folder", "digest": {"kimboxListing": record["input"]["digest"].removeprefix("sha256:")}},
        {"name": "image", "digest": {IMAGE_KEY: record["image"]}},
        {"name": "manifest", "digest": {"sha256": record["manifest"]}},
        {"name": "lock", "digest": {"sha256": record["lock"]["sha256"]}},
        {"name": "spec", "digest": {"sha256": record["lock"]["spec"]}},
    ]
    for name, url, commit, tree in commits(lock):
        found = {"gitCommit": commit} | ({"gitTree": tree} if tree else {})
        dependencies.append(
            {"name": name} | ({"uri": git_uri(url, commit)} if not is_folder(url) else {}) | {"digest": found}
        )
    value = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digests[name]}} for name in sorted(digests)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"arguments": record["arguments"], "box": record["box"], "settings": settings},
                "internalParameters": {
                    "verdict": record["verdict"], "exit": record["exit"], "signal": record["signal"]
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"kimbox": record["kimbox"]}},
                "metadata": {"invocationId": record["id"], "finishedOn": record["ended_at"]},
            },
        },
    }  # fmt: skip
    return (json.dumps(value, indent=2) + "\n").encode()
