"""A real sshd on 127.0.0.1 that the current user runs."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port, listening

from kimbox import paths
from kimbox.guest.endpoint import Endpoint
from kimbox.run import run, which

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


def make_key(path: Path) -> str:
    """Makes a key pair and returns the public key."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path])
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def sealed_algorithms() -> str:
    """Returns the lines of sshd_config(5) in which a sealed box has other algorithms than OpenSSH."""
    text = (paths.provisioners_dir() / "secure/root/usr/lib/kimbox/sealed.sshd").read_text()
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith(("KexAlgorithms ", "MACs ")))


def configuration(folder: Path, port: int) -> str:
    """Returns the settings of sshd_config(5) that every sshd of the tests has. Its host key is the file `host`.

    As root it also creates /run/sshd, which sshd requires for privilege separation.
    """
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    return (
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        f"{sealed_algorithms()}"
    )


@contextlib.contextmanager
def serving(folder: Path, more: str = "", *, environment: str = "") -> Iterator[Endpoint]:
    """Runs an sshd whose keys, configuration and log are in the folder. Skips the test if this is not possible.

    `more`: lines of sshd_config(5). `environment`: variables of its commands, NAME=VALUE.
    """
    if SSHD is None or which("ssh-keygen") is None:
        pytest.skip("needs the package openssh-server")
    if pwd.getpwuid(os.getuid()).pw_shell.endswith(("/nologin", "/false")):
        pytest.skip("this account has no login shell")
    host_key = make_key(folder / "host")
    make_key(folder / "client")
    port = free_port()
    # With another HOME, the start-up files of the user's own shell and the user's git configuration are not read.
    # MaxSessions is that of a box.
    (folder / "config").write_text(
        f"{configuration(folder, port)}AuthorizedKeysFile {folder}/client.pub\nPidFile {folder}/pid\n"
        f"MaxSessions 1000\nSetEnv HOME={folder} {environment}\n{more}"
    )
    (folder / "known_hosts").write_text(f"box {host_key}\n")
    with listening([SSHD, "-D", "-e", "-f", str(folder / "config")], port, folder / "pid", folder / "log"):
        yield Endpoint("127.0.0.1", port, getpass.getuser(), folder / "client", folder / "known_hosts", "box")
