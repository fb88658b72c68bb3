"""The manifest: all that a guest needs to provision itself, as a few small files. Pure.

    manifest.env             KIMBOX_* of the box as a whole
    repositories             a line each: name, commit, path, separated by tabs; `setup` first
    submodules               where there are any; a line each: name of the repository, commit, path in its checkout;
                             each stands after the one that it lies in
    steps/NN-NAME/script     a provision step, and steps/NN-NAME/env: its name, mode, run, timeout, digest and uses
    probes/NN/script         a probe, and probes/NN/env: its name, hint and timeout
    box.env, box.json        what the box is made of: the part of /etc/kimbox/box.env and box.json that the host knows

The guest keeps a manifest in a folder named by its digest, and compares the digests of steps to know what it has run.
"""

from __future__ import annotations

import hashlib

import kimbox
from kimbox.errors import KimboxError
from kimbox.render.boxfile import Made, box_env, box_json, describe
from kimbox.render.quote import assignments
from kimbox.render.uses import uses
from kimbox.spec.model import SETUP, SETUP_TIMEOUT_S, Box, Run

#: Version of the format; the guest's scripts refuse another. A manifest with submodules is of the second one, so that
#: an image that would pass over them says so. For the same reason one with a step that says which repositories it uses
#: is of the third.
FORMAT = 1
SUBMODULES_FORMAT = 2
USES_FORMAT = 3

#: What a step uses that says that it uses no repository. One that does not say, and names the path of none, has "".
NOTHING = "-"

#: A script without a first line of its own stops at the first command that fails.
INTERPRETER = "#!/bin/sh -e\n"

#: Relative path -> content and mode.
Manifest = dict[str, tuple[bytes, int]]


def render_manifest(box: Box, lock: Made, image: str | None = None) -> Manifest:
    """The files of the manifest, in a fixed order. Raises KimboxError if the lock lacks a repository of the box.

    `image` is the key of the image that the box was made from, where it is known. Nothing in a manifest tells of the
    time or the place it was made at: equal input gives an equal digest.
    """
    files: Manifest = {}
    submodules = _submodules(box, lock)
    files["manifest.env"] = (_environment(box, lock, _format(box, submodules)), 0o644)
    files["repositories"] = (_repositories(box, lock), 0o644)
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
            # Of mode and text alone: records of older guests compare it. What the step uses is compared by commits.
            "KIMBOX_STEP_DIGEST": hashlib.sha256(f"{step.mode}\n".encode() + script).hexdigest(),
            "KIMBOX_STEP_USES": NOTHING if step.uses == () else " ".join(uses(step, box)),
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
    described = describe(box, lock, image)
    files["box.env"] = (box_env(described), 0o644)
    files["box.json"] = (box_json(described), 0o644)
    return files


def manifest_digest(manifest: Manifest) -> str:
    """sha256 hex digest over every path, mode and content."""
    whole = hashlib.sha256()
    for path, (data, mode) in sorted(manifest.items()):
        whole.update(f"{hashlib.sha256(data).hexdigest()} {mode:04o} {path}\n".encode())
    return whole.hexdigest()


def _format(box: Box, submodules: bytes) -> int:
    if any(step.uses for step in box.provision):
        return USES_FORMAT
    return SUBMODULES_FORMAT if submodules else FORMAT


def _environment(box: Box, lock: Made, version: int) -> bytes:
    setup = box.repository(SETUP)
    followed = setup if setup and setup.follow else None
    each_time = bool(followed) or bool(box.probes) or any(step.run is not Run.ONCE for step in box.provision)
    return assignments(
        {
            "KIMBOX_MANIFEST_FORMAT": version,
            "KIMBOX_BOX": box.name,
            "KIMBOX_SPEC_DIGEST": box.digest,
            "KIMBOX_VERSION": kimbox.__version__,
            # Whether there is something to do even where everything has been done: the guest's shortest way to ready.
            "KIMBOX_EACH_TIME": "yes" if each_time else "no",
            "KIMBOX_SETUP_TIMEOUT": setup.timeout_s if setup else SETUP_TIMEOUT_S,
            "KIMBOX_UNPINNED": " ".join(lock.unpinned),
            # The branch of the setup repository that the box follows, and where it is.
            "KIMBOX_FOLLOW": followed.ref if followed else "",
            "KIMBOX_FOLLOW_URL": followed.url if followed else "",
            "KIMBOX_STEPS": len(box.repositories) + bool(setup) + len(box.provision) + len(box.probes),
        }
    )


def _repositories(box: Box, lock: Made) -> bytes:
    lines = []
    for repository in sorted(box.repositories, key=lambda r: r.name != SETUP):
        pinned = lock.repositories.get(repository.name)
        if pinned is None:
            raise KimboxError(f"the lock does not hold the repository {repository.name}", hint="run `kimbox lock`")
        lines.append(_line(repository.name, pinned.commit, repository.path))
    return "".join(lines).encode()


def _submodules(box: Box, lock: Made) -> bytes:
    lines = []
    for repository in box.repositories:
        pinned = lock.repositories.get(repository.name)
        for path, submodule in sorted(pinned.submodules.items()) if pinned else ():
            if path.startswith("/") or {"", ".", "..", ".git"} & set(path.split("/")):
                raise KimboxError(f"repository {repository.name}: the path of a submodule leads elsewhere: {path!r}")
            lines.append(_line(repository.name, submodule.commit, path))
    return "".join(lines).encode()


def _line(name: str, *fields: str) -> str:
    """Fields of a line of the manifest."""
    if any(c in field for field in (name, *fields) for c in "\t\n\0"):
        raise KimboxError(f"repository {name}: a tab, line break or NUL in its name or path")
    return "\t".join((name, *fields)) + "\n"


def _script(text: str) -> bytes:
    body = text if text.endswith("\n") else text + "\n"
    return (body if body.startswith("#!") else INTERPRETER + body).encode()


def _one_line(text: str) -> str:
    """Text for a message: the guest hands it on a line at a time."""
    return text.strip().replace("\n", " ")


def _file_name(name: str) -> str:
    """A step's name as a file name; the number before it keeps it unique."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)[:60]
