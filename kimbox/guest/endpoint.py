"""The ssh endpoint of a guest. Imports no ssh library, so that importing it is fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from kimbox.errors import KimboxError


@attrs.frozen
class Endpoint:
    """An ssh endpoint. The login uses only this key, and only the host key under `alias` in known_hosts is accepted."""

    host: str
    port: int
    user: str
    key_path: Path
    known_hosts_path: Path
    #: The name of the box's host key in known_hosts. It does not depend on the port, which can change at each start.
    alias: str


def ssh_settings(endpoint: Endpoint, *, cwd: Path | None = None) -> dict[str, str]:
    """Settings of ssh_config(5) for a guest: the box's key, its pinned host key, none of the user's keys and hosts.

    `cwd`: the folder in which ssh runs; None if it is not known. Raises KimboxError (`bad-path`) if ssh cannot have the
    path of the key.
    """
    return {
        "HostName": endpoint.host,
        "Port": str(endpoint.port),
        "User": endpoint.user,
        "IdentityFile": _quoted(endpoint.key_path, cwd),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": _quoted(endpoint.known_hosts_path, cwd),
        "GlobalKnownHostsFile": "none",
        "HostKeyAlias": endpoint.alias,
        "StrictHostKeyChecking": "yes",
        "PasswordAuthentication": "no",
        "LogLevel": "ERROR",
        # Debian's ssh trusts a guest with -X: its programs could read and send keys of all windows of the screen.
        "ForwardX11Trusted": "no",
        # The fastest of the strong ones: in an emulated guest, OpenSSH's default takes a second longer.
        "KexAlgorithms": "curve25519-sha256",
    }


def _quoted(path: Path, cwd: Path | None) -> str:
    """A path, quoted for ssh_config(5), where `%` starts a token. Relative if the file is in `cwd`.

    A quote and a backslash are escaped as OpenSSH 8.7 and later expect it (argv_split in its misc.c). ssh expands `${`
    to a variable of the environment, and has no escape for it. A line break would start another setting.
    """
    text = path.name if path.parent == cwd else str(path)
    if "${" in text or any(character < " " for character in text):
        raise KimboxError(
            f"ssh cannot use the path {text!r}, because it contains `${{` or a control character",
            code="bad-path",
            hint="set KIMBOX_HOME to another folder, or move the files there",
            fields={"path": text},
        )
    for character in ("\\", '"'):
        text = text.replace(character, f"\\{character}")
    return f'"{text.replace("%", "%%")}"'


def ssh_options(endpoint: Endpoint, *, settings: Mapping[str, str] | None = None, cwd: Path | None = None) -> list[str]:
    """The options of ssh(1) and scp(1) for a guest, without its host name. The arguments are those of `ssh_command`."""
    values = ssh_settings(endpoint, cwd=cwd) | dict(settings or {})
    return ["-F", "none", *(f"-o{key}={value}" for key, value in values.items() if key != "HostName")]


def ssh_command(
    endpoint: Endpoint,
    *,
    command: str | None = None,
    options: Sequence[str] = (),
    terminal: bool = False,
    settings: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> list[str]:
    """The ssh(1) command line for a shell, or for `command` (shell text). `terminal`: `command` gets a terminal.

    `options` come after the host name: options of ssh, or a command. `settings` are more settings of ssh_config(5).
    `cwd` as for `ssh_settings`.
    """
    base = ["ssh", *ssh_options(endpoint, settings=settings, cwd=cwd)]
    if command is None:
        return [*base, endpoint.host, *options]
    return [*base, *(["-t"] if terminal else ["-T"]), endpoint.host, *options, "--", command]
