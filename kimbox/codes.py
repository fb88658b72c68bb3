"""Every error code, and what it means. `--json` shows the code of an error; docs/errors.md is made from this catalog.

A code names a failure that a caller can react to, not a sentence: several messages may share one. A code never changes
its meaning. A new one goes here first, in alphabetical order, and tests/unit/test_error_codes.py checks that
every code is used and that nothing else is.
"""

from __future__ import annotations

#: Code -> what it means, as one sentence that starts with a capital letter.
CODES: dict[str, str] = {
    "bad-path": "A path is not valid, or no file or folder of the box may be there.",
    "bad-spec": "A spec, layer or lock does not hold; `problems` lists every fault with its own code.",
    "bug": "A bug in kimbox: the hint names a file with the traceback, to be reported.",
    "failed": "Something failed that has no code of its own.",
    "file-too-large": "A file is larger than what kimbox reads of such a file.",
    "forbidden-character": "A text contains a control character, or another one that is not allowed there.",
    "guest-failed": "The guest did not boot, provision or answer as expected.",
    "host-key-mismatch": "The machine that answers has another ssh host key than the box: it may be another machine.",
    "image-failed": "An image could not be built, downloaded or read.",
    "interrupted": "Ctrl-C, or a signal that asks a program to end.",
    "lock-disagrees": "The lock does not fit the spec; `kimbox lock` writes a new one.",
    "missing-tool": "A program is missing on the host; the hint has the command that installs it.",
    "not-a-regular-file": "A FIFO, socket or device is in the place of a file.",
    "usage": "The command line is wrong.",
    "wrong-state": "What was named is in a state that does not allow the command.",
}
