"""Writes and checks SHA256SUMS, the checksum file of a package (sha256sum(1)), and its signature by ssh-keygen(1).

The checksum file lists every other file, so its signature covers all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from kimbox import run
from kimbox.errors import ImageError, KimboxError
from kimbox.temporary import temporary_folder

NAME = "SHA256SUMS"
SIGNATURE_NAME = f"{NAME}.sig"

#: Purpose of the signature: a signature with another namespace is not accepted (ssh-keygen(1), -n).
NAMESPACE = "kimbox-box"

#: Name of the signer in the file of accepted keys (ssh-keygen(1), ALLOWED SIGNERS).
PRINCIPAL = "kimbox"

#: Timeouts of ssh-keygen, in seconds. When it signs, it may wait for the touch of a hardware key.
SIGN_TIMEOUT_S = 120.0
VERIFY_TIMEOUT_S = 30.0

_MANIFEST_LINE = re.compile(rb"(SHA1|SHA256) ?\(([^()]{1,255})\) ?= ?([0-9a-fA-F]{40,64})")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\n\\]{1,255})\n")


def text(digests: Mapping[str, str]) -> bytes:
    """The content of the file. `digests`: SHA-256 hex digests by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def parse(data: bytes) -> dict[str, str]:
    """SHA-256 hex digests by name. Raises ImageError if the data is not a checksum file."""
    content, digests, end = data.decode(errors="replace"), {}, 0
    while end < len(content):
        match = _LINE.match(content, end)
        if not match or match[2] in digests:
            raise ImageError(
                f"the {NAME} of the box has an invalid line or a name twice", code="bad-box", fields={"name": NAME}
            )
        digests[match[2]] = match[1]
        end = match.end()
    return digests


def check(data: bytes, digests: Mapping[str, str]) -> None:
    """Compares files with the checksum file. `digests`: the SHA-256 hex digests of the files, by name.

    Raises ImageError, with the name of the first such file, if a file is missing, not listed, or different.
    """
    expected = parse(data)
    for name in sorted({*expected, *digests} - {NAME, SIGNATURE_NAME}):
        if name not in digests:
            state, message = "missing", f"{NAME} lists {name!r}, but the box has no such file"
        elif name not in expected:
            state, message = "unlisted", f"the box has a file {name!r} that {NAME} does not list"
        elif expected[name] != digests[name]:
            state, message = "different", f"{name!r} has another SHA-256 digest than in {NAME}"
        else:
            continue
        raise ImageError(message, code="checksum-mismatch", fields={"name": name, "state": state})


def check_manifest(name: str, data: bytes, digests: Mapping[str, Callable[[], Mapping[str, str]]]) -> None:
    """Compares files with the manifest `name` of an OVA (DMTF DSP0243).

    `digests`: name of the digest (SHA1, SHA256) -> function that returns the hex digests of the files, by name. Lines
    with another digest are not compared. Raises ImageError, with the name of the file.
    """
    known: dict[str, Mapping[str, str]] = {}
    for line in data.split(b"\n"):
        match = _MANIFEST_LINE.fullmatch(line.strip())
        if not match or match[1].decode() not in digests:
            continue
        kind, file, expected = match[1].decode(), match[2].decode(errors="replace"), match[3].decode().lower()
        if kind not in known:
            known[kind] = digests[kind]()
        if file not in known[kind]:
            state, message = "missing", f"{name} lists {file!r}, but the archive has no such file"
        elif known[kind][file] != expected:
            state, message = "different", f"{file!r} has another {kind} digest than in {name}"
        else:
            continue
        raise ImageError(message, code="checksum-mismatch", fields={"name": file, "state": state})


def sign(data: bytes, key: Path) -> bytes:
    """Returns the signature of `data`. `key`: an ssh private key, or a public key whose private key ssh-agent has.

    Raises KimboxError if ssh-keygen cannot sign.
    """
    with temporary_folder("kimbox-sign-") as folder:
        file = folder / NAME
        file.write_bytes(data)
        result = run.run(
            ["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", key, file],
            check=False,
            env=_agent(),
            timeout_s=SIGN_TIMEOUT_S,
        )
        if not result.ok:
            raise KimboxError(
                f"ssh-keygen cannot sign with {key}: {run.tail(result.stderr, 3)}",
                code="signing-failed",
                hint="pass an ssh private key without a passphrase, or the public key of a key in ssh-agent",
                fields={"path": str(key)},
            )
        return file.with_name(SIGNATURE_NAME).read_bytes()


def _agent() -> dict[str, str]:
    """The environment variable with the socket of ssh-agent."""
    return {name: os.environ[name] for name in ("SSH_AUTH_SOCK",) if name in os.environ}


def verify(data: bytes, signature: bytes | None, keys: tuple[str, ...]) -> None:
    """Raises ImageError unless one of the public keys (type and base64) has signed the checksum file `data`."""
    if signature is None:
        raise ImageError(
            f"the box is not signed: it has no {SIGNATURE_NAME}",
            code="signature-missing",
            fields={"name": SIGNATURE_NAME},
        )
    with temporary_folder("kimbox-verify-") as folder:
        (folder / "signers").write_text("".join(f'{PRINCIPAL} namespaces="{NAMESPACE}" {key}\n' for key in keys))
        (folder / "signature").write_bytes(signature)
        argv: list[str | Path] = ["ssh-keygen", "-Y", "verify", "-f", folder / "signers", "-I", PRINCIPAL]
        result = run.run(
            [*argv, "-n", NAMESPACE, "-s", folder / "signature"],
            input=data.decode(errors="replace"),
            check=False,
            timeout_s=VERIFY_TIMEOUT_S,
        )
    if not result.ok or f'Good "{NAMESPACE}" signature for {PRINCIPAL} with ' not in result.stdout:
        raise ImageError(
            f"the signature of the box is not valid: none of the given keys has signed this {NAME}",
            code="signature-wrong",
        )
