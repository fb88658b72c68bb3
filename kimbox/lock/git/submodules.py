"""Submodules of a pinned commit: which there are, where they come from, and their mirrors.

All that a repository says of its submodules is a stranger's word: paths stay inside the checkout, URLs are those that a
spec could name, and how deep and how many there are is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from kimbox.lock.git.command import GitError, git, redact
from kimbox.lock.git.mirror import Mirror
from kimbox.spec import urls
from kimbox.spec.model import Repository
from kimbox.spec.nodes import Fault, shown

#: Submodules of submodules are followed so deep.
MAX_DEPTH = 5

#: A repository has at most so many, those below others included.
MAX_SUBMODULES = 100

#: A .gitmodules is small.
MAX_GITMODULES_BYTES = 256 << 10

MAX_PATH = 300

_URL = re.compile(r"(?P<host>[A-Za-z][A-Za-z0-9+.-]*://[^/]*/|[^/:]+:/?)(?P<path>.*)")


@attrs.frozen
class Submodule:
    """One submodule, at the commit that the repository around it names."""

    url: str
    commit: str
    mirror: Mirror

    @property
    def shown_url(self) -> str:
        """As a lock has it: without credentials."""
        return redact(self.url)


def key(name: str, path: str) -> str:
    """How the mirror of a submodule is called among those of repositories, whose names hold no colon."""
    return f"{name}:{path}"


def collect(mirror: Mirror, commit: str) -> dict[str, Submodule]:
    """Every submodule of a commit that the mirror holds, by its path; each commit is in its own mirror afterwards.

    Raises GitError, naming repository and submodule, for what is not to be had or must not be followed.
    """
    if mirror.is_folder:
        return {}
    found: dict[str, Submodule] = {}
    for path, submodule in _below(mirror, commit, "", 1):
        if len(found) == MAX_SUBMODULES:
            raise GitError(f"{mirror.where} has more than {MAX_SUBMODULES} submodules")
        found[path] = submodule
    return dict(sorted(found.items()))


def _below(mirror: Mirror, commit: str, prefix: str, depth: int) -> Iterator[tuple[str, Submodule]]:
    """The submodules of a commit and those below them, each after its mirror holds it."""
    links = _links(mirror, commit)
    if links and depth > MAX_DEPTH:
        raise GitError(f"{mirror.where}: submodules are nested more than {MAX_DEPTH} deep, at {prefix}")
    for path, (url, pinned) in links.items():
        where = f"the submodule {shown(prefix + path)} of the repository {mirror.name}"
        try:
            check_path(path)
            if len(prefix + path) > MAX_PATH:
                raise Fault(f"its path is longer than {MAX_PATH} characters")
            url = absolute_url(url, mirror.url)
        except Fault as fault:
            raise GitError(f"{where}: {redact(fault.message)}", hint=fault.hint and redact(fault.hint)) from None
        below = Mirror.of(Repository(mirror.name, url, False, pinned, path), offline=mirror.offline)
        try:
            below.ensure(pinned)
        except GitError as error:
            hint = f"the commit {commit[:12]} of {mirror.where} names it; another commit may not"
            raise type(error)(f"{where}: {error.message}", hint=hint, said=error.said) from None
        yield prefix + path, Submodule(url, pinned, below)
        yield from _below(below, pinned, f"{prefix}{path}/", depth + 1)


def check_path(path: str) -> None:
    """Raises Fault for a path that git would not check out, or that could lead out or be taken for something else."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise Fault("its path leads elsewhere")
    if any(part.startswith("-") for part in parts):
        raise Fault("its path looks like an option")
    if any(_is_dotgit(part) for part in parts):
        raise Fault("its path leads into a git folder")
    if not path.isprintable() or "\\" in path or '"' in path or "\ufffd" in path:
        raise Fault("its path holds characters that no path of ours has")


def absolute_url(url: str, parent: str) -> str:
    """The URL of a submodule: one that a spec could name, or relative to its parent's. Raises Fault for any other."""
    is_local = parent.startswith("file:")
    if url.startswith(("./", "../")):
        url = _relative(url, parent)
    elif url.startswith("/") and is_local:
        url = f"file://{url}"
    urls.repository(url)
    if urls.is_folder(url):
        raise Fault(f"{shown(url)} is no URL", "its .gitmodules names a folder of somebody's machine")
    if url.startswith("file:") and not is_local:
        raise Fault(f"{shown(url)} is a folder of this machine, and the repository around it comes from elsewhere")
    return url


def _relative(url: str, parent: str) -> str:
    match = _URL.fullmatch(parent.rstrip("/"))
    if not match:
        raise Fault(f"{shown(url)} is relative, and {shown(redact(parent))} is no URL that it could start from")
    parts = match["path"].split("/")
    for part in url.split("/"):
        if part == "..":
            if not parts:
                raise Fault(f"{shown(url)} leads out of {shown(redact(parent))}")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return match["host"] + "/".join(parts)


def _links(mirror: Mirror, commit: str) -> dict[str, tuple[str, str]]:
    """What a commit itself says of submodules: path -> url and commit."""
    listed = git(["ls-tree", "-z", "-l", commit, "--", ".gitmodules"], git_dir=mirror.path).stdout
    if not listed:
        return {}
    mode, kind, _, size = listed.split(b"\t")[0].split()
    if mode not in (b"100644", b"100755") or kind != b"blob" or int(size) > MAX_GITMODULES_BYTES:
        raise GitError(f"{mirror.where}: its .gitmodules is no small ordinary file")
    sources = _sources(mirror, commit)
    links: dict[str, tuple[str, str]] = {}
    for entry in git(["ls-tree", "-r", "-z", "--full-tree", commit], git_dir=mirror.path).stdout.split(b"\0"):
        if not entry.startswith(b"160000 "):
            continue
        head, _, name = entry.partition(b"\t")
        path = name.decode(errors="replace")
        if path not in sources:
            raise GitError(f"{mirror.where}: its .gitmodules has no url for the submodule {shown(path)}")
        links[path] = (sources[path], head.split()[2].decode())
        if len(links) > MAX_SUBMODULES:
            raise GitError(f"{mirror.where} has more than {MAX_SUBMODULES} submodules")
    return links


def _sources(mirror: Mirror, commit: str) -> dict[str, str]:
    """path -> url, as the .gitmodules of a commit has it; nothing else in it counts."""
    args = ["config", "--no-includes", f"--blob={commit}:.gitmodules", "--null", "--list"]
    asked = git(args, git_dir=mirror.path, check=False)
    if asked.code != 0:
        raise GitError(f"{mirror.where}: its .gitmodules cannot be read: {asked.stderr.strip()[:200]}")
    values: dict[str, dict[str, str]] = {}
    for entry in asked.stdout.decode(errors="replace").split("\0"):
        key, _, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, _, variable = rest.rpartition(".")
        if section == "submodule" and variable in ("path", "url"):
            values.setdefault(name, {})[variable] = value
    return {v["path"].rstrip("/"): v["url"] for v in values.values() if {"path", "url"} <= v.keys()}


def _is_dotgit(part: str) -> bool:
    """Whether a file system, of whatever kind, may take a name for .git."""
    plain = "".join(c for c in part.lower() if c.isascii()).rstrip(". ").partition(":")[0]
    return plain == ".git" or plain.startswith("git~") or (not part.isascii() and plain.endswith(".git"))
