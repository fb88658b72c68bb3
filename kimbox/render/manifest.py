"""Renders the manifest: the files by which a guest provisions itself. No input or output.

    manifest.env             KIMBOX_* of the box as a whole
    repositories             one repository a line: name, commit, path, separated by tabs; `setup` first
    submodules               only if there are any, one a line: name of the repository, commit, path in its checkout;
                             a nested submodule comes after its parent
    tags/, origins, gitconfig    only if there are any; see kimbox/render/checkouts.py
    steps/NN-NAME/script     a provision step, and steps/NN-NAME/env: its name, mode, run, timeout, digest and uses
    users/NAME               only if there are any: an account of a person; see kimbox/render/users.py
    probes/NN/script         a probe, and probes/NN/env: its name, hint and timeout
    environment, secrets     only if the box has variables: a line NAME=VALUE for each, and a NAME for each secret one
    box.env, box.json        what the box was made from: the host's part of /etc/kimbox/box.env and box.json

The guest keeps a manifest in a folder named by its digest. It compares the digests of steps to find those that it has
run.
"""

from __future__ import annotations

import hashlib

import kimbox
from kimbox.errors import KimboxError
from kimbox.render.boxfile import PinnedLock, box_env, box_json, describe
from kimbox.render.checkouts import render_checkouts
from kimbox.render.quote import assignments
from kimbox.render.users import user_file
from kimbox.render.uses import used_repositories
from kimbox.spec.model import SETUP, SETUP_TIMEOUT_S, Box, ResnapKeep, Run

#: Version of the format. The scripts of the guest refuse a newer one. A manifest with submodules has the second, one
#: with a step that has `uses` the third, one with a time zone the fourth, one with variables or accounts of people the
#: fifth. So an older image reports an error and does not ignore them.
FORMAT = 1
SUBMODULES_FORMAT = 2
USES_FORMAT = 3
TIMEZONE_FORMAT = 4
ENVIRONMENT_FORMAT = 5

#: KIMBOX_STEP_USES of a step with an empty `uses`. A step without `uses` whose script names no repository has "".
NOTHING = "-"

#: First line of a script that has none: with -e it stops at the first command that fails.
INTERPRETER = "#!/bin/sh -e\n"

#: Relative path of a file -> its content and mode.
Manifest = dict[str, tuple[bytes, int]]


def render_manifest(box: Box, lock: PinnedLock, image: str | None = None) -> Manifest:
    """Returns the files of the manifest, in a fixed order.

    `image` is the key of the image that the box was made from; None if it is not known. A manifest contains no time and
    no path of the host, so that equal arguments give an equal digest. Raises KimboxError if the lock has no pin for a
    repository of the box, and for a path that would break the format.
    """
    files: Manifest = {}
    submodules = _submodules(box, lock)
    files["manifest.env"] = (_environment(box, lock, _format(box, submodules)), 0o644)
    files["repositories"] = (_repositories(box, lock), 0o644)
    files |= {name: (data, 0o644) for name, data in render_checkouts(box, lock).items()}
    if submodules:
        files["submodules"] = (submodules, 0o644)
    for number, step in enumerate(box.provision, 1):
        folder = f"steps/{number:02}-{_file_name(step.name)}"
        script = _script(step.script)
        values: dict[str, str | int] = {
            "KIMBOX_STEP": step.name,
            "KIMBOX_STEP_MODE": step.mode,
            "KIMBOX_STEP_RUN": step.run,
            "KIMBOX_STEP_TIMEOUT": step.timeout_s,
            # Only of mode and text, because records of older guests compare it. The guest compares commits for `uses`.
            "KIMBOX_STEP_DIGEST": hashlib.sha256(f"{step.mode}\n".encode() + script).hexdigest(),
            "KIMBOX_STEP_USES": NOTHING if step.uses == () else " ".join(used_repositories(step, box)),
        }
        files[f"{folder}/script"] = (script, 0o755)
        files[f"{folder}/env"] = (assignments(values), 0o644)
    for number, probe in enumerate(box.probes, 1):
        values = {
            "KIMBOX_PROBE": _one_line(probe.description),
            "KIMBOX_PROBE_HINT": _one_line(probe.hint or ""),
            "KIMBOX_PROBE_TIMEOUT": probe.timeout_s,
        }
        files[f"probes/{number:02}/script"] = (_script(probe.script), 0o755)
        files[f"probes/{number:02}/env"] = (assignments(values), 0o644)
    files |= _variables(box)
    files |= {f"users/{user.name}": (user_file(user), 0o644) for user in box.users}
    described = describe(box, lock, image)
    files["box.env"] = (box_env(described), 0o644)
    files["box.json"] = (box_json(described), 0o644)
    return files


