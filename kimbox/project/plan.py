"""A plan: everything that follows from spec and lock, worked out once and passed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from kimbox.guest.delivery import Payload, parcels_of
from kimbox.image.inputs.recipe import Recipe
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock
from kimbox.project.pins import lock_for
from kimbox.project.project import Project
from kimbox.project.unpinned import Instead, unpinned
from kimbox.render.manifest import Manifest, manifest_digest, render_manifest
from kimbox.spec.model import Box


@attrs.frozen
class Plan:
    """What a machine of a project is made from, and what its guest gets."""

    project: Project
    lock: Lock
    #: They hold every commit that the lock names; their names are those of `Locked.mirrors`.
    mirrors: Mapping[str, Mirror]
    #: How spec and lock build the image; None where it is not built here, or where no image is needed.
    recipe: Recipe | None
    #: Key of the image that the manifest names. For a machine that exists it is the image in its record.
    image_key: str
    manifest: Manifest
    #: sha256 hex digest of the manifest; the guest's events carry it.
    digest: str

    @property
    def box(self) -> Box:
        """The spec."""
        return self.project.box

    @property
    def payload(self) -> Payload:
        """What the guest is sent."""
        return Payload(self.manifest, self.digest, tuple(parcels_of(self.box, self.lock)), self.mirrors)


def make_plan(project: Project, *, made_from: str | None = None) -> Plan:
    """Works out the plan of a project; makes its lock if there is none.

    `made_from`: key of the image that an existing machine was made from; None for a machine that is to be made. Raises
    what `lock_for` raises.
    """
    locked = lock_for(project)
    return _plan(project, locked.lock, locked.mirrors, locked.recipe, made_from or locked.image_key)


def make_unpinned_plan(project: Project, instead: Sequence[Instead], *, made_from: str) -> Plan:
    """Works out a plan with other repositories in place of locked ones, for an existing machine. The lock stays.

    `made_from` as for `make_plan`. Raises what `unpinned` raises.
    """
    lock, mirrors = unpinned(project, instead)
    return _plan(project, lock, mirrors, None, made_from)


def _plan(project: Project, lock: Lock, mirrors: dict[str, Mirror], recipe: Recipe | None, image_key: str) -> Plan:
    manifest = render_manifest(project.box, lock, image_key)
    return Plan(project, lock, mirrors, recipe, image_key, manifest, manifest_digest(manifest))
