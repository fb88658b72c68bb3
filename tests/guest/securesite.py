"""The site of the tests of sealed boxes: a director, which is also the gateway, and a box that can be its worker.

Both are boxes of one spec, as in examples/pipeline, and are in a network of their own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs
from conftest import Kimbox, exchange
from promises import step

from kimbox import run
from kimbox.machine.folder import Machine

#: The password of the site's user.
PASSWORD = "correct horse"

SITE_SPEC = """kimbox: 1
networks:
  pipeline:
    subnet: 10.57.0.0/24
    addresses: {vault: 10.57.0.1, hand: 10.57.0.2}
boxes:
  vault: vault.yaml
  hand: {base: [hand.yaml], needs: [vault]}
"""

VAULT_SPEC = """kimbox: 1
name: vault
base: [openkim-director.yaml]
image: {{packages: [unattended-upgrades, systemd-timesyncd]}}
forwards: [{{guest: 8888}}]
secure:
  site: example.org
  keys: [operator.pub]
  dns: true
  updates: true
  time: [10.0.2.2]
  roles:
    director: {{outbound: [{{host: archive.test, port: {port}}}]}}
provision:{promise}
"""

#: Output of the check that ran as the first step, in the boot at whose end the box was sealed.
FIRST_STEP = "/var/tmp/first-step"

HAND_SPEC = """kimbox: 1
name: hand
base: [openkim-worker.yaml]
secure:
  site: example.org
  keys: ["{operator}"]
  roles:
    worker: {{gateway: {{box: vault}}}}
"""


@attrs.frozen
class Site:
    """The two boxes. The director `vault` is sealed. The worker `hand` is sealed by a later test."""

    #: In the folder of the spec.
    kimbox: Kimbox
    #: Port on this host of the archive that the director may use.
    port: int

    def operator(self, script: str, *, as_root: bool = False, input: str | None = None) -> str:
        """Runs a shell script in the director as the operator, or as root. Returns its stdout."""
        command = f"sudo sh -c {shlex.quote(script)}" if as_root else script
        options = ["-i", "operator", "-o", "BatchMode=yes"]
        return self._ssh("ssh", options, "operator@127.0.0.1", command, input=input).stdout

    def sftp(self, folder: Path, command: str, *, password: str = PASSWORD, check: bool = True) -> run.Completed:
        """Runs a command of sftp as a user of the site does. `folder` gets the files that it needs."""
        (folder / "askpass").write_text(f"#!/bin/sh\necho '{password}'\n")
        (folder / "askpass").chmod(0o700)
        (folder / "commands").write_text(f"{command}\n")
        password_env = {"SSH_ASKPASS": str(folder / "askpass"), "SSH_ASKPASS_REQUIRE": "force"}
        options = ["-o", "BatchMode=no", "-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1"]
        options += ["-b", str(folder / "commands")]
        return self._ssh("sftp", options, "alice@127.0.0.1", env=password_env, check=check)

    def connections_of_workers(self) -> int:
        """Returns the number of connections of workers that the director has."""
        return int(self.operator("pgrep -c -u worker || true"))

    def _ssh(
        self,
        program: str,
        options: list[str],
        *words: str,
        env: dict[str, str] | None = None,
        input: str | None = None,
        check: bool = True,
    ) -> run.Completed:
        port = self.kimbox.json("status", "vault")["ssh_port"]
        known = [
            "-F",
            "none",
            "-o",
            f"UserKnownHostsFile={Machine('vault').known_hosts}",
            "-o",
            "HostKeyAlias=kimbox-vault",
        ]
        port_option = ["-P" if program == "sftp" else "-p", str(port)]
        folder = self.kimbox.folder
        argv = [program, *known, *options, *port_option, *words]
        return run.run(argv, cwd=folder, env=env, input=input, timeout_s=600, check=check)


def secure(kimbox: Kimbox, password: str, *words: str, check: bool = True) -> run.Completed:
    """Runs `kimbox secure` with a password on its stdin."""
    return kimbox("secure", *words, "--password-file", "-", input=f"{password}\n", check=check)


def boxes(home: Path, folder: Path, port: int) -> Iterator[Site]:
    """Starts both boxes of a spec in `folder`, and seals the director. Both are destroyed at the end."""
    kimbox = Kimbox(home, folder)
    operator = (folder / "operator.pub").read_text().strip()
    (folder / "vault.yaml").write_text(VAULT_SPEC.format(port=port, promise=step(FIRST_STEP)))
    (folder / "hand.yaml").write_text(HAND_SPEC.format(operator=operator))
    (folder / "kimbox.yaml").write_text(SITE_SPEC)
    exchange(home)
    kimbox("up")
    exchange(home)
    words = ("vault", "--role", "director", "--site", "example.org", "--username", "alice")
    assert secure(kimbox, PASSWORD, *words).stdout == "vault is sealed, as director of example.org\n"
    yield Site(kimbox, port)
    kimbox("destroy", "-y")
