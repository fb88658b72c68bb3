"""Which repositories a provision step uses: those that it names, or those whose path its script names. Pure."""

from __future__ import annotations

import re

from kimbox.spec.model import Box, Mode, Step

#: What `~` and $HOME mean in a script of each mode.
HOMES = {Mode.SYSTEM: "/root", Mode.USER: "/home/vagrant"}
ACCOUNT_HOME = "/home/vagrant"

#: Folders of a path that are looked at: a path of a repository has at most 255 characters.
MAX_FOLDERS = 128

#: A path in a script, from its start on: absolute, in a file: URL, or below a home folder.
_PATH = re.compile(
    r"(?:(?<![A-Za-z0-9_+@./-])|(?<=://))(?P<home>~vagrant|~|\$HOME|\$\{HOME\})?(?P<rest>(?:/[A-Za-z0-9_+@.-]+)+)"
)


def uses(step: Step, box: Box) -> tuple[str, ...]:
    """The names of the repositories that a step uses, in the order of the spec."""
    if step.uses is not None:
        return tuple(repository.name for repository in box.repositories if repository.name in step.uses)
    named = named_paths(step)
    return tuple(repository.name for repository in box.repositories if repository.path in named)


def named_paths(step: Step) -> set[str]:
    """Every path that the script of a step names, and all folders above it: /opt/tool/x stands for /opt/tool too, and
    /opt/toolbox does not. A full stop after a path ends a sentence.
    """
    found = set()
    for match in _PATH.finditer(step.script):
        path = "" if match["home"] is None else ACCOUNT_HOME if match["home"] == "~vagrant" else HOMES[step.mode]
        for folder in match["rest"].split("/", MAX_FOLDERS)[1:MAX_FOLDERS]:
            found.add(f"{path}/{folder.rstrip('.')}")
            path += f"/{folder}"
    return found
