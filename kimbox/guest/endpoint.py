"""Where and how a guest is reached by ssh. Light: no ssh library is loaded by knowing this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs


@attrs.frozen
class Endpoint:
    """An ssh endpoint: this key alone logs in; only the host key under `alias` in `known_hosts_path` is believed."""

    host: str
    port: int
    user: str
    key_path: Path
    known_hosts_path: Path
    #: The name under which known_hosts holds the box's host key, whatever port it has today.
    alias: str


def ssh_settings(endpoint: Endpoint) -> dict[str, str]:
    """What ssh_config(5) must say to reach the guest: our key, its pinned host key, nothing of the user's own."""
    return {
        "HostName": endpoint.host,
        "Port": str(endpoint.port),
        "User": endpoint.user,
        "IdentityFile": _quoted(endpoint.key_path),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": _quoted(endpoint.known_hosts_path),
        "GlobalKnownHostsFile": "none",
        "HostKeyAlias": endpoint.alias,
        "StrictHostKeyChecking": "yes",
        "PasswordAuthentication": "no",
        "LogLevel": "ERROR",
        # The cheapest of the strong ones: under emulation the usual choice takes a second longer.
        "KexAlgorithms": "curve25519-sha256",
    }


def _quoted(path: Path) -> str:
    """A path as ssh_config(5) reads it; a percent sign would be a token there."""
    return f'"{str(path).replace("%", "%%")}"'


def ssh_command(
    endpoint: Endpoint,
    *,
    command: str | None = None,
    options: Sequence[str] = (),
    terminal: bool = False,
    settings: Mapping[str, str] | None = None,
) -> list[str]:
    """The ssh(1) command line: a shell, or `command` (shell text), with a terminal where asked for.

    `options` stand after the host, where ssh takes options as well as a command of its own; `settings` are more of
    ssh_config(5).
    """
    values = ssh_settings(endpoint) | dict(settings or {})
    base = ["ssh", "-F", "none", *(f"-o{key}={value}" for key, value in values.items() if key != "HostName")]
    if command is None:
        return [*base, endpoint.host, *options]
    return [*base, *(["-t"] if terminal else ["-T"]), endpoint.host, *options, "--", command]
