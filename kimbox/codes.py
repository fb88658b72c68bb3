"""Every error code, and what it means. `--json` shows the code of an error; docs/errors.md is made from this catalog.

A code names a failure that a caller can react to, not a sentence: several messages may share one. A code never changes
its meaning. Add a new code here, in alphabetical order. tests/unit/test_error_codes.py checks that the code
in kimbox/ uses every code of the catalog, and no other.
"""

from __future__ import annotations

#: Code -> what it means, as one sentence that starts with a capital letter.
CODES: dict[str, str] = {
    "archive-damaged": "A tar, gzip or xz archive is cut off or damaged, or is not such an archive.",
    "archive-not-configured": "No apt repository of this machine has the distribution and suite.",
    "archive-unreachable": "An apt archive cannot be reached, or its signature is not valid.",
<<<<<<< HEAD
=======
    "bad-box": "An archive is not a Vagrant box: its metadata or its disk is missing, or a file of it is not valid.",
>>>>>>> 53b3d56 (formats: error codes and plain words)
    "bad-catalog": "A file is not a catalog of Vagrant boxes.",
    "bad-digest": "A digest is not `sha256:` and 64 lower-case hex digits.",
    "bad-duration": "A duration is not a whole number with the unit s, m, h or d.",
    "bad-encoding": "A file is not text in UTF-8.",
    "bad-lock": "A lock file was edited or damaged: a key or value is not valid.",
    "bad-name": "A name has characters that are not allowed, is too long, or is reserved.",
    "bad-path": "A path is not valid, or no file or folder of the box may be there.",
    "bad-provisioner": "A file of a provisioner, which is part of kimbox, is missing or not valid: reinstall kimbox.",
    "bad-public-key": "A public key is not valid, or not of a supported kind.",
    "bad-ref": "A text is not a branch, a tag or a commit.",
    "bad-size": "A size is not a number with the unit KiB, MiB, GiB or TiB.",
    "bad-spec": "A spec, layer or lock is invalid; `problems` lists every fault with its own code.",
    "bad-submodule": "A submodule has a path, URL or nesting that kimbox does not follow.",
    "bad-url": "A URL is not valid, or its kind is not supported there.",
    "bad-value": "A value is not one of those that are allowed.",
    "bad-yaml": "A file is not valid YAML.",
    "boot-loader-size": "GRUB's boot image or core image does not have the size that kimbox can install.",
    "box-not-found": "No box has that name.",
    "bug": "A bug in kimbox: the hint names a file with the traceback, to be reported.",
    "busy": "Another process of kimbox holds the lock of a mirror, an archive, a machine or a package.",
    "cache-incomplete": "The package cache lost a file; the same command fetches it again.",
    "checksum-mismatch": "A file has another digest than expected.",
    "command-failed": "A program on the host failed; the message has the end of its output.",
    "commit-not-found": "A repository no longer has a commit that the lock or the spec names.",
    "conflicting-settings": "Two settings of a spec contradict each other, or one has no effect because of the other.",
    "connection-lost": "The ssh connection to a guest was lost during a command.",
    "delivery-rejected": "The guest rejected the manifest or a repository that kimbox sent.",
    "disk-damaged": "A partition table, LVM, file system or snapshot of a disk is damaged; the field `fault` says how.",
    "disk-layout": "A disk does not have the layout of kimbox's images; the field `fault` says how.",
    "disk-too-small": "The volumes of a box need more than the size of its disk.",
<<<<<<< HEAD
    "download-failed": "A file could not be downloaded: an error of the server, or a lost connection.",
=======
    "disk-unreadable": "A disk cannot be opened, read, written or converted.",
>>>>>>> 53b3d56 (formats: error codes and plain words)
    "duplicate": "A key, name or port is in a spec twice.",
    "empty-value": "A text or list is empty that must have content.",
    "failed": "Something failed that has no code of its own.",
    "file-changed": "A file was changed by another program while it was copied.",
    "file-damaged": "A file that kimbox wrote was edited by hand or damaged.",
    "file-exists": "A file would be overwritten.",
    "file-not-found": "A file or folder does not exist.",
    "file-too-large": "A file is larger than what kimbox reads of such a file.",
    "file-unreadable": "A file cannot be read: it is a folder or a device, or its permissions forbid it.",
    "folder-content": "A folder that is pinned holds nothing, or a file that cannot be committed.",
    "folder-not-private": "A folder that only the user may enter is a symbolic link or belongs to another user.",
    "forbidden-character": "A text contains a control character, or another character that is not allowed there.",
    "git-failed": "A git command failed; the message has the end of its output.",
    "guest-failed": "The guest did not boot, provision or answer as expected.",
    "guest-unreachable": "The ssh server of a guest does not answer.",
    "guest-write-failed": "A file cannot be written in a guest.",
    "host-key-mismatch": "The machine that answers has another ssh host key than the box: it may be another machine.",
    "host-key-missing": "The box has not reported its ssh host key yet.",
    "image-damaged": "An image in the store is damaged; the hint names the folder to remove.",
    "image-failed": "An image could not be built, downloaded or read.",
    "image-not-found": "An image is not in the store.",
    "interrupted": "Interrupted by the user, with Ctrl-C.",
    "layer-cycle": "A layer of a spec includes itself.",
    "lock-disagrees": "The lock does not fit the spec; `kimbox lock` writes a new one.",
    "login-refused": "A guest does not accept the ssh key of the box.",
    "mirror-damaged": "A git mirror lacks objects; the hint names the folder to remove.",
    "missing-key": "A key that must be given is missing.",
    "missing-subordinate-ids": "The user has too few subordinate ids (subuid(5)) to build images.",
    "missing-tool": "A program is missing on the host; the hint has the command that installs it.",
    "no-space": "There is not enough free space on a disk.",
    "not-a-disk": "A file is not a disk image, or of a format that kimbox does not read.",
    "not-a-mapping": "A file is empty, a list or a single value, and should be a mapping of keys to values.",
    "not-a-regular-file": "A FIFO, socket or device is in the place of a file.",
    "offline": "A server must be contacted, and `--offline` does not allow it.",
    "out-of-range": "A number, size or duration is too small or too large.",
    "outside-spec-folder": "A path leaves the folder of the spec, by `..` or by a symbolic link.",
    "package-not-found": "A package is in no archive, or conflicts with another one.",
    "paths-overlap": "Two checkouts, or a checkout and the scratch space, are at the same path or inside one another.",
    "private-key-in-spec": "A private key is in the place of a public key.",
    "ref-ambiguous": "A ref is a branch and also a tag, and they differ.",
    "ref-not-found": "A repository has no branch, tag or commit of that name.",
    "repository-not-found": "A box has no repository of that name.",
    "repository-too-large": "A repository or folder exceeds a limit on its size or its number of files.",
    "repository-unreachable": "The server of a repository cannot be reached, or does not give access.",
    "secret-found": "An image, package or commit holds a key, a shared secret, an identity or a database.",
    "secret-in-url": "A URL contains a user name or password.",
<<<<<<< HEAD
    "server-unreachable": "A server cannot be reached, or its certificate is not valid.",
    "signature-missing": "A commit, or the tag that names it, has no signature, and the spec requires one.",
    "signature-wrong": "The signature of a commit or tag is not valid, or not made by a key of the spec.",
=======
    "signature-missing": "A commit, a tag that names it, or a box has no signature, and one is required.",
    "signature-wrong": "The signature of a commit, tag or box is not valid, or not made by an accepted key.",
    "signing-failed": "The checksums of a package cannot be signed with the ssh key.",
>>>>>>> 53b3d56 (formats: error codes and plain words)
    "spec-not-found": "There is no spec at that path, or no kimbox.yaml in the folder.",
    "step-not-found": "A box has no provision step of that name.",
    "timeout": "A program or a command in the guest took too long.",
    "too-complex": "A file exceeds a limit: length of a line, number of nodes, levels of nesting, layers, digits.",
    "unexpected-output": "The output of a program has a form that kimbox does not know.",
    "unknown-key": "A key does not exist in the schema; the hint has the nearest one.",
    "unknown-repository": "A step uses a repository that the spec does not have.",
<<<<<<< HEAD
    "unsafe-disk": "A qcow2 disk is damaged, encrypted or too large, or it refers to another file.",
=======
    "unsafe-archive": "An archive has a member that kimbox does not unpack: a link, a device, a bad or duplicate name.",
    "unsupported-box": "A Vagrant box does not have exactly one disk in a supported format.",
>>>>>>> 53b3d56 (formats: error codes and plain words)
    "unsupported-format": "A file has a version of its format that this kimbox cannot read.",
    "unsupported-provider": "A box is only for providers that kimbox cannot use.",
    "unsupported-yaml": "A file has a tag, merge key, directive or second document, which kimbox does not support.",
    "usage": "The command line is wrong.",
<<<<<<< HEAD
    "version-not-found": "A catalog has no box of that version.",
=======
    "version-exists": "A catalog already has a package of that version for the provider.",
>>>>>>> 53b3d56 (formats: error codes and plain words)
    "volume-moved": "A volume of a machine has another place or size than in its image.",
    "wrong-state": "A box or a file is in a state that does not allow the command.",
    "wrong-type": "A value has another type than the key requires.",
}
