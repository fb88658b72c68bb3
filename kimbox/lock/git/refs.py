"""Which URLs and refs git is given, as the spec has it, and what a ref means among those a repository offers. Pure."""

from __future__ import annotations

import difflib
import re

import attrs

from kimbox.lock.git.command import GitError, GoneError, redact
from kimbox.spec import rules, urls
from kimbox.spec.nodes import Fault, shown

#: A commit in full.
COMMIT = re.compile(r"[0-9a-f]{40}")

_ABBREVIATED = re.compile(r"[0-9a-f]{7,39}")
_NAMESPACE = re.compile(r"^refs/(heads|tags)/")


@attrs.frozen
class Offered:
    """What `git ls-remote` told: refs with the commits they lead to (annotated tags peeled), and HEAD."""

    refs: dict[str, str]
    head: str | None

    @classmethod
    def parse(cls, text: str) -> Offered:
        """From the output of `git ls-remote`."""
        refs: dict[str, str] = {}
        head = None
        for line in text.split("\n"):  # a ref's name may hold other separators of lines, such as U+2028
            value, _, name = line.partition("\t")
            if not COMMIT.fullmatch(value):
                continue
            if name == "HEAD":
                head = value
            elif name.endswith("^{}"):
                refs[name[:-3]] = value
            else:
                refs.setdefault(name, value)
        return cls(refs, head)

    @property
    def short_names(self) -> list[str]:
        """Branches and tags as people write them."""
        return sorted({_NAMESPACE.sub("", name) for name in self.refs})


def check_url(name: str, url: str) -> None:
    """Raises GitError unless `url` is one that a spec may name, or an absolute path, as a folder is by now."""
    try:
        urls.repository(url)
        if urls.is_folder(url) and not url.startswith("/"):
            raise Fault(f"{shown(url)} is neither a URL nor host:path", "a folder beside the spec starts with ./")
    except Fault as fault:
        raise _refused(f"repository {name}", fault) from None


def check_ref(name: str, url: str, ref: str) -> None:
    """Raises GitError unless a spec may ask for `ref`: it could be the name of a branch, tag or commit."""
    try:
        rules.ref(ref)
    except Fault as fault:
        raise _refused(f"repository {name} ({redact(url)})", fault) from None


def _refused(where: str, fault: Fault) -> GitError:
    return GitError(f"{where}: {redact(fault.message)}", hint=fault.hint and redact(fault.hint))


def full_name(name: str, url: str, ref: str, offered: Offered) -> tuple[str, str]:
    """The full ref that `ref` means, and the object it leads to. Raises GitError if it is not there."""
    where = f"repository {name} ({redact(url)})"
    if ref == "HEAD":
        if offered.head is None:
            raise GitError(f"{where} has no default branch: it is empty", hint="push a commit, or name a branch")
        return "HEAD", offered.head
    if ref.startswith("refs/") and ref in offered.refs:
        return ref, offered.refs[ref]
    found = [full for full in (f"refs/heads/{ref}", f"refs/tags/{ref}") if full in offered.refs]
    if len({offered.refs[full] for full in found}) > 1:
        raise GitError(
            f"{where}: {ref} is a branch and also a tag, and they differ", hint=f"write {' or '.join(found)}"
        )
    if found:
        return found[0], offered.refs[found[0]]
    raise GoneError(f"{where} has no branch, tag or commit {ref}", hint=_advice(ref, offered))


def _advice(ref: str, offered: Offered) -> str:
    if _ABBREVIATED.fullmatch(ref):
        return "a commit is written with all of its 40 digits"
    names = offered.short_names
    if close := difflib.get_close_matches(ref, names, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(close)}?"
    return f"it has: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else "it is empty"
