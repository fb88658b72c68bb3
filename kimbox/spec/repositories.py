"""The part `repositories` of a spec."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from kimbox import paths
from kimbox.spec import rules, units, urls
from kimbox.spec.layers import find_beside
from kimbox.spec.model import SETUP, SETUP_TIMEOUT_S, Repository
from kimbox.spec.nodes import Fault, Node, shown
from kimbox.spec.reader import Reader

#: The ref of a repository without `ref`: the default branch of the server.
DEFAULT_REF = "HEAD"

#: The guest folder of the checkouts of repositories without `path`.
CHECKOUTS = "/usr/local/src"

#: Hint for paths that overlap.
_HINT_APART = "give each a folder of its own"


def read_repositories(reader: Reader) -> tuple[Repository, ...]:
    """Returns the repositories, in the order of the spec. No checkout may be inside another."""
    repositories: list[Repository] = []
    node = reader.tree.get("repositories")
    for name, item in node.mapping.items() if node else ():
        try:
            rules.repository_name(name)
        except Fault as fault:
            assert node is not None  # noqa: S101 - for the type checker
            reader.problems.add(node.keys[name], fault.message, fault.hint, code=fault.code)
            continue
        repositories.append(_repository(reader, name, item))
    _check_paths_are_apart(reader, repositories)
    return tuple(repositories)


def _repository(reader: Reader, name: str, item: Node) -> Repository:
    """Returns one repository."""
    url_node, ref, path, timeout = (item.get(key) for key in ("url", "ref", "path", "timeout"))
    if timeout and name != SETUP:
        message = f"`timeout` has no effect here: kimbox runs no script of the repository {name}"
        reader.fault(timeout, message, f"only {SETUP} has a timeout", code="conflicting-settings")
    url = reader.text(url_node, urls.repository, "")
    is_folder = bool(url) and urls.is_folder(url)
    if url_node and is_folder:
        url = str(reader.text(url_node, functools.partial(_folder, reader, Path(url_node.mark.file).parent), Path()))
        if ref:
            hint = "remove it: the lock pins the content of the folder"
            reader.fault(ref, "a folder has no ref", hint, code="conflicting-settings")
    return Repository(
        name=name,
        url=url,
        is_folder=is_folder,
        ref=DEFAULT_REF if is_folder else reader.text(ref, rules.ref, DEFAULT_REF),
        path=reader.text(path, rules.guest_path, f"{CHECKOUTS}/{name}"),
        timeout_s=reader.text(timeout, units.duration, SETUP_TIMEOUT_S),
        keys=_verification_keys(reader, item.get("verify", "keys"), is_folder=is_folder),
        follow=_follow(reader, name, item),
    )


def _follow(reader: Reader, name: str, item: Node) -> bool:
    """Whether the guest follows the branch of a repository. Reports a fault if a box cannot do that."""
    node = item.get("follow")
    if node is None or node.value is not True:
        return False
    url, ref = (str(part.value) if (part := item.get(key)) else "" for key in ("url", "ref"))
    if reason := urls.why_not_followed(name, url, ref, is_verified=item.get("verify", "keys") is not None):
        reader.fault(node, reason, "remove `follow`: then the lock pins a commit", code="conflicting-settings")
    return True


def _verification_keys(reader: Reader, node: Node | None, *, is_folder: bool) -> tuple[str, ...]:
    """Returns the public keys of which one must have signed a repository."""
    if node is None:
        return ()
    if is_folder:
        hint = "remove `verify`, or give the URL of a git repository"
        reader.fault(node, "a folder has no signature", hint, code="conflicting-settings")
    elif not node.items:
        reader.fault(node, "`verify.keys` is empty", "add a public key, or remove `verify`", code="empty-value")
    return reader.keys(node)


def _folder(reader: Reader, beside: Path, text: str) -> Path:
    """Returns the absolute path of a folder that is the `url` of a repository. Raises Fault if it is none."""
    try:
        folder = find_beside(text, beside, (reader.spec.parent, paths.boxes_dir()), "folder")
    except Fault as fault:
        if fault.code == "outside-spec-folder" and (hint := _hint_for_repository(text, beside)):
            raise Fault(fault.message, hint, code=fault.code) from None
        raise
    if not folder.is_dir():
        hint = "name a folder, or a git URL such as https://..."
        raise Fault(f"{shown(text)} is not a folder", hint, code="bad-path")
    return Path(os.path.abspath(folder))  # noqa: PTH100 - not through links


def _hint_for_repository(text: str, beside: Path) -> str | None:
    """Returns how to name a repository beside that of the spec, such as ../lattice. None if it is not a repository."""
    folder = Path(os.path.abspath(beside / text))  # noqa: PTH100 - not through links
    if not ((folder / ".git").exists() or ((folder / "objects").is_dir() and (folder / "HEAD").is_file())):
        return None
    command = f"git -C {shlex.quote(str(folder))} remote get-url origin"
    return (
        f"it is a git repository: give the URL at which colleagues reach it, too (`{command}` prints it); "
        f"{shown(f'file://{folder}')} works on this machine only"
    )


def _check_paths_are_apart(reader: Reader, repositories: list[Repository]) -> None:
    """Reports two repositories with the same path, and one inside another."""
    owners: dict[str, Repository] = {}  # path -> its repository
    inside: dict[str, Repository] = {}  # folder above a path -> a repository inside of it
    for repository in repositories:
        parents = [str(parent) for parent in PurePosixPath(repository.path).parents]
        other = next((owners[p] for p in (repository.path, *parents) if p in owners), inside.get(repository.path))
        node = reader.tree.get("repositories", repository.name)
        node = (node and node.get("path")) or node
        if other and node and reader.is_sound(node):
            is_same = other.path == repository.path
            relation = "is also the path of" if is_same else f"is nested with {shown(other.path)}, the path of"
            message = f"{shown(repository.path)} {relation} the repository {shown(other.name)}"
            reader.fault(node, message, _HINT_APART, code="paths-overlap")
        owners.setdefault(repository.path, repository)
        inside.update(dict.fromkeys(parents, repository))


def refuse_overlap(reader: Reader, node: Node, path: str, others: Mapping[str, str]) -> None:
    """Reports a path that is at, inside or above one of `others`: path in the guest -> what is there."""
    ours = PurePosixPath(path)
    for other, what in others.items():
        if ours.is_relative_to(other) or PurePosixPath(other).is_relative_to(ours):
            message = f"{shown(path)} overlaps with {shown(other)}, {what}"
            reader.fault(node, message, _HINT_APART, code="paths-overlap")
            return
