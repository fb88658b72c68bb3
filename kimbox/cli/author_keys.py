"""The option --key of verbs that read a package: public keys of its author."""

from __future__ import annotations

from pathlib import Path

from kimbox.errors import UsageError


def public_keys(texts: list[str]) -> tuple[str, ...]:
    """Returns the ssh public keys of the options --key, each of which is a key or a file of keys.

    Raises UsageError if one is invalid, or is a gpg key.
    """
    from kimbox.spec import signing
    from kimbox.spec.nodes import Fault

    try:
        keys = tuple(key for text in texts for key in _keys(text))
        if any(signing.is_gpg(key) for key in keys):
            raise Fault(
                "boxes are signed with ssh keys, not with gpg keys", "pass an ssh public key", code="bad-public-key"
            )
    except Fault as fault:
        raise UsageError(fault.message, code=fault.code, hint=fault.hint) from None
    return keys


def _keys(text: str) -> tuple[str, ...]:
    """Returns the keys of one --key: the key itself, or all keys of a file. Raises Fault if one is invalid."""
    from kimbox.spec import signing

    file = Path(text).absolute()
    if file.is_file():
        return signing.keys(file.name, file.parent, file.parent)
    return signing.keys(text, Path.cwd(), Path.cwd())
