"""A real sshd on loopback, run by the current user."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimbox.guest.endpoint import Endpoint
from kimbox.run import CommandError, run, which

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")

# Another home: what the user's own shell does when somebody logs in is none of the tests' business.
_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={folder}
"""


def make_key(path: Path) -> str:
    """Makes a key pair; returns the public half."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path])
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Endpoint]:
    """An sshd whose keys, configuration and log are in the folder."""
    if SSHD is None or which("ssh-keygen") is None:
        pytest.skip("needs the package openssh-server")
    host_key = make_key(folder / "host")
    make_key(folder / "client")
    port = free_port()
    (folder / "config").write_text(_CONFIG.format(port=port, folder=folder))
    (folder / "known_hosts").write_text(f"box {host_key}\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root wants it for privilege separation
    pidfile = folder / "pid"
    serve = f"echo $$ >{pidfile}; exec {SSHD} -D -e -f {folder}/config 2>{folder}/log"

    def daemon() -> None:
        with contextlib.suppress(CommandError):  # it is ended by a signal
            run(["sh", "-c", serve])

    thread = threading.Thread(target=daemon)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield Endpoint("127.0.0.1", port, getpass.getuser(), folder / "client", folder / "known_hosts", "box")
    finally:
        os.kill(int(pidfile.read_text()), 15)
        thread.join(10)
