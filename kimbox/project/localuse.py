"""The repositories of this machine that the user's specs may use: those of which `lock` or `up` has warned.

local.json in kimbox's home: path of a spec -> URLs. Whoever wrote a spec could name a private repository of this user.
`render` packs such a repository for others only if the user has seen the warning for this spec, or allows it.
"""

from __future__ import annotations

import contextlib
import os

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.files import locked, read_json, write_json
from kimbox.project.project import Project
from kimbox.spec.model import Repository

#: Timeout for another process that writes the file, in seconds.
LOCK_WAIT_S = 10.0


def new_repositories(project: Project) -> list[Repository]:
    """Returns the repositories of this machine, outside of the spec's folder, of which the user was not warned yet."""
    local = project.local_repositories()
    known = _read().get(_key(project), []) if local else []
    return [repository for repository in local if repository.url not in known]


def remember(project: Project) -> None:
    """Records that the user was warned of the repositories of this machine in a spec."""
    urls = [repository.url for repository in project.local_repositories()]
    if not urls:
        return
    file = paths.local_use_file()
    with locked(file.with_suffix(".lock"), wait_s=LOCK_WAIT_S):
        write_json(file, {**_read(), _key(project): urls}, mode=0o600)


def _key(project: Project) -> str:
    return os.path.realpath(project.box.source)


def _read() -> dict[str, list[str]]:
    """The content of the file. A file that is missing or damaged counts as empty: the user is warned again."""
    with contextlib.suppress(OSError, KimboxError):
        value = read_json(paths.local_use_file())
        return {spec: urls for spec, urls in value.items() if isinstance(urls, list)}
    return {}
