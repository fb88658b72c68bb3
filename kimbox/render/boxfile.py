"""Renders /etc/kimbox/box.env and box.json of the guest: what a box was made from. No input or output.

The manifest has the host's part. After each provisioning, the guest puts its own part before that: its role, the
manifest, and when and how this root was provisioned. schemas/boxfile.schema.json describes the result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import kimbox
from kimbox.render.quote import assignments
from kimbox.spec.model import Box

#: Version of the format of box.json and box.env.
FORMAT = 1


class PinnedCommit(Protocol):
    """The part of a locked submodule that a manifest needs."""

    @property
    def url(self) -> str: ...

    @property
    def commit(self) -> str: ...


class PinnedTag(Protocol):
    """The part of a locked tag that a manifest needs."""

    @property
    def target(self) -> str: ...


class Pinned(PinnedCommit, Protocol):
    """The part of a locked repository that a manifest needs."""

    @property
    def ref(self) -> str: ...

    @property
    def tree(self) -> str: ...

    @property
    def submodules(self) -> Mapping[str, PinnedCommit]: ...

    @property
    def tags(self) -> Mapping[str, PinnedTag]: ...


class PinnedLock(Protocol):
    """The part of a lock that a manifest needs."""

    @property
    def repositories(self) -> Mapping[str, Pinned]: ...

    @property
    def digest(self) -> str: ...

    @property
    def unpinned(self) -> tuple[str, ...]: ...


def describe(box: Box, lock: PinnedLock, image: str | None) -> dict[str, Any]:
    """Returns what a box is made from, as far as the host knows. The URLs of a lock contain no credentials."""
    pins = [(r, lock.repositories[r.name]) for r in box.repositories if r.name in lock.repositories]
    return {
        "format": FORMAT,
        "name": box.name,
        "kimbox": kimbox.__version__,
        "spec_digest": box.digest,
        "lock_digest": lock.digest,
        "image": image,
        "repositories": {
            repository.name: {
                "url": pin.url, "ref": pin.ref, "commit": pin.commit, "tree": pin.tree, "path": repository.path
            }
            for repository, pin in sorted(pins, key=lambda pair: pair[0].name)
        },
    }  # fmt: skip


def box_json(described: Mapping[str, Any]) -> bytes:
    """Returns the host's part of box.json. Its first line is only the brace, so that the guest can insert its part."""
    return (json.dumps(described, indent=2) + "\n").encode()


def box_env(described: Mapping[str, Any]) -> bytes:
    """Returns the host's part of box.env. A repository `kim-api` has KIMBOX_REPOSITORY_KIM_API_COMMIT and so on."""
    values: dict[str, str | int] = {
        "KIMBOX_BOX_FORMAT": described["format"],
        "KIMBOX_BOX": described["name"],
        "KIMBOX_VERSION": described["kimbox"],
        "KIMBOX_SPEC_DIGEST": described["spec_digest"],
        "KIMBOX_LOCK_DIGEST": described["lock_digest"],
        "KIMBOX_IMAGE": described["image"] or "",
        "KIMBOX_REPOSITORIES": " ".join(described["repositories"]),
    }
    for name, pin in described["repositories"].items():
        word = name.upper().replace("-", "_")
        values |= {f"KIMBOX_REPOSITORY_{word}_{key.upper()}": value for key, value in pin.items()}
    return assignments(values)
