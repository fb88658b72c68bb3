"""The public keys in a spec: those that sign commits and tags, and those of ssh servers and operators."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from kimbox import files, paths
from kimbox.errors import KimboxError
from kimbox.spec.layers import find_beside
from kimbox.spec.nodes import Fault, shown

#: Maximum size of a file of public keys.
MAX_KEYS_BYTES = 256 << 10

#: The first and the last line of an armored public key of gpg.
GPG_HEAD = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
GPG_END = "-----END PGP PUBLIC KEY BLOCK-----"

_SSH_TYPES = (
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
)  # fmt: skip
_SSH_KEY = re.compile(rf"({'|'.join(map(re.escape, _SSH_TYPES))}) +([A-Za-z0-9+/]+={{0,2}})( .*)?")
_SSH_LIKE = re.compile(r"(ssh|ecdsa|sk)-")

_FORMS = "write an ssh public key (ssh-ed25519 AAAA...), or name a file of public keys beside this file"


def keys(text: str, beside: Path, root: Path) -> tuple[str, ...]:
    """Returns the public keys of one entry of a list of keys: the key itself, or every key in the file that it names.

    A file is looked up in the folder `beside`, and must not be outside of `root` or the shipped boxes. Each result is
    an ssh key without its comment (type and base64), or an armored block of gpg. Raises Fault for everything else.
    """
    if "\n" in text.strip() or text.startswith(("-----", *_SSH_TYPES)):
        return _parse(text, "this")
    if " " in text or _SSH_LIKE.match(text):
        raise Fault(f"{shown(text)} is not a supported public key", _FORMS, code="bad-public-key")
    path = find_beside(text, beside, (root, paths.boxes_dir()), "file of keys")
    try:
        data = files.read_bounded(path, limit_bytes=MAX_KEYS_BYTES)
        return _parse(data.decode(), shown(text))
    except (OSError, UnicodeDecodeError, KimboxError) as error:
        message = f"{shown(text)} cannot be read as a file of public keys: {error}"
        raise Fault(message, _FORMS, code="bad-public-key") from None


def is_gpg(key: str) -> bool:
    """Whether a key is one of gpg, and not of ssh."""
    return key.startswith(GPG_HEAD)


def _parse(text: str, name: str) -> tuple[str, ...]:
    """Returns the keys in a text; `name` is the start of a message about it."""
    if "PRIVATE KEY" in text:
        message = f"{name} contains a private key, which must stay with its owner"
        raise Fault(message, "name the public key", code="private-key-in-spec")
    if GPG_HEAD in text:
        if not (text.strip().startswith(GPG_HEAD) and text.strip().endswith(GPG_END)):
            message = f"{name} is not exactly one armored public key of gpg"
            raise Fault(message, _FORMS, code="bad-public-key")
        return (text.strip() + "\n",)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise Fault(f"{name} contains no public key", _FORMS, code="bad-public-key")
    return tuple(_ssh_key(line, name) for line in lines)


def _ssh_key(line: str, name: str) -> str:
    match = _SSH_KEY.fullmatch(line)
    try:
        blob = base64.b64decode(match[2], validate=True) if match else b""
    except binascii.Error:
        blob = b""
    if not match or blob[4 : 4 + int.from_bytes(blob[:4])] != match[1].encode():  # the blob names its own type
        raise Fault(f"{name} is not a supported public key: {shown(line)}", _FORMS, code="bad-public-key")
    return f"{match[1]} {match[2]}"
