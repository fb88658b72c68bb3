"""kimbox.lock: the frozen inputs of a box, written for people to review.

A commit of a URL stays as locked until somebody moves it on purpose. A folder beside the spec is part of the spec as it
is being written, so its pin follows its content at each `up`, which says so.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, Problem, SpecError
from kimbox.files import read_bounded, write_atomic
from kimbox.lock.apt.packages import LockedPackages
from kimbox.lock.git import contents, submodules
from kimbox.lock.git.command import redact
from kimbox.lock.git.history import rewritten
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.git.refs import COMMIT
from kimbox.lock.git.submodules import Submodule
from kimbox.log import log
from kimbox.spec.model import SETUP, Box, Repository

if TYPE_CHECKING:
    from kimbox.spec.nodes import Node

#: Version of the format.
FORMAT = 1

#: A lock is small; this is far more than any needs.
MAX_LOCK_BYTES = 1 << 20

_HEADER = """\
# kimbox.lock: what this box is made of, frozen. Written by kimbox; keep it in git beside the spec, review its changes.
# `kimbox up` takes all from here. `kimbox lock --update NAME` moves one of them, `--update-all` all of them.
"""

_COMMENTS = {
    "lock": "version of this format",
    "spec": "sha256 of the merged spec that this was made from",
    "image": "key of the image in the store",
    "packages": "of the image: version, architecture, sha256 of the .deb",
}


@attrs.frozen
class PinnedSubmodule:
    """A submodule, at the commit that the repository around it names."""

    url: str
    commit: str


@attrs.frozen
class PinnedRepository:
    """One repository at one commit. `url` and `ref` are what the spec asked for (see `locked_url`)."""

    url: str
    ref: str
    commit: str
    tree: str
    #: By path in the checkout, those below others included. They follow from the commit, and are here to be read.
    submodules: Mapping[str, PinnedSubmodule] = attrs.field(factory=dict)


@attrs.frozen
class Lock:
    """A lock file's content."""

    spec_digest: str
    #: Key of the image in the store, or None while it is not known.
    image: str | None
    repositories: Mapping[str, PinnedRepository]
    #: The packages of an image that is built here; None for one from elsewhere.
    packages: LockedPackages | None = None
    #: Names of repositories that stand here at another commit than in the file; never written.
    unpinned: tuple[str, ...] = ()
    #: `digest` of the file that this lock was made from, where something in it is unpinned.
    frozen_digest: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """sha256 hex digest of the text that kimbox writes for this lock."""
        return self.frozen_digest or hashlib.sha256(format_lock(self).encode()).hexdigest()


def locked_url(box: Box, repository: Repository) -> str:
    """How a lock writes where a repository comes from: without credentials; a folder relative to the spec's own."""
    if repository.is_folder:
        relative = os.path.relpath(repository.url, box.source.parent)
        return relative if relative.startswith("..") else f"./{relative}"
    return redact(repository.url)


def make_lock(
    box: Box,
    *,
    previous: Lock | None = None,
    update: Iterable[str] | None = (),
    image: str | None = None,
    packages: LockedPackages | None = None,
    offline: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Lock:
    """Pins every repository of the box.

    What `previous` holds for the same url and ref stays, unless its name is in `update` (None: move all). Folders are
    pinned to their present content, and a change of it is told. `image` None keeps the key of `previous`. `warn` gets
    what is told of a moved tag, a force-pushed branch, and files that the box will lack (Git LFS). Where `offline`, no
    server is asked.
    `packages` are those of an image that is built here.
    """
    moved = None if update is None else set(update)
    if unknown := (moved or set()) - {r.name for r in box.repositories}:
        raise KimboxError(f"the box {box.name} has no repository {', '.join(sorted(unknown))}")
    pinned: dict[str, PinnedRepository] = {}
    for repository in sorted(box.repositories, key=lambda r: (r.name != SETUP, r.name)):
        url = locked_url(box, repository)
        old = previous.repositories.get(repository.name) if previous else None
        same = old is not None and (old.url, old.ref) == (url, repository.ref)
        if same and old and not repository.is_folder and moved is not None and repository.name not in moved:
            pinned[repository.name] = old
            continue
        mirror = Mirror.of(repository, offline=offline)
        pin = mirror.resolve(repository.ref)
        modules = submodules.collect(mirror, pin.commit)
        inner = pinned_submodules(modules)
        is_new = old is None or old.commit != pin.commit
        for text in contents.check(mirror, pin.commit, modules) if is_new else ():
            (warn or log.warn)(text)
        pinned[repository.name] = PinnedRepository(url, repository.ref, pin.commit, pin.tree, inner)
        if same and old and (what := rewritten(mirror, repository.ref, old.commit, pin)):
            (warn or log.warn)(what)
        if repository.is_folder and old and old.commit != pin.commit:
            log.info(f"repository {repository.name}: the folder {url} has changed; pinned to {pin.commit[:12]}")
    return Lock(box.digest, image or (previous.image if previous else None), pinned, packages)


def pinned_submodules(found: Mapping[str, Submodule]) -> dict[str, PinnedSubmodule]:
    """Submodules as a lock has them."""
    return {path: PinnedSubmodule(submodule.shown_url, submodule.commit) for path, submodule in found.items()}


def check_lock(box: Box, lock: Lock) -> list[str]:
    """Where spec and lock disagree, in words; empty if they agree. Asks no network.

    A changed folder is no disagreement, and neither is a change of the spec outside of its repositories.
    """
    return list(disagreements(box, lock).values())


def disagreements(box: Box, lock: Lock) -> dict[str, str]:
    """`check_lock`, by the name of the repository."""
    wrong = {}
    wanted = {r.name: r for r in box.repositories}
    for name in sorted(set(wanted) - set(lock.repositories)):
        wrong[name] = f"repository {name} is in the spec but not in the lock"
    for name in sorted(set(lock.repositories) - set(wanted)):
        wrong[name] = f"repository {name} is in the lock but no longer in the spec"
    for name in sorted(set(wanted) & set(lock.repositories)):
        old, url = lock.repositories[name], locked_url(box, wanted[name])
        if old.url != url:
            wrong[name] = f"repository {name}: the spec takes it from {url}, the lock from {old.url}"
        elif old.ref != wanted[name].ref:
            wrong[name] = f"repository {name}: the spec asks for {wanted[name].ref}, the lock was made for {old.ref}"
        elif COMMIT.fullmatch(old.ref) and old.commit != old.ref:
            wrong[name] = f"repository {name}: the spec asks for the commit {old.ref}, the lock holds {old.commit}"
    return wrong


def in_order(names: Iterable[str]) -> list[str]:
    """Names of repositories in the order of a lock: `setup` first."""
    return sorted(names, key=lambda name: (name != SETUP, name))


def write_lock(path: Path, lock: Lock) -> bool:
    """Writes the lock whole or not at all. Returns whether its text changed; leaves an equal file untouched."""
    if not differs(path, lock):
        return False
    write_atomic(path, format_lock(lock))
    return True


def differs(path: Path, lock: Lock) -> bool:
    """Whether the file is missing, or another text than the lock would be written as."""
    return not path.is_file() or read_bounded(path, limit_bytes=MAX_LOCK_BYTES) != format_lock(lock).encode()


def format_lock(lock: Lock) -> str:
    """The lock as YAML: fixed order, one value a line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    body = CommentedMap()
    body["lock"] = FORMAT
    body["spec"] = lock.spec_digest
    body["image"] = lock.image
    if lock.packages:
        body["packages"] = CommentedMap(lock.packages.as_tree())
    repositories = CommentedMap()
    for name in in_order(lock.repositories):
        fields = attrs.asdict(lock.repositories[name])
        inner = {path: CommentedMap(values) for path, values in sorted(fields.pop("submodules").items())}
        repositories[name] = CommentedMap(fields | ({"submodules": CommentedMap(inner)} if inner else {}))
    body["repositories"] = repositories
    for key, comment in _COMMENTS.items():
        if key in body:
            body.yaml_add_eol_comment(comment, key)
    yaml = YAML()
    yaml.width = 1 << 16  # a folded URL would be two changes a line
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    out = io.StringIO()
    yaml.dump(body, out)
    return _HEADER + out.getvalue()


def read_lock(path: Path) -> Lock:
    """Reads a lock. Raises SpecError with every fault at its line, for a file edited by hand or damaged."""
    from kimbox.spec.parse import read_text

    return parse_lock(read_text(path), path)[0]


def parse_lock(text: str, path: Path) -> tuple[Lock, Node]:
    """`read_lock` for a text that came from `path`; the lock, and the tree that knows the places of its values."""
    from kimbox.spec.nodes import Problems
    from kimbox.spec.parse import parse

    problems = Problems()
    tree = parse(text, str(path), problems)
    if tree.get("lock") and tree.mapping["lock"].value != FORMAT:
        raise SpecError.at(
            path,
            f"this lock is of format {tree.mapping['lock'].value}, and this kimbox reads format {FORMAT}",
            line=tree.mapping["lock"].mark.line,
            column=tree.mapping["lock"].mark.column,
            hint="use the kimbox that wrote it, or make a new one",
        )
    found = problems.collected or _schema_problems(path, tree)
    if found:
        raise SpecError(found, hint="restore it from git; or delete it, and a new one is made")
    data = tree.plain()
    pinned = {}
    for name, values in data["repositories"].items():
        inner = {path: PinnedSubmodule(**module) for path, module in values.pop("submodules", {}).items()}
        pinned[name] = PinnedRepository(**values, submodules=inner)
    packages = LockedPackages.from_tree(data["packages"]) if "packages" in data else None
    return Lock(data["spec"], data["image"], pinned, packages), tree


def _schema_problems(path: Path, tree: Node) -> list[Problem]:
    from kimbox.spec.schema import strict_validator

    schema = json.loads(read_bounded(paths.schemas_dir() / "lock.schema.json"))
    found = []
    for error in strict_validator(schema).iter_errors(tree.plain()):
        node = tree.get(*error.absolute_path) or tree
        where = ".".join(map(str, error.absolute_path)) or "the lock"
        found.append(Problem(str(path), node.mark.line, node.mark.column, f"{where}: {error.message[:200]}"))
    return found
