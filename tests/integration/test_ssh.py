"""ssh to a real sshd on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import makebox
import pytest
import realsshd
from realsshd import make_key
from refused import refused
from servers import free_port

from kimbox.errors import GuestError
from kimbox.guest import delivery
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.ssh import Guest
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import make_lock
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.run import run
from kimbox.spec.model import Repository


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An sshd that lives as long as this module's tests."""
    with realsshd.serving(tmp_path_factory.mktemp("sshd")) as endpoint:
        yield endpoint


def test_a_command_gives_its_status_and_both_streams(endpoint: Endpoint) -> None:
    """Exit status, stdout and stderr come back apart, and lines as they come."""
    lines: list[str] = []
    with Guest(endpoint) as guest:
        answer = guest.run("echo out; echo err >&2; printf 'no end'; exit 7", timeout_s=10, on_line=lines.append)
    assert answer == (7, "out\nno end", "err\n")
    assert sorted(lines) == ["err", "no end", "out"]


def test_lines_arrive_while_the_command_runs(endpoint: Endpoint, tmp_path: Path) -> None:
    """A long command can be followed: this one goes on when its first line has come."""
    lines: list[str] = []
    command = f"echo 1; until [ -e {tmp_path}/seen ]; do sleep 0.05; done; echo 2"

    def came(line: str) -> None:
        lines.append(line)
        (tmp_path / "seen").touch()

    with Guest(endpoint) as guest:
        guest.run(command, timeout_s=60, on_line=came)
    assert lines == ["1", "2"]


def test_five_mebibytes_on_both_streams_do_not_deadlock(endpoint: Endpoint) -> None:
    """More output than the channel's window is read while the command runs; stderr keeps its end."""
    with Guest(endpoint) as guest:
        answer = guest.run("head -c 5242880 /dev/zero; { head -c 5242880 /dev/zero; echo end; } >&2", timeout_s=20)
    assert (answer.code, len(answer.stdout)) == (0, 5 << 20)
    assert len(answer.stderr) <= 256 << 10
    assert answer.stderr.endswith("end\n")


def test_input_of_five_mebibytes_while_output_flows(endpoint: Endpoint, tmp_path: Path) -> None:
    """stdin is streamed from a file, and what is written meanwhile is read."""
    source = tmp_path / "big"
    source.write_bytes(os.urandom(5 << 20))
    with Guest(endpoint) as guest:
        answer = guest.run("tee /dev/stderr | sha256sum", timeout_s=20, stdin=source)
        closed = guest.run("exec <&-; sleep 0.1; exit 5", timeout_s=20, stdin=source)
        target = tmp_path / "it's there"
        guest.put(source, str(target))
        with refused(GuestError, "guest-write-failed", path="/nonexistent/x"):
            guest.put(source, "/nonexistent/x")
    assert answer.stdout.split()[0] == run(["sha256sum", source]).stdout.split()[0]
    assert closed.code == 5
    assert target.read_bytes() == source.read_bytes()


def test_an_unknown_host_key_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    """A box whose key is not pinned is not believed, and nothing is learned; fabric would have added it."""
    for text in ("", "other ssh-ed25519 AAAA\n"):
        (tmp_path / "known").write_text(text)
        stranger = attrs.evolve(endpoint, known_hosts_path=tmp_path / "known")
        with refused(GuestError, "host-key-missing"), Guest(stranger):
            pass
        assert (tmp_path / "known").read_text() == text


def test_a_changed_host_key_is_refused(endpoint: Endpoint, tmp_path: Path) -> None:
    """Another machine at the same address is refused before our key is offered."""
    (tmp_path / "known").write_text(f"box {make_key(tmp_path / 'other')}\n")
    with (
        refused(GuestError, "host-key-mismatch"),
        Guest(attrs.evolve(endpoint, known_hosts_path=tmp_path / "known")),
    ):
        pass


