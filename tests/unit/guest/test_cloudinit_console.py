"""The host key that cloud-init writes to the console, and the wait for its end over a real ssh server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import realsshd
from makemachine import HOST_KEY, OTHER_HOST_KEY
from refused import refused

from kimbox.errors import GuestError
from kimbox.guest import cloudinit
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Guest

BEGIN, END = cloudinit.BEGIN.decode(), cloudinit.END.decode()


def block(key: str, prefix: str = "") -> str:
    """The lines of cloud-init with a key between two others."""
    lines = [BEGIN, "ecdsa-sha2-nistp256 AAAAE2 root@a", f"{key} root@a", "ssh-rsa AAAAB3 root@a", END]
    return "".join(f"{prefix}{line}\r\n" for line in lines)


@pytest.mark.parametrize(
    "console",
    [
        block(HOST_KEY),
        f"[    1.0] booting\r\n{block(HOST_KEY)}a login: ",
        block(HOST_KEY, "[   20.511] cloud-init[512]: "),
        block(OTHER_HOST_KEY) + block(HOST_KEY),
    ],
)
def test_the_last_key_counts(console: str) -> None:
    """With any text before it in its line."""
    assert HOST_KEY == cloudinit.host_key(b"\xff\0" + console.encode())


@pytest.mark.parametrize(
    "console",
    [
        "",
        HOST_KEY,
        f"{BEGIN}\r\n{HOST_KEY}\r\n",
        f"{END}\r\n{HOST_KEY}\r\n{BEGIN}",
        block(HOST_KEY[:-1]),
        block(HOST_KEY + "A"),
        block(HOST_KEY[:50] + "[    9.1] a message of the kernel" + HOST_KEY[50:]),
        block("ssh-rsa AAAA") + HOST_KEY,
        block(HOST_KEY) + f"{BEGIN}\r\n{OTHER_HOST_KEY}",
    ],
)
def test_an_incomplete_block_has_no_key(console: str) -> None:
    """A key outside of a block was not written by cloud-init."""
    assert cloudinit.host_key(console.encode()) is None


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    """An ssh server, for whose commands the folder `bin` comes first on PATH."""
    (tmp_path / "bin").mkdir()
    with realsshd.serving(tmp_path, environment=f"PATH={tmp_path}/bin:/usr/bin:/bin") as endpoint:
        yield endpoint


def write_cloud_init(endpoint: Endpoint, text: str) -> None:
    program = endpoint.key_path.parent / "bin/cloud-init"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_the_end_of_cloud_init(endpoint: Endpoint) -> None:
    """Errors that it got over are no failure, and neither is a guest without it. A failure has its report."""
    with Guest(endpoint) as guest:
        cloudinit.wait_until_done(guest, "box", 30)  # it is not installed
        write_cloud_init(endpoint, 'echo "$*" >"$0.words"')
        cloudinit.wait_until_done(guest, "box", 30)
        assert "status --wait --long\n" == (endpoint.key_path.parent / "bin/cloud-init.words").read_text()
        write_cloud_init(endpoint, "echo status: done; exit 2")
        cloudinit.wait_until_done(guest, "box", 30)
        write_cloud_init(endpoint, "printf '....status: error\\033[2J\\n'; exit 1")
        with refused(GuestError, "cloud-init-failed", name="box", exit_status="1") as caught:
            cloudinit.wait_until_done(guest, "box", 30)
    assert "status: error" in str(caught.value)
    assert "\033" not in str(caught.value)
