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

    spec, shipped = target.spec(box, file)
    lock, _ = pins.lock_for(spec, shipped=shipped is not None)
    there = images.find(obtain.key_of(spec, lock.packages)) is not None
    image = obtain.ensure(spec, lock.packages)
    result = {"name": spec.name, "key": image.key, "disk": str(image.disk), "built": not there}
    report("build", result, f"{image.disk}" + (" (as it was)" if there else ""))
