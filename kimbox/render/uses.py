"""Finds the repositories that a provision step uses: those in its `uses`, or those whose path is in its script."""

from __future__ import annotations

import re

from kimbox.spec.model import Box, Mode, Step

#: Mode of a step -> the folder of `~` and $HOME in its script.
HOMES = {Mode.SYSTEM: "/root", Mode.USER: "/home/vagrant"}
#: The folder of `~vagrant`, in every mode.
ACCOUNT_HOME = "/home/vagrant"

#: Maximum number of folders of a path that are compared: a path of a repository has at most 255 characters.
MAX_FOLDERS = 128

#: A path in a script: absolute, in a file: URL, or below a home folder.
_PATH = re.compile(
    r"(?:(?<![A-Za-z0-9_+@./-])|(?<=://))(?P<home>~vagrant|~|\$HOME|\$\{HOME\})?(?P<rest>(?:/[A-Za-z0-9_+@.-]+)+)"
)


def used_repositories(step: Step, box: Box) -> tuple[str, ...]:
    """Returns the names of the repositories that a step uses, in the order of the spec."""
    if step.uses is not None:
        return tuple(repository.name for repository in box.repositories if repository.name in step.uses)
    named = named_paths(step)
    return tuple(repository.name for repository in box.repositories if repository.path in named)


def named_paths(step: Step) -> set[str]:
    """Returns every path in the script of a step, and all folders above it: of /opt/tool/x also /opt/tool.

    A full stop after a path is not a part of it.
    """
    paths = set()
    for match in _PATH.finditer(step.script):
        path = "" if match["home"] is None else ACCOUNT_HOME if match["home"] == "~vagrant" else HOMES[step.mode]
        for folder in match["rest"].split("/", MAX_FOLDERS)[1:MAX_FOLDERS]:
            paths.add(f"{path}/{folder.rstrip('.')}")
            path += f"/{folder}"
    return paths
