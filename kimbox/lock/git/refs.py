"""Checks URLs and refs before git gets them, and resolves a ref among those that a server offers. Pure."""

from __future__ import annotations

import difflib
import re

import attrs

from kimbox.lock.git.command import GitError, GoneError, redact
from kimbox.spec import rules, urls
from kimbox.spec.nodes import Fault, shown

#: A full commit id.
COMMIT = re.compile(r"[0-9a-f]{40}")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ABBREVIATED = re.compile(r"[0-9a-f]{7,39}")
_NAMESPACE = re.compile(r"^refs/(heads|tags)/")


@attrs.frozen
class Offered:
    """The refs of a server, from `git ls-remote`: name -> commit (of an annotated tag: the tagged commit), and HEAD."""

    refs: dict[str, str]
    head: str | None
    #: Annotated tags: name -> the tag object.
    tag_objects: dict[str, str] = attrs.field(factory=dict)
    #: Whether the commits have SHA-256 ids.
    is_sha256: bool = False

    @classmethod
    def parse(cls, text: str) -> Offered:
        """Parses the output of `git ls-remote`. Lines of another form are ignored."""
        refs: dict[str, str] = {}
        objects: dict[str, str] = {}
        head, is_sha256 = None, False
        for line in text.split("\n"):  # not splitlines(): a ref's name may contain U+2028
            value, _, name = line.partition("\t")
            if not COMMIT.fullmatch(value):
                is_sha256 = is_sha256 or bool(_SHA256.fullmatch(value))
                continue
            if name == "HEAD":
                head = value
            elif name.endswith("^{}"):
                objects[name[:-3]] = refs.get(name[:-3], value)
                refs[name[:-3]] = value
            else:
                refs.setdefault(name, value)
        return cls(refs, head, objects, is_sha256)

    @property
    def short_names(self) -> list[str]:
        """Names of branches and tags without refs/heads/ and refs/tags/."""
        return sorted({_NAMESPACE.sub("", name) for name in self.refs})


def check_url(name: str, url: str) -> None:
    """Raises GitError (`bad-url`) unless a spec may name `url`, or it is the absolute path of a folder."""
    try:
        urls.repository(url)
        if urls.is_folder(url) and not url.startswith("/"):
            raise Fault(
                f"{shown(url)} is neither a URL nor host:path",
                "a folder beside the spec starts with ./",
                code="bad-url",
            )
    except Fault as fault:
        raise _error_of(fault, f"repository {name}", code="bad-url") from None


def check_ref(name: str, url: str, ref: str) -> None:
    """Raises GitError (`bad-ref`) unless `ref` can be the name of a branch, a tag or a commit."""
    try:
        rules.ref(ref)
    except Fault as fault:
        raise _error_of(fault, f"repository {name} ({redact(url)})", code="bad-ref") from None


def _error_of(fault: Fault, where: str, *, code: str) -> GitError:
    return GitError(f"{where}: {redact(fault.message)}", code=code, hint=fault.hint and redact(fault.hint))


def full_name(name: str, url: str, ref: str, offered: Offered) -> tuple[str, str]:
    """The full name of `ref` (such as refs/tags/v1), and the commit that it points to.

    Raises GitError: `ref-not-found`, or `ref-ambiguous` if a branch and a tag of that name differ.
    """
    where = f"repository {name} ({redact(url)})"
    fields = {"repository": name, "ref": ref}
    if ref == "HEAD":
        if offered.head is None and not offered.refs:
            raise GitError(f"{where} is empty", code="ref-not-found", hint="push a commit", fields=fields)
        if offered.head is None:
            raise GitError(
                f"{where} has no default branch: its HEAD names a branch that does not exist",
                code="no-default-branch",
                hint=f"write `ref:` in the spec; {_list(offered.short_names)}",
                fields=fields,
            )
        return "HEAD", offered.head
    if ref.startswith("refs/") and ref in offered.refs:
        return ref, offered.refs[ref]
    candidates = [full for full in (f"refs/heads/{ref}", f"refs/tags/{ref}") if full in offered.refs]
    if len({offered.refs[full] for full in candidates}) > 1:
        raise GitError(
            f"{where}: {ref} is a branch and also a tag, and they differ",
            code="ref-ambiguous",
            hint=f"write {' or '.join(candidates)}",
            fields=fields,
        )
    if candidates:
        return candidates[0], offered.refs[candidates[0]]
    hint = _hint_for(ref, offered)
    raise GoneError(f"{where} has no branch, tag or commit {ref}", code="ref-not-found", hint=hint, fields=fields)


def _hint_for(ref: str, offered: Offered) -> str:
    """What helps if a server has no such ref: similar names, or the names that it has."""
    if _ABBREVIATED.fullmatch(ref):
        return "write a commit with all of its 40 digits"
    if _SHA256.fullmatch(ref):
        return "a commit of a SHA-1 repository has 40 digits"
    names = offered.short_names
    if similar := difflib.get_close_matches(ref, names, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(similar)}?"
    return _list(names) if names else "it is empty"


def _list(names: list[str]) -> str:
    return f"it has: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
