"""Submodules of a pinned commit: their paths, URLs, commits and mirrors.

A repository's .gitmodules is untrusted input: paths must stay inside the checkout, only URLs that a spec may name are
accepted, and depth and number are limited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from kimbox.lock.git.command import GitError, git, redact
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.git.reasons import reason_of
from kimbox.spec import urls
from kimbox.spec.model import Repository
from kimbox.spec.nodes import Fault, shown

#: Maximum depth of submodules inside submodules.
MAX_DEPTH = 5

#: Maximum number of submodules of a repository, nested ones included.
MAX_SUBMODULES = 100

#: Maximum size of a .gitmodules file, in bytes.
MAX_GITMODULES_BYTES = 256 << 10

#: Maximum length of a submodule's path in the checkout, in characters.
MAX_PATH = 300

_URL = re.compile(r"(?P<host>[A-Za-z][A-Za-z0-9+.-]*://[^/]*/|[^/:]+:/?)(?P<path>.*)")


@attrs.frozen
class Submodule:
    """A submodule, at the commit that its parent repository names."""

    url: str
    commit: str
    mirror: Mirror

    @property
    def shown_url(self) -> str:
        """The URL without credentials, as it is written to a lock."""
        return redact(self.url)


def key(name: str, path: str) -> str:
    """The key of a submodule's mirror in a mapping of mirrors. Names of repositories contain no colon."""
    return f"{name}:{path}"


def collect(mirror: Mirror, commit: str) -> dict[str, Submodule]:
    """Every submodule of a commit, by its path in the checkout. Fetches each commit into the submodule's mirror.

    The mirror must have `commit`. Raises GitError, with the path of the submodule: `bad-submodule` if it must not be
    followed, else the error of its mirror.
    """
    if mirror.is_folder:
        return {}
    submodules: dict[str, Submodule] = {}
    for path, submodule in _nested(mirror, commit, "", 1, mirror.url):
        if len(submodules) == MAX_SUBMODULES:
            raise _error(mirror, f" has more than {MAX_SUBMODULES} submodules")
        submodules[path] = submodule
    return dict(sorted(submodules.items()))


def _error(mirror: Mirror, problem: str) -> GitError:
    return GitError(
        f"{mirror.where}{problem}",
        code="bad-submodule",
        hint=f"pin another commit of {mirror.name}, or correct its submodules there",
        fields={"repository": mirror.name},
    )


def _nested(mirror: Mirror, commit: str, prefix: str, depth: int, top: str) -> Iterator[tuple[str, Submodule]]:
    """The submodules of a commit, and those inside them. Each is yielded after its mirror has its commit.

    `top`: the URL of the repository in the spec.
    """
    links = _links(mirror, commit)
    if links and depth > MAX_DEPTH:
        raise _error(mirror, f": submodules are nested more than {MAX_DEPTH} deep, at {prefix}")
    for path, (url, pinned) in links.items():
        where = f"the submodule {shown(prefix + path)} of the repository {mirror.name}"
        try:
            check_path(path)
            if len(prefix + path) > MAX_PATH:
                raise Fault(f"its path is longer than {MAX_PATH} characters", code="bad-path")
            url = absolute_url(url, mirror.url, top)
        except Fault as fault:
            raise GitError(
                f"{where}: {redact(fault.message)}",
                code="bad-submodule",
                hint=fault.hint and redact(fault.hint),
                fields={"repository": mirror.name, "path": prefix + path},
            ) from None
        inner = Mirror.of(Repository(mirror.name, url, False, pinned, path), offline=mirror.offline)
        if is_other_host(url, top):
            inner = attrs.evolve(inner, named_by=urls.host_of(top) or "")
        try:
            inner.ensure(pinned)
        except GitError as error:
            raise type(error)(
                f"{where}: {error.message}",
                code=error.code,
                hint=f"{error.hint}; " * bool(error.hint)
                + f"the commit {commit[:12]} of {mirror.where} names it; a commit without it may work",
                fields={**error.fields, "repository": mirror.name, "path": prefix + path},
                stderr=error.stderr,
            ) from None
        yield prefix + path, Submodule(url, pinned, inner)
        yield from _nested(inner, pinned, f"{prefix}{path}/", depth + 1, top)


