"""A plan: everything that follows from spec and lock. A command computes it once and passes it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from kimbox.files import json_bytes
from kimbox.guest.delivery import Payload, parcels_of
from kimbox.image.inputs.recipe import Recipe
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock
from kimbox.machine.delivered_locks import Delivered
from kimbox.project.pins import lock_for
from kimbox.project.project import Project
from kimbox.project.unpinned import Replacement, unpinned
from kimbox.render.manifest import Manifest, manifest_digest, render_manifest
from kimbox.spec.load import merged_spec
from kimbox.spec.model import Box, SavedImage


@attrs.frozen
class Plan:
    """The inputs of a machine of a project, and the content that its guest receives."""

    project: Project
    lock: Lock
    #: Mirrors that hold every commit of the lock. The keys are those of `Locked.mirrors`.
    mirrors: Mapping[str, Mirror]
    #: The recipe of the image; None if the image is not built here, or if no image is needed.
    recipe: Recipe | None
    #: Key of the image that the manifest names. For an existing machine it is the image in its record.
    image_key: str
    manifest: Manifest
    #: sha256 hex digest of the manifest; the guest's events carry it.
    digest: str

    @property
    def box(self) -> Box:
        """The spec."""
        return self.project.box

    @property
    def delivered(self) -> Delivered:
        """The record of what is sent to the guest. It stays on this host, and describes the machine."""
        spec = merged_spec(self.box.source, self.box.settings, self.box.member)
        return Delivered(self.digest, self.lock, json_bytes(spec) if spec else b"", self.manifest["box.json"][0])

    @property
    def payload(self) -> Payload:
        """The content that is sent to the guest."""
        return Payload(self.manifest, self.digest, tuple(parcels_of(self.box, self.lock)), self.mirrors)


def make_plan(project: Project, *, made_from: str | None = None) -> Plan:
    """Computes the plan of a project. If there is no lock, it is resolved and written.

    `made_from`: key of the image that an existing machine was made from; None for a new machine. Raises the errors of
    `lock_for`.
    """
    image = project.box.image
    if isinstance(image, SavedImage):  # the guest has a manifest that names the image below
        locked = lock_for(attrs.evolve(project, box=attrs.evolve(project.box, image=image.of_spec)))
        plan = _plan(project, locked.lock, locked.mirrors, None, image.below)
        return attrs.evolve(plan, image_key=made_from or image.key)
    locked = lock_for(project)
    return _plan(project, locked.lock, locked.mirrors, locked.recipe, made_from or locked.image_key)


def make_unpinned_plan(project: Project, replacements: Sequence[Replacement], *, made_from: str) -> Plan:
    """Computes a plan with replaced repositories, for an existing machine. The lock file is not changed.

    `made_from` as for `make_plan`. Raises the errors of `unpinned`.
    """
    lock, mirrors = unpinned(project, replacements)
    return _plan(project, lock, mirrors, None, made_from)


def _plan(project: Project, lock: Lock, mirrors: dict[str, Mirror], recipe: Recipe | None, image_key: str) -> Plan:
    manifest = render_manifest(project.box, lock, image_key)
    return Plan(project, lock, mirrors, recipe, image_key, manifest, manifest_digest(manifest))
