"""kimbox build: build or download the image of a box, and start nothing."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def build(box: target.Name = None, file: target.File = None) -> None:
    """Build or download the image of a box, if the store does not have it yet. An image is built from the packages of
    the lock.

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
    is_in_store = images.find(locked.image_key) is not None
    image = obtain.ensure(project.box, locked.recipe)
    result = {"name": project.name, "key": image.key, "disk": str(image.disk), "built": not is_in_store}
    report("build", result, f"{image.disk}" + (" (was in the store already)" if is_in_store else ""))
