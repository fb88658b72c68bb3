"""What git's stderr says about a failed transfer: git's own reason without progress lines, and a hint. Pure."""

from __future__ import annotations

import re

from kimbox.run import tail

#: Maximum number of lines of a reason. A server writes `remote:` lines without a limit of its own.
MAX_REASON_LINES = 30

#: Checks of git-fsck(1) on the lines of authors and dates. Old versions of git and imports from other systems wrote
#: such objects, and a checkout of them does no harm. For any other check there is no hint how to disable it.
_HARMLESS = frozenset({
    "badDate", "badDateOverflow", "badEmail", "badName", "badTimezone", "missingEmail", "missingNameBeforeEmail",
    "missingSpaceBeforeDate", "missingSpaceBeforeEmail", "missingTaggerEntry", "multipleAuthors", "zeroPaddedDate",
    "zeroPaddedFilemode",
})  # fmt: skip

_FSCK = re.compile(r"^(?:error|warning): object [0-9a-f]{40,64}: ([A-Za-z]+): ", re.MULTILINE)
_PROGRESS = re.compile(r"^(?:remote: )?(?:[A-Z][A-Za-z ]+: +[0-9]+|Total [0-9]+ \(delta )")
_SAFE_DIRECTORY = re.compile(r"^\s*(git config --global --add safe\.directory \S.*)$", re.MULTILINE)

#: A server's answer for a commit whose history it does not have completely.
_SHALLOW = ("shallow roots are not allowed to be updated", "source repository is shallow")


def reason_of(stderr: str) -> str:
    """The lines of git's stderr without progress and empty lines; of very many lines, the last ones."""
    lines = [line.rstrip() for line in stderr.splitlines()]
    return tail("\n".join(line for line in lines if line and not _PROGRESS.match(line)), MAX_REASON_LINES)


def is_shallow(stderr: str) -> bool:
    """Whether git refused to fetch from a shallow repository. Its exit status is 0 then."""
    return any(words in stderr for words in _SHALLOW)


def hint_for(reason: str) -> str | None:
    """What helps with the common failures of a transfer."""
    low = reason.lower()
    if "fsck error" in low and (match := _FSCK.search(reason)):
        return _fsck_hint(match[1])
    if "dubious ownership" in low:
        command = _SAFE_DIRECTORY.search(reason)
        words = f"`{command[1]}` accepts it" if command else "git config safe.directory accepts it"
        return f"the repository belongs to another account; {words}, or run kimbox as that account"
    if "mismatched algorithms" in low or "object format" in low:
        return "kimbox supports SHA-1 repositories only: use a repository that was made with --object-format=sha1"
    if "could not read username" in low or "authentication failed" in low or "permission denied" in low:
        return "try `git ls-remote URL`: kimbox uses the same credentials and configuration, but never prompts"
    if "could not resolve host" in low or "could not connect" in low or "timed out" in low:
        return "check the network, the proxy and the server; repositories that are locked already need no network"
    if "host key verification failed" in low:
        return "connect to the server once with ssh, check its host key and accept it"
    if "not found" in low or "does not exist" in low or "does not appear to be a git repository" in low:
        return "check the URL in the spec"
    return None


def _fsck_hint(check: str) -> str:
    if check in _HARMLESS:
        return (
            f"git's check of objects (transfer.fsckObjects) refuses it, and an ordinary clone does not run this check; "
            f"`git config --global fetch.fsck.{check} ignore` accepts such objects"
        )
    return "git's check of objects (transfer.fsckObjects) refuses it; a checkout may do harm: use another repository"
