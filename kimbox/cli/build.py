"""kimbox build: the image of a box, and nothing more."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def build(box: target.Name = None, file: target.File = None) -> None:
    """Build or fetch the image of a box, if the store does not have it yet: from the packages that its lock names.

    \b
    Examples:
      kimbox build
      kimbox build openkim-dev --verbose
    """
    from kimbox.image import obtain
    from kimbox.image.store import images
    from kimbox.project import pins

    project = target.project(box, file)
    locked = pins.lock_for(project)
    there = images.find(locked.image_key) is not None
    image = obtain.ensure(project.box, locked.recipe)
    result = {"name": project.name, "key": image.key, "disk": str(image.disk), "built": not there}
    report("build", result, f"{image.disk}" + (" (as it was)" if there else ""))
