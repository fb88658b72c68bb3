"""Public keys that a repository's commits or tags must be signed with, as a spec names them."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from kimbox import files, paths
from kimbox.errors import KimboxError
from kimbox.spec.layers import find_beside
from kimbox.spec.nodes import Fault, shown

#: A file of keys is small.
MAX_KEYS_BYTES = 256 << 10

#: How an armored public key of gpg starts and ends.
GPG_HEAD = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
GPG_END = "-----END PGP PUBLIC KEY BLOCK-----"

_SSH_TYPES = (
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
)  # fmt: skip
_SSH_KEY = re.compile(rf"({'|'.join(map(re.escape, _SSH_TYPES))}) +([A-Za-z0-9+/]+={{0,2}})( .*)?")
_SSH_LIKE = re.compile(r"(ssh|ecdsa|sk)-")

_FORMS = "write an ssh public key (ssh-ed25519 AAAA...), or name a file of public keys beside this one"


def keys(text: str, beside: Path, root: Path) -> tuple[str, ...]:
    """The keys that one entry of `verify.keys` stands for: itself, or what the file holds that it names.

    Each is an ssh key without its comment (type and base64), or an armored block of gpg.
    """
    if "\n" in text.strip() or text.startswith(("-----", *_SSH_TYPES)):
        return _parse(text, "this")
    if " " in text or _SSH_LIKE.match(text):
        raise Fault(f"{shown(text)} is no public key that can be verified with", _FORMS)
    found = find_beside(text, beside, (root, paths.boxes_dir()), "file of keys")
    try:
        data = files.read_bounded(found, limit_bytes=MAX_KEYS_BYTES)
        return _parse(data.decode(), shown(text))
    except (OSError, UnicodeDecodeError, KimboxError) as error:
        raise Fault(f"{shown(text)} cannot be read as a file of public keys: {error}", _FORMS) from None


def is_gpg(key: str) -> bool:
    """Whether a key is one of gpg; else it is one of ssh."""
    return key.startswith(GPG_HEAD)


def _parse(text: str, name: str) -> tuple[str, ...]:
    if "PRIVATE KEY" in text:
        raise Fault(f"{name} holds a private key, which belongs to nobody but its owner", "name the public key")
    if GPG_HEAD in text:
        if not (text.strip().startswith(GPG_HEAD) and text.strip().endswith(GPG_END)):
            raise Fault(f"{name} holds more than an armored public key of gpg, or not all of one", _FORMS)
        return (text.strip() + "\n",)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise Fault(f"{name} holds no public key", _FORMS)
    return tuple(_ssh_key(line, name) for line in lines)


def _ssh_key(line: str, name: str) -> str:
    match = _SSH_KEY.fullmatch(line)
    try:
        blob = base64.b64decode(match[2], validate=True) if match else b""
    except binascii.Error:
        blob = b""
    if not match or blob[4 : 4 + int.from_bytes(blob[:4])] != match[1].encode():
        raise Fault(f"{name} is no public key that can be verified with: {shown(line)}", _FORMS)
    return f"{match[1]} {match[2]}"