def check_path(path: str) -> None:
    """Raises Fault for a path that git refuses, that leads out of the checkout, or that looks like an option."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise Fault("its path leads out of the checkout", code="bad-path")
    if any(part.startswith("-") for part in parts):
        raise Fault("its path looks like an option", code="bad-path")
    if any(_is_dotgit(part) for part in parts):
        raise Fault("its path leads into a git folder", code="bad-path")
    if not path.isprintable() or "\\" in path or '"' in path or "\ufffd" in path:
        raise Fault("its path contains a control character, a quote or a backslash", code="bad-path")


def is_other_host(url: str, top: str) -> bool:
    """Whether a submodule is on another host than the repository of the spec. One on this machine may name any host."""
    host = urls.host_of(url)
    return bool(host) and not top.startswith("file:") and host != urls.host_of(top)


def absolute_url(url: str, parent: str, top: str | None = None) -> str:
    """The absolute URL of a submodule; `url` may be relative to `parent`. Raises Fault if no spec may name it.

    `top`: the URL of the repository in the spec, if the parent is a submodule itself.
    """
    is_local = parent.startswith("file:")
    if url.startswith(("./", "../")):
        url = _relative(url, parent)
    elif url.startswith("/") and is_local:
        url = f"file://{url}"
    urls.repository(url)
    if urls.is_folder(url):
        raise Fault(
            f"{shown(url)} is not a URL", "its .gitmodules names a folder on its author's machine", code="bad-url"
        )
    if url.startswith("file:") and not is_local:
        raise Fault(
            f"{shown(url)} is a folder of this machine, and the repository around it comes from elsewhere",
            code="bad-url",
        )
    if is_other_host(url, top or parent):
        _check_other_host(url, urls.host_of(url) or "")
    return url


def _check_other_host(url: str, host: str) -> None:
    """Raises Fault for a submodule on another host than the spec names that the user's keys or network would reach.

    Whoever wrote the repository could get a repository into the box that only this user can read.
    """
    hint = "name that repository in the spec, at its own path, and pin a commit without the submodule"
    if urls.uses_ssh(url):
        raise Fault(f"{shown(url)} is on another host, and git would use your ssh keys for it", hint, code="bad-url")
    if urls.is_inside_network(host):
        message = f"{shown(url)} is on this machine or in a private network, and the repository around it is not"
        raise Fault(message, hint, code="bad-url")


def _relative(url: str, parent: str) -> str:
    match = _URL.fullmatch(parent.rstrip("/"))
    if not match:
        raise Fault(
            f"{shown(url)} is relative, and {shown(redact(parent))} is not a URL that it can be relative to",
            code="bad-url",
        )
    parts = match["path"].split("/")
    for part in url.split("/"):
        if part == "..":
            if not parts:
                raise Fault(f"{shown(url)} leads out of {shown(redact(parent))}", code="bad-url")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return match["host"] + "/".join(parts)


def _links(mirror: Mirror, commit: str) -> dict[str, tuple[str, str]]:
    """The submodules of a commit, without nested ones: path -> URL (from .gitmodules) and commit (from the tree)."""
    listed = git(["ls-tree", "-z", "-l", commit, "--", ".gitmodules"], git_dir=mirror.path).stdout
    if not listed:
        return {}
    mode, kind, _, size = listed.split(b"\t")[0].split()
    if mode not in (b"100644", b"100755") or kind != b"blob" or int(size) > MAX_GITMODULES_BYTES:
        raise _error(
            mirror, f": its .gitmodules is not a regular file, or larger than {MAX_GITMODULES_BYTES >> 10} KiB"
        )
    sources = _sources(mirror, commit)
    links: dict[str, tuple[str, str]] = {}
    for entry in git(["ls-tree", "-r", "-z", "--full-tree", commit], git_dir=mirror.path).stdout.split(b"\0"):
        if not entry.startswith(b"160000 "):
            continue
        head, _, name = entry.partition(b"\t")
        path = name.decode(errors="replace")
        if path not in sources:
            raise _error(mirror, f": its .gitmodules has no url for the submodule {shown(path)}")
        links[path] = (sources[path], head.split()[2].decode())
        if len(links) > MAX_SUBMODULES:
            raise _error(mirror, f" has more than {MAX_SUBMODULES} submodules")
    return links


def _sources(mirror: Mirror, commit: str) -> dict[str, str]:
    """path -> URL, from the .gitmodules of a commit. Its other settings are ignored."""
    args = ["config", "--no-includes", f"--blob={commit}:.gitmodules", "--null", "--list"]
    answer = git(args, git_dir=mirror.path, check=False)
    if answer.code != 0:
        raise _error(mirror, f": its .gitmodules cannot be read: {reason_of(answer.stderr)}")
    values: dict[str, dict[str, str]] = {}
    for entry in answer.stdout.decode(errors="replace").split("\0"):
        key, _, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, _, variable = rest.rpartition(".")
        if section == "submodule" and variable in ("path", "url"):
            values.setdefault(name, {})[variable] = value
    return {v["path"].rstrip("/"): v["url"] for v in values.values() if {"path", "url"} <= v.keys()}


def _is_dotgit(part: str) -> bool:
    """Whether any file system could treat a name as .git (case-insensitive, short names, ignored characters)."""
    plain = "".join(c for c in part.lower() if c.isascii()).rstrip(". ").partition(":")[0]
    return plain == ".git" or plain.startswith("git~") or (not part.isascii() and plain.endswith(".git"))