def test_another_key_does_not_log_in(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent, no key of the user's and no ssh configuration helps out."""
    make_key(tmp_path / "stranger")
    ssh_dir = tmp_path / "home/.ssh"
    ssh_dir.mkdir(parents=True)
    shutil.copy(endpoint.key_path, ssh_dir / "id_ed25519")
    (ssh_dir / "config").write_text(f"Host *\n IdentityFile {endpoint.key_path}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with (
        refused(GuestError, "login-refused"),
        Guest(attrs.evolve(endpoint, key_path=tmp_path / "stranger")),
    ):
        pass


def test_what_does_not_answer_is_given_up_in_time(endpoint: Endpoint) -> None:
    """A port where nobody listens, and one where somebody listens and never speaks."""
    with refused(GuestError, "guest-unreachable"), Guest(attrs.evolve(endpoint, port=free_port())):
        pass
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        silent = attrs.evolve(endpoint, port=mute.getsockname()[1])
        with pytest.raises(GuestError), Guest(silent, timeout_s=0.5):
            pass
    assert time.monotonic() - started < 30


def test_a_dropped_connection_and_a_hang_are_errors(endpoint: Endpoint) -> None:
    """The guest may vanish during a command, or never end it; a daemon left behind does not hold the answer."""
    with Guest(endpoint) as guest, refused(GuestError, "connection-lost"):
        guest.run("kill -9 $PPID; sleep 5", timeout_s=10)
    with Guest(endpoint) as guest:
        with refused(GuestError, "timeout"):
            guest.run("sleep 20", timeout_s=0.3)
        started = time.monotonic()
        assert guest.run("sleep 60 & echo left", timeout_s=50).stdout == "left\n"
        assert time.monotonic() - started < 30


def test_light_algorithms_are_chosen(endpoint: Endpoint) -> None:
    """An emulated guest does not compute a heavy key exchange for us."""
    with Guest(endpoint) as guest:
        transport = guest._connection.client.get_transport()
        assert transport.local_cipher in {"aes128-gcm@openssh.com", "aes128-ctr"}
        assert transport.get_security_options().kex[0].startswith("curve25519")


def test_a_delivery_reaches_the_guest_whole(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """deliver() sends one tar on stdin and the digest as argument; large things that the guest has are left out.

    Nothing of it stays, nor of a delivery that was killed before.
    """
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    receive = tmp_path / "receive"
    receive.write_text(
        f'#!/bin/sh\ncd {tmp_path}\nif [ "$1" = --have ]; then echo code; exit; fi\n'
        'echo "$@" >arguments; rm -rf got; mkdir got; tar -x -C got || exit\n'
        "[ ! -e refuse ] || { echo no >&2; exit 3; }\n"
    )
    receive.chmod(0o755)
    monkeypatch.setattr(delivery, "RECEIVE", str(receive))
    makebox.make_repository(tmp_path / "code")
    repository = Repository("code", f"file://{tmp_path}/code", False, "main", "/opt/code")
    box = makebox.make_box(tmp_path, repositories=(repository,))
    lock = make_lock(box)
    manifest = render_manifest(box, lock)
    digest, parcels = manifest_digest(manifest), tuple(delivery.parcels_of(box, lock))
    payload = delivery.Payload(manifest, digest, parcels, {"code": Mirror.of(repository)})
    monkeypatch.setattr(delivery, "SUDO", "")
    (tmp_path / "work/deliver-killed").mkdir(parents=True)
    (tmp_path / "work/deliver-killed/delivery.tar").touch()
    with Guest(endpoint) as guest:
        delivery.deliver(guest, payload, tmp_path / "work")
        assert (tmp_path / "arguments").read_text() == f"{digest} --start\n"
        assert (tmp_path / "got/manifest/repositories").read_text().startswith("code\t")
        assert (tmp_path / "got/bundles/code.bundle").exists()
        monkeypatch.setattr(delivery, "SMALL_BYTES", 0)
        delivery.deliver(guest, payload, tmp_path / "work")
        assert (tmp_path / "arguments").read_text() == f"{digest} --start\n"
        assert not (tmp_path / "got/bundles").exists()
        (tmp_path / "refuse").touch()
        with pytest.raises(GuestError, match=r"exit status 3\):\nno"):
            delivery.deliver(guest, payload, tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []
