"""kimbox.lock: the pinned inputs of a box, in a form that people can review.

The pin of a URL moves only by `kimbox lock --update`. A folder beside the spec is edited together with the spec, so
each `up` moves its pin to the current content and logs that.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, Problem, SpecError
from kimbox.files import read_bounded, write_atomic
from kimbox.lock.apt.packages import LockedPackages
from kimbox.lock.git import contents, submodules, tags
from kimbox.lock.git.command import GitError, GoneError, redact
from kimbox.lock.git.history import rewritten
from kimbox.lock.git.mirror import Mirror, Pin
from kimbox.lock.git.refs import COMMIT
from kimbox.lock.git.submodules import Submodule
from kimbox.lock.git.tags import Tag
from kimbox.lock.varying import Varying
from kimbox.log import log
from kimbox.spec import urls
from kimbox.spec.model import SETUP, Box, Repository

if TYPE_CHECKING:
    from kimbox.spec.nodes import Node

#: Version of the format.
FORMAT = 1

#: Maximum size of a lock file, in bytes.
MAX_LOCK_BYTES = 1 << 20

#: Codes of errors for which the spec is wrong: the server answers, and has no such ref or commit.
WRONG_IN_SPEC = frozenset({"ref-not-found", "ref-ambiguous", "bad-ref", "bad-url", "commit-not-found"})

_HEADER = """\
# kimbox.lock: what this box is made of, frozen. Written by kimbox; keep it in git beside the spec, review its changes.
# `kimbox up` takes all from here. `kimbox lock --update NAME` moves one of them, `--update-all` all of them.
"""

_COMMENTS = {
    "lock": "version of this format",
    "spec": "sha256 of the merged spec that this was made from",
    "image": "key of the image in the store",
    "packages": "of the image: version, architecture, sha256 of the .deb",
    "varying": "files that differ in each build of this image; written by `kimbox verify --deep`",
}


@attrs.frozen
class PinnedSubmodule:
    """A submodule, at the commit that its parent repository names."""

    url: str
    commit: str


@attrs.frozen
class PinnedRepository:
    """A repository at a commit. `url` (see `locked_url`) and `ref` are those of the spec."""

    url: str
    ref: str
    commit: str
    tree: str
    #: By path in the checkout, nested ones included. They follow from the commit; the lock lists them for review.
    submodules: Mapping[str, PinnedSubmodule] = attrs.field(factory=dict)
    #: By name: the tags in the history of the commit when it was pinned.
    tags: Mapping[str, Tag] = attrs.field(factory=dict)


@attrs.frozen
class Lock:
    """The content of a lock file."""

    #: sha256 hex digest of the merged spec.
    spec_digest: str
    #: Key of the image in the store; None if it is not known yet.
    image: str | None
    repositories: Mapping[str, PinnedRepository]
    #: The packages of an image that kimbox builds; None for a downloaded image.
    packages: LockedPackages | None = None
    #: The files that differ between two builds of the image `image`, as `kimbox verify --deep` found them.
    varying: Varying = attrs.field(factory=dict)
    #: Names of repositories at another commit than in the file. Never written to a file.
    unpinned: tuple[str, ...] = ()
    #: `digest` of the lock file, if `unpinned` or installed packages make this object differ from the file.
    frozen_digest: str | None = None

    @functools.cached_property
    def text(self) -> str:
        """The text of the lock file. YAML takes long to write, so it is written once."""
        return format_lock(self)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 hex digest of the lock file's text."""
        return self.frozen_digest or hashlib.sha256(self.text.encode()).hexdigest()


def locked_url(box: Box, repository: Repository) -> str:
    """The URL of a repository as a lock has it: without credentials; a folder relative to the spec's folder."""
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

    A pin of `previous` stays if url and ref are the same, unless its name is in `update` (None: move all pins). If only
    the url changed, the commit stays if the new URL has it. Folders are pinned to their current content. `image` None
    keeps the key of `previous`. `packages` are those of an image that kimbox builds. If `offline`, no server is
    contacted. `warn` is called with a text for each moved tag, force-pushed branch, and repository with files that the
    box will lack (Git LFS).

    Raises KimboxError (`repository-not-found`) if `update` names an unknown repository. The errors of the mirrors are
    collected: SpecError if the spec is wrong, else GitError, both with every repository and its place in the spec.
    """
    moved, warn = None if update is None else set(update), warn or log.warn
    if unknown := (moved or set()) - {r.name for r in box.repositories}:
        names = ", ".join(sorted(unknown))
        known = ", ".join(in_order(r.name for r in box.repositories))
        raise KimboxError(
            f"the box {box.name} has no repository {names}",
            code="repository-not-found",
            hint=f"it has: {known}" if known else "its spec names no repository",
            fields={"name": names},
        )
    pinned: dict[str, PinnedRepository] = {}
    failures: list[tuple[Repository, GitError]] = []
    for repository in sorted(box.repositories, key=lambda r: (r.name != SETUP, r.name)):
        old = previous.repositories.get(repository.name) if previous else None
        is_kept = moved is not None and repository.name not in moved
        try:
            pinned[repository.name] = _pinned(box, repository, old, is_kept=is_kept, offline=offline, warn=warn)
        except GitError as error:
            failures.append((repository, error))
    if failures:
        raise _failure(box, failures)
    key = image or (previous.image if previous else None)
    varying = previous.varying if previous and previous.image == key else {}
    return Lock(box.digest, key, pinned, packages, varying)


def _pinned(
    box: Box,
    repository: Repository,
    old: PinnedRepository | None,
    *,
    is_kept: bool,
    offline: bool,
    warn: Callable[[str], None],
) -> PinnedRepository:
    """The pin of a repository: the `old` one if `is_kept` and url and ref are the same, else that of a new commit."""
    url = locked_url(box, repository)
    is_same = old is not None and (old.url, old.ref) == (url, repository.ref)
    if is_same and old and not repository.is_folder and is_kept:
        return old
    mirror = Mirror.of(repository, offline=offline)
    pin = _moved_to(mirror, repository, old) if is_kept and not is_same else None
    pin = pin or mirror.resolve(repository.ref)
    modules = submodules.collect(mirror, pin.commit)
    for text in contents.check(mirror, pin.commit, modules) if old is None or old.commit != pin.commit else ():
        warn(text)
    if is_same and old and (warning := rewritten(mirror, repository.ref, old.commit, pin)):
        warn(warning)
    if repository.is_folder and old and old.commit != pin.commit:
        log.info(f"repository {repository.name}: the folder {url} has changed; pinned to {pin.commit[:12]}")
    inner, near = pinned_submodules(modules), tags.collect(mirror, pin.commit)
    return PinnedRepository(url, repository.ref, pin.commit, pin.tree, inner, near)


def _moved_to(mirror: Mirror, repository: Repository, old: PinnedRepository | None) -> Pin | None:
    """The locked commit at the new URL of a repository. None if only the ref is new, or if the new URL lacks it."""
    if old is None or repository.is_folder or urls.is_folder(old.url) or old.ref != repository.ref:
        return None
    try:
        pin = mirror.ensure(old.commit)
    except GoneError:
        log.warn(
            f"{mirror.where} does not have the locked commit {old.commit}: pinning {repository.ref} of the new URL"
        )
        return None
    log.info(f"repository {repository.name}: the new URL has the locked commit {old.commit[:12]}, so the pin stays")
    return pin


def _failure(box: Box, failures: list[tuple[Repository, GitError]]) -> KimboxError:
    """One error for all repositories that cannot be pinned, each with its place in the spec.

    It is a SpecError if the spec is wrong (`WRONG_IN_SPEC`), else the GitError of a server, file system or limit.
    """
    from kimbox.spec.load import place

    problems = []
    for repository, error in failures:
        key = "ref" if error.code in WRONG_IN_SPEC else "url"
        mark = place(box.source, "repositories", repository.name, key, member=box.member)
        problems.append(Problem(mark.file, mark.line, mark.column, error.message, error.hint, code=error.code))
    others = [error for _, error in failures if error.code not in WRONG_IN_SPEC]
    if not others:
        codes = {problem.code for problem in problems}
        return SpecError(problems, code=codes.pop() if len(codes) == 1 else "bad-spec")
    if len(failures) == 1:
        others[0].message = f"{problems[0].file}:{problems[0].line}:{problems[0].column}: {others[0].message}"
        return others[0]
    texts = "\n".join(map(str, sorted(problems)))
    return GitError(texts, code=others[0].code, fields=others[0].fields, stderr=others[0].stderr)


def pinned_submodules(modules: Mapping[str, Submodule]) -> dict[str, PinnedSubmodule]:
    """Submodules in the form of a lock, by path."""
    return {path: PinnedSubmodule(submodule.shown_url, submodule.commit) for path, submodule in modules.items()}


def check_lock(box: Box, lock: Lock) -> list[str]:
    """What differs between the repositories of spec and lock, one text each; empty if nothing does. Uses no network.

    The content of a folder is not compared, and neither is the rest of the spec.
    """
    return list(disagreements(box, lock).values())


def disagreements(box: Box, lock: Lock) -> dict[str, str]:
    """The texts of `check_lock`, by the name of the repository."""
    texts = {}
    in_spec = {r.name: r for r in box.repositories}
    for name in sorted(set(in_spec) - set(lock.repositories)):
        texts[name] = f"repository {name} is in the spec but not in the lock"
    for name in sorted(set(lock.repositories) - set(in_spec)):
        texts[name] = f"repository {name} is in the lock but no longer in the spec"
    for name in sorted(set(in_spec) & set(lock.repositories)):
        old, url = lock.repositories[name], locked_url(box, in_spec[name])
        if old.url != url:
            texts[name] = f"repository {name}: the spec takes it from {url}, the lock from {old.url}"
        elif old.ref != in_spec[name].ref:
            texts[name] = f"repository {name}: the spec asks for {in_spec[name].ref}, the lock was made for {old.ref}"
        elif COMMIT.fullmatch(old.ref) and old.commit != old.ref:
            texts[name] = f"repository {name}: the spec asks for the commit {old.ref}, the lock holds {old.commit}"
    return texts


def in_order(names: Iterable[str]) -> list[str]:
    """Names of repositories, sorted as in a lock: `setup` first."""
    return sorted(names, key=lambda name: (name != SETUP, name))


def write_lock(path: Path, lock: Lock) -> bool:
    """Writes the lock atomically, if its text differs from that of the file. Returns whether it was written."""
    if not differs(path, lock):
        return False
    write_atomic(path, lock.text)
    return True


def differs(path: Path, lock: Lock) -> bool:
    """Whether the file is missing, or its text differs from that of the lock."""
    return not path.is_file() or read_bounded(path, limit_bytes=MAX_LOCK_BYTES) != lock.text.encode()


def format_lock(lock: Lock) -> str:
    """The lock as YAML: in a constant order, one value per line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.scalarstring import LiteralScalarString

    body = CommentedMap()
    body["lock"] = FORMAT
    body["spec"] = lock.spec_digest
    body["image"] = lock.image
    if lock.packages:
        body["packages"] = CommentedMap(lock.packages.as_tree())
        if keys := lock.packages.keys:
            body["packages"]["keys"] = {name: LiteralScalarString(text) for name, text in sorted(keys.items())}
    if lock.varying:
        body["varying"] = CommentedMap(sorted(lock.varying.items()))
    repositories = CommentedMap()
    for name in in_order(lock.repositories):
        fields = attrs.asdict(lock.repositories[name], filter=lambda field, _: field.name not in ("submodules", "tags"))
        inner = sorted(lock.repositories[name].submodules.items())
        if inner:
            fields["submodules"] = CommentedMap({path: CommentedMap(attrs.asdict(module)) for path, module in inner})
        if near := sorted(lock.repositories[name].tags.items()):
            fields["tags"] = CommentedMap({tag_name: str(tag) for tag_name, tag in near})
        repositories[name] = CommentedMap(fields)
    body["repositories"] = repositories
    for key, comment in _COMMENTS.items():
        if key in body:
            body.yaml_add_eol_comment(comment, key)
    yaml = YAML()
    yaml.width = 1 << 16  # no folding: a long URL stays on one line, so that a diff shows one changed line
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    out = io.StringIO()
    yaml.dump(body, out)
    return _HEADER + out.getvalue()


def read_lock(path: Path) -> Lock:
    """Reads a lock file. Raises SpecError with every fault and its line, if it was edited or damaged."""
    from kimbox.spec.parse import read_text

    return parse_lock(read_text(path), path)[0]


def parse_lock(text: str, path: Path) -> tuple[Lock, Node]:
    """Parses the text of the lock file `path`. Returns the lock, and a tree with the line and column of each value."""
    from kimbox.spec.nodes import Problems
    from kimbox.spec.parse import parse

    problems = Problems()
    hint = "restore it from git; or delete it, and `kimbox lock` makes a new one"
    try:
        tree = parse(text, str(path), problems)
    except SpecError as error:  # the hints of `parse` are for specs
        raise SpecError(
            [replace(problem, hint=None) for problem in error.problems], code=error.code, hint=hint
        ) from None
    if tree.get("kimbox") and not tree.get("lock"):
        hint = f"name its lock, as a path to {paths.LOCK_NAME}, or the box"
        raise SpecError.at(path, "this is a spec, and not a lock", code="bad-lock", hint=hint)
    if tree.get("lock") and tree.mapping["lock"].value != FORMAT:
        raise SpecError.at(
            path,
            f"this lock has format {tree.mapping['lock'].value}, and this kimbox reads format {FORMAT}",
            code="unsupported-format",
            line=tree.mapping["lock"].mark.line,
            column=tree.mapping["lock"].mark.column,
            hint="use the version of kimbox that wrote it, or delete it and run `kimbox lock`",
        )
    faults = problems.collected or _schema_problems(path, tree) or _tag_problems(path, tree)
    if faults:
        raise SpecError(faults, code="bad-lock", hint=hint, fields={"path": str(path)})
    data = tree.plain()
    pinned = {}
    for name, values in data["repositories"].items():
        inner = {path: PinnedSubmodule(**module) for path, module in values.pop("submodules", {}).items()}
        near = {tag_name: Tag.parse(text) for tag_name, text in values.pop("tags", {}).items()}
        pinned[name] = PinnedRepository(**values, submodules=inner, tags=near)
    packages = LockedPackages.from_tree(data["packages"]) if "packages" in data else None
    return Lock(data["spec"], data["image"], pinned, packages, data.get("varying", {})), tree


def _schema_problems(path: Path, tree: Node) -> list[Problem]:
    from kimbox.spec.schema import strict_validator

    schema = json.loads(read_bounded(paths.schemas_dir() / "lock.schema.json"))
    faults = []
    for error in strict_validator(schema).iter_errors(tree.plain()):
        node = tree.get(*error.absolute_path) or tree
        key = ".".join(map(str, error.absolute_path)) or "the lock"
        text = f"{key}: {error.message[:200]}"
        faults.append(Problem(str(path), node.mark.line, node.mark.column, text, code="bad-lock"))
    return faults


def _tag_problems(path: Path, tree: Node) -> list[Problem]:
    """Names of tags that are not valid: git gets them, and a file of the manifest."""
    from kimbox.spec.nodes import Fault

    faults = []
    for pinned in tree.mapping["repositories"].mapping.values():
        for name, node in pinned.mapping["tags"].keys.items() if "tags" in pinned.mapping else ():
            try:
                tags.check_name(name)
            except Fault as fault:
                faults.append(Problem(str(path), node.line, node.column, fault.message, code="bad-lock"))
    return faults
