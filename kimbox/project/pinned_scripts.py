"""Finds faults of the script `setup` in the pinned commit of the setup repository. No script is run."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping

import attrs

from kimbox.errors import Problem, SpecError
from kimbox.lock.git.command import git
from kimbox.lock.git.mirror import Mirror
from kimbox.project.scripts import (
    CHECK_LIMIT_S,
    MAX_SCRIPT_BYTES,
    report_missing,
    script_text,
    spec_problems,
    text_faults,
)
from kimbox.project.shell import Deadline
from kimbox.spec.load import place
from kimbox.spec.model import SETUP, Box
from kimbox.spec.nodes import Problems

#: Maximum number of symbolic links that are followed to `setup`.
MAX_LINKS = 8


@attrs.frozen
class Entry:
    """The file `setup` of a folder or a commit. `text` is None if it is not a text that is checked."""

    is_executable: bool
    text: str | None


def check_scripts(box: Box, mirrors: Mapping[str, Mirror], commits: Mapping[str, str]) -> None:
    """Raises SpecError with every fault of the scripts of a box, and of `setup` in the pinned commit of its repository.

    `mirrors` and `commits` are by name of the repository.
    """
    problems = spec_problems(box.source, box.member)
    if SETUP in commits and not problems:
        problems += commit_problems(box, mirrors[SETUP], commits[SETUP])
    if problems:
        raise SpecError(problems, code="bad-script")


def commit_problems(box: Box, mirror: Mirror, commit: str) -> list[Problem]:
    """Faults of `setup` in a commit of the setup repository, at the place of the repository's URL in the spec."""
    problems, mark = Problems(), place(box.source, "repositories", SETUP, "url", member=box.member)
    names = _names_of_commit(mirror, commit)
    found = _entry_of_commit(mirror, commit)
    where = f"commit {commit[:12]} of the repository {SETUP}"
    if found is None:
        report_missing(names, mark, where, "git mv {old} {new}", problems)
        return problems.collected
    if not found.is_executable:
        hint = "`git update-index --chmod=+x setup` in the repository; then commit it"
        problems.add(mark, f"`setup` in {where} is not executable", hint, code="bad-script")
    for fault in text_faults(found.text, Deadline(CHECK_LIMIT_S)):
        problems.add(mark, f"`setup` in {where} (line {fault.line}) {fault.text}", fault.hint, code="bad-script")
    return problems.collected


def _names_of_commit(mirror: Mirror, commit: str) -> list[str]:
    """The files at the top of a commit, those that are executable first."""
    listed = git(["ls-tree", "-z", commit], git_dir=mirror.path).stdout.split(b"\0")
    entries = [(head.startswith(b"100755"), name.decode(errors="replace")) for head, _, name in _fields(listed)]
    return [name for _, name in sorted(entries, key=lambda entry: (not entry[0], entry[1]))]


def _fields(listed: list[bytes]) -> list[tuple[bytes, bytes, bytes]]:
    return [entry.partition(b"\t") for entry in listed if b" blob " in entry]


def _entry_of_commit(mirror: Mirror, commit: str) -> Entry | None:
    """The file `setup` of a commit; None if it is missing. Symbolic links inside of the commit are followed."""
    path = SETUP
    for _ in range(MAX_LINKS):
        listed = git(["ls-tree", "-z", commit, "--", path], git_dir=mirror.path).stdout.split(b"\0")
        if not (fields := _fields(listed)):
            return None
        mode, _, rest = fields[0][0].partition(b" ")
        blob = rest.split()[1].decode()
        if mode != b"120000":
            size = git(["cat-file", "-s", blob], git_dir=mirror.path).text
            if int(size) > MAX_SCRIPT_BYTES:
                return Entry(mode == b"100755", None)
            data = git(["cat-file", "blob", blob], git_dir=mirror.path).stdout
            return Entry(mode == b"100755", script_text(data))
        target = os.fsdecode(git(["cat-file", "blob", blob], git_dir=mirror.path).stdout)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if target.startswith("/") or path.startswith(".."):
            return Entry(True, None)  # a file of the guest
    return None
