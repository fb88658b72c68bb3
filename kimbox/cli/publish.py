"""kimbox publish: bring the image of a box into an OpenStack cloud."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def publish(box: target.Name = None, file: target.File = None) -> None:
    """Bring the image of a box into an OpenStack cloud (Glance), unless the cloud has it.

    `kimbox up --provider openstack` does so by itself. The image has a tag with its key, so that it is uploaded once,
    and the properties that give an instance the right devices. The digest that the cloud computes must be that of the
    disk. The cloud is `openstack: {cloud: NAME}` of the spec, as in clouds.yaml, or that of the variables OS_CLOUD or
    OS_*.

    The JSON has: name, key (of the image), id (in the cloud), and uploaded (false if the cloud had the image).

    \b
    Examples:
      kimbox publish
      OS_CLOUD=arbutus kimbox publish openkim-dev
    """
    from kimbox.actions import publish as publishing

    project = target.project(box, file)
    made = publishing.publish(project)
    result = {"name": project.name, "key": made.key, "id": made.id, "uploaded": made.is_new}
    text = f"the image of {project.name} is in the cloud: {made.id}"
    report("publish", result, text + ("" if made.is_new else " (was there already)"))
