"""The settings for ssh: the real ssh reads every path as it was meant, or kimbox refuses the path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refused import refused

from kimbox.cli import output
from kimbox.errors import KimboxError
from kimbox.guest.endpoint import Endpoint, ssh_command, ssh_settings
from kimbox.run import run

NAMES = [
    "My Files",
    "per%cent %h",
    'quo"te',
    "apo'st",
    "back\\slash\\",
    'b\\"oth',
    "a,b#c;$d",
    "~tilde",
    "caf\u00e9",
    "a=b",
]


def at(folder: Path) -> Endpoint:
    """An endpoint whose key is in this folder."""
    return Endpoint("127.0.0.1", 20022, "vagrant", folder / "id_ed25519", folder / "known_hosts", "kimbox-x")


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    """From a file as `kimbox ssh-config` prints it, and from the command line."""
    endpoint = at(Path("/", name, name))
    text = "Host x\n" + "".join(f"  {key} {value}\n" for key, value in ssh_settings(endpoint).items())
    (tmp_path / "config").write_text(text)
    for argv in (["ssh", "-F", tmp_path / "config", "x"], ssh_command(endpoint)):
        found = run([argv[0], "-G", *argv[1:]]).stdout.splitlines()
        assert f"userknownhostsfile {endpoint.known_hosts_path}" in found
        assert f"identityfile {str(endpoint.key_path).replace('%', '%%')}" in found  # -G does not expand this one


@pytest.mark.parametrize("name", ["a${HOME}b", "line\nProxyCommand touch /x", "tab\there"])
def test_paths_that_ssh_cannot_have(name: str) -> None:
    """They are refused, except if ssh runs in the folder of the key."""
    endpoint = at(Path("/", name))
    with refused(KimboxError, "bad-path", path=str(endpoint.key_path)):
        ssh_settings(endpoint)
    assert '"id_ed25519"' == ssh_settings(endpoint, cwd=endpoint.key_path.parent)["IdentityFile"]


def test_a_path_that_is_not_valid_text() -> None:
    """On stdout it has the bytes of the file name. JSON has an escape, so that it stays valid."""
    assert b"caf\xe9 \xc2\xa0 \xe2\x82\xac" == "caf\udce9 \u00a0 \u20ac".encode("utf-8", "kimbox.bytes")
    assert b"\xe9 \\u20ac" == "\udce9 \u20ac".encode("latin-1", "kimbox.bytes")
    text = output.json_text({"path": "caf\udce9 \u20ac"})
    assert "caf\udce9 \u20ac" == json.loads(text.encode())["path"]
