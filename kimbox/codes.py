"""Every error code, and what it means. `--json` shows the code of an error; docs/errors.md is made from this catalog.

A code names a failure that a caller can react to, not a sentence: several messages may share one. A code never changes
its meaning. Add a new code here, in alphabetical order. tests/unit/test_error_codes.py checks that the code
in kimbox/ uses every code of the catalog, and no other.
"""

from __future__ import annotations

#: Code -> what it means, as one sentence that starts with a capital letter.
CODES: dict[str, str] = {
    "bad-digest": "A digest is not `sha256:` and 64 lower-case hex digits.",
    "bad-duration": "A duration is not a whole number with the unit s, m, h or d.",
    "bad-encoding": "A file is not text in UTF-8.",
    "bad-name": "A name has characters that are not allowed, is too long, or is reserved.",
    "bad-path": "A path is not valid, or no file or folder of the box may be there.",
    "bad-public-key": "A public key is not valid, or not of a supported kind.",
    "bad-ref": "A text is not a branch, a tag or a commit.",
    "bad-size": "A size is not a number with the unit KiB, MiB, GiB or TiB.",
    "bad-spec": "A spec, layer or lock is invalid; `problems` lists every fault with its own code.",
    "bad-url": "A URL is not valid, or its kind is not supported there.",
    "bad-value": "A value is not one of those that are allowed.",
    "bad-yaml": "A file is not valid YAML.",
    "box-not-found": "No box has that name.",
    "bug": "A bug in kimbox: the hint names a file with the traceback, to be reported.",
    "conflicting-settings": "Two settings of a spec contradict each other, or one has no effect because of the other.",
    "disk-too-small": "The volumes of a box need more than the size of its disk.",
    "duplicate": "A key, name or port is in a spec twice.",
    "empty-value": "A text or list is empty that must have content.",
    "failed": "Something failed that has no code of its own.",
    "file-exists": "A file would be overwritten.",
    "file-not-found": "A file or folder does not exist.",
    "file-too-large": "A file is larger than what kimbox reads of such a file.",
    "file-unreadable": "A file cannot be read: it is a folder or a device, or its permissions forbid it.",
    "forbidden-character": "A text contains a control character, or another character that is not allowed there.",
    "guest-failed": "The guest did not boot, provision or answer as expected.",
    "host-key-mismatch": "The machine that answers has another ssh host key than the box: it may be another machine.",
    "image-failed": "An image could not be built, downloaded or read.",
    "interrupted": "Interrupted by the user, with Ctrl-C.",
    "layer-cycle": "A layer of a spec includes itself.",
    "lock-disagrees": "The lock does not fit the spec; `kimbox lock` writes a new one.",
    "missing-key": "A key that must be given is missing.",
    "missing-tool": "A program is missing on the host; the hint has the command that installs it.",
    "not-a-mapping": "A file is empty, a list or a single value, and should be a mapping of keys to values.",
    "not-a-regular-file": "A FIFO, socket or device is in the place of a file.",
    "out-of-range": "A number, size or duration is too small or too large.",
    "outside-spec-folder": "A path leaves the folder of the spec, by `..` or by a symbolic link.",
    "paths-overlap": "Two checkouts, or a checkout and the scratch space, are at the same path or inside one another.",
    "private-key-in-spec": "A private key is in the place of a public key.",
    "secret-in-url": "A URL contains a user name or password.",
    "spec-not-found": "There is no spec at that path, or no kimbox.yaml in the folder.",
    "too-complex": "A file exceeds a limit: length of a line, number of nodes, levels of nesting, layers, digits.",
    "unknown-key": "A key does not exist in the schema; the hint has the nearest one.",
    "unknown-repository": "A step uses a repository that the spec does not have.",
    "unsupported-format": "A file has a version of its format that this kimbox cannot read.",
    "unsupported-yaml": "A file has a tag, merge key, directive or second document, which kimbox does not support.",
    "usage": "The command line is wrong.",
    "wrong-state": "A box or a file is in a state that does not allow the command.",
    "wrong-type": "A value has another type than the key requires.",
}