def manifest_digest(manifest: Manifest) -> str:
    """Returns the sha256 hex digest of every path, mode and content."""
    digest = hashlib.sha256()
    for path, (data, mode) in sorted(manifest.items()):
        digest.update(f"{hashlib.sha256(data).hexdigest()} {mode:04o} {path}\n".encode())
    return digest.hexdigest()


def _format(box: Box, submodules: bytes) -> int:
    if box.variables or box.users:
        return ENVIRONMENT_FORMAT
    if box.timezone:
        return TIMEZONE_FORMAT
    if any(step.uses for step in box.provision):
        return USES_FORMAT
    return SUBMODULES_FORMAT if submodules else FORMAT


def _environment(box: Box, lock: PinnedLock, version: int) -> bytes:
    setup = box.repository(SETUP)
    followed = setup if setup and setup.follow else None
    each_time = bool(followed) or bool(box.probes) or any(step.run is not Run.ONCE for step in box.provision)
    return assignments(
        {
            "KIMBOX_MANIFEST_FORMAT": version,
            "KIMBOX_BOX": box.name,
            "KIMBOX_SPEC_DIGEST": box.digest,
            "KIMBOX_VERSION": kimbox.__version__,
            # `no`: a guest that has run this manifest reports ready without any other work.
            "KIMBOX_EACH_TIME": "yes" if each_time else "no",
            "KIMBOX_SETUP_TIMEOUT": setup.timeout_s if setup else SETUP_TIMEOUT_S,
            "KIMBOX_UNPINNED": " ".join(lock.unpinned),
            # Branch and URL of the setup repository that the box follows.
            "KIMBOX_FOLLOW": followed.ref if followed else "",
            "KIMBOX_FOLLOW_URL": followed.url if followed else "",
            **({"KIMBOX_TIMEZONE": box.timezone} if box.timezone else {}),
            # Only if the box keeps no root: so the manifests of other boxes stay the same.
            **({"KIMBOX_KEEP": box.resnap_keep} if box.resnap_keep is ResnapKeep.NOTHING else {}),
            "KIMBOX_STEPS": len(box.repositories)
            + sum(map(bool, (box.timezone, box.users, setup)))
            + len(box.provision)
            + len(box.probes),
        }
    )


def _variables(box: Box) -> Manifest:
    """Returns the files with the variables of the box, without the values of secret ones."""
    files = {
        "environment": [f"{variable.name}={variable.value}\n" for variable in box.variables if variable.file is None],
        "secrets": [f"{variable.name}\n" for variable in box.variables if variable.file],
    }
    return {name: ("".join(lines).encode(), 0o644) for name, lines in files.items() if lines}


def _repositories(box: Box, lock: PinnedLock) -> bytes:
    lines = []
    for repository in sorted(box.repositories, key=lambda r: r.name != SETUP):
        pinned = lock.repositories.get(repository.name)
        if pinned is None:
            raise KimboxError(
                f"the lock has no pin for the repository {repository.name}",
                code="lock-disagrees",
                hint="`kimbox lock` adds it",
                fields={"repository": repository.name},
            )
        lines.append(_line(repository.name, pinned.commit, repository.path))
    return "".join(lines).encode()


def _submodules(box: Box, lock: PinnedLock) -> bytes:
    lines = []
    for repository in box.repositories:
        pinned = lock.repositories.get(repository.name)
        for path, submodule in sorted(pinned.submodules.items()) if pinned else ():
            if path.startswith("/") or {"", ".", "..", ".git"} & set(path.split("/")):
                raise KimboxError(
                    f"repository {repository.name}: the path of a submodule is not inside of its checkout: {path!r}",
                    code="bad-path",
                    fields={"repository": repository.name, "path": path},
                )
            lines.append(_line(repository.name, submodule.commit, path))
    return "".join(lines).encode()


def _line(name: str, *fields: str) -> str:
    """Returns a line of fields. Raises KimboxError for a character that would end a field or a line."""
    if any(c in field for field in (name, *fields) for c in "\t\n\0"):
        message = f"repository {name}: its name or path contains a tab, line break or NUL"
        raise KimboxError(message, code="forbidden-character", fields={"repository": name})
    return "\t".join((name, *fields)) + "\n"


def _script(text: str) -> bytes:
    body = text if text.endswith("\n") else text + "\n"
    return (body if body.startswith("#!") else INTERPRETER + body).encode()


def _one_line(text: str) -> str:
    """Returns a text on one line, because the guest reads messages line by line."""
    return text.strip().replace("\n", " ")


def _file_name(name: str) -> str:
    """Returns the name of a step as a part of a file name. It need not be unique: a number precedes it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)[:60]
