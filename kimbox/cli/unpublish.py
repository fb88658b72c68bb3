"""kimbox unpublish: remove the image of a box from an OpenStack cloud."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def unpublish(box: target.Name = None, file: target.File = None) -> None:
    """Remove the image of a box from an OpenStack cloud. Instances that were made from it stay.

    It is the image of the present spec and lock, also one whose upload was interrupted.

    The JSON has: name and removed (the number of images).

    \b
    Examples:
      kimbox unpublish
      OS_CLOUD=arbutus kimbox unpublish openkim-dev
    """
    from kimbox.actions import publish as publishing

    project = target.project(box, file)
    count = publishing.unpublish(project)
    text = f"removed the image of {project.name}" if count else f"the cloud has no image of {project.name}"
    report("unpublish", {"name": project.name, "removed": count}, text)
