"""kimbox ssh-config: print the ssh_config(5) entry of a box."""

from __future__ import annotations

from kimbox.cli import target
from kimbox.cli.output import report


def ssh_config(box: target.Name = None, file: target.File = None) -> None:
    """Print the ssh_config(5) entry of a box, for ssh, scp, rsync, git and editors.

    The host of the entry is kimbox-NAME. The port may be another one after a new start of the box.

    \b
    Examples:
      kimbox ssh-config >~/.ssh/kimbox.conf     # with `Include kimbox.conf` at the top of ~/.ssh/config
      kimbox ssh-config >box.conf && scp -F box.conf data kimbox-openkim-dev:
    """
    from kimbox.actions.observe import endpoint as endpoint_of
    from kimbox.guest.endpoint import ssh_settings

    machine = target.machine(box, file)
    endpoint = endpoint_of(machine)
    values = ssh_settings(endpoint)
    text = "\n".join([f"Host {endpoint.alias}", *(f"  {key} {value}" for key, value in values.items())])
    report("ssh-config", {"host": endpoint.alias, "settings": values}, text, is_file=True)
