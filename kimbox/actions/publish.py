"""Brings the image of a box into a cloud, where machines of any host are made from it, and removes it."""

from __future__ import annotations

import attrs

from kimbox.drivers import registry
from kimbox.image import obtain
from kimbox.machine.folder import machine_of
from kimbox.project import pins
from kimbox.project.project import Project


@attrs.frozen
class Published:
    """A published image: its key, its id in the cloud, and whether it was published now."""

    key: str
    id: str
    is_new: bool


def publish(project: Project) -> Published:
    """Publishes the image of a project, which is built first if it is missing. Raises the errors of the driver."""
    locked = pins.lock_for(project)
    driver = registry.publishing(machine_of(project.name))
    with obtain.leased(project.box, locked.recipe, offline=project.offline) as image:
        found, is_new = driver.publish(project.box, image)
        return Published(image.key, found, is_new)


def unpublish(project: Project) -> int:
    """Removes the published images of a project, and returns their number. Machines that were made from them stay."""
    locked = pins.lock_for(project)
    return registry.publishing(machine_of(project.name)).unpublish(project.box, locked.image_key)
