"""The checksum file of a package, SHA256SUMS, as sha256sum(1) writes and checks it, and its signature by ssh-keygen(1).

The signature is over the checksum file, which names every other file: so it is over all of them.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kimbox import run
from kimbox.errors import ImageError, KimboxError

NAME = "SHA256SUMS"
SIGNATURE_NAME = f"{NAME}.sig"

#: What a signature is for; one that was made for something else does not count (ssh-keygen(1), -n).
NAMESPACE = "kimbox-box"

#: Whoever signs with a key that is accepted is called so.
PRINCIPAL = "kimbox"

#: ssh-keygen waits for a passphrase, or for a key on hardware to be touched.
SIGN_TIMEOUT_S = 120.0
VERIFY_TIMEOUT_S = 30.0

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\n\\]{1,255})\n")


def text(digests: Mapping[str, str]) -> bytes:
    """The file, from hex digests by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def parse(data: bytes) -> dict[str, str]:
    """Hex digests by name. Raises ImageError if it is not such a file."""
    content, digests, end = data.decode(errors="replace"), {}, 0
    while end < len(content):
        match = _LINE.match(content, end)
        if not match or match[2] in digests:
            raise ImageError(f"{NAME} cannot be read")
        digests[match[2]] = match[1]
        end = match.end()
    return digests


def check(data: bytes, found: Mapping[str, str]) -> None:
    """Holds the files that there are against the checksum file. Raises ImageError, naming one, if they differ."""
    told = parse(data)
    for name in sorted({*told, *found} - {NAME, SIGNATURE_NAME}):
        if name not in found:
            raise ImageError(f"{NAME} names {name!r}, which is not there")
        if told.get(name) != found[name]:
            raise ImageError(f"{name!r} is not what {NAME} says" if name in told else f"{NAME} does not name {name!r}")


def sign(data: bytes, key: Path) -> bytes:
    """The signature by a private key of ssh, or by its agent where `key` is a public one. Raises KimboxError."""
    with tempfile.TemporaryDirectory(prefix="kimbox-sign-") as place:
        file = Path(place) / NAME
        file.write_bytes(data)
        done = run.run(
            ["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", key, file],
            check=False,
            env=_agent(),
            timeout_s=SIGN_TIMEOUT_S,
        )
        if not done.ok:
            hint = "name a private key of ssh without a passphrase, or the public half of one that ssh-agent holds"
            raise KimboxError(f"{key} cannot sign: {run.tail(done.stderr, 3)}", hint=hint)
        return file.with_name(SIGNATURE_NAME).read_bytes()


def _agent() -> dict[str, str]:
    """Where ssh-agent listens, for a key that it holds."""
    return {name: os.environ[name] for name in ("SSH_AUTH_SOCK",) if name in os.environ}


def verify(data: bytes, signature: bytes | None, keys: tuple[str, ...]) -> None:
    """Raises ImageError unless one of these public keys (type and base64) has signed the checksum file."""
    if signature is None:
        raise ImageError("the box bears no signature, and keys are given that must have signed it")
    with tempfile.TemporaryDirectory(prefix="kimbox-verify-") as place:
        folder = Path(place)
        (folder / "signers").write_text("".join(f'{PRINCIPAL} namespaces="{NAMESPACE}" {key}\n' for key in keys))
        (folder / "signature").write_bytes(signature)
        argv: list[str | Path] = ["ssh-keygen", "-Y", "verify", "-f", folder / "signers", "-I", PRINCIPAL]
        done = run.run(
            [*argv, "-n", NAMESPACE, "-s", folder / "signature"],
            input=data.decode(errors="replace"),
            check=False,
            timeout_s=VERIFY_TIMEOUT_S,
        )
    if not done.ok or f'Good "{NAMESPACE}" signature for {PRINCIPAL} with ' not in done.stdout:
        raise ImageError("the signature of the box is not by one of the keys that are given, or for another content")
