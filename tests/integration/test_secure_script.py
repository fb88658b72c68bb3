"""The guest's script `secure` with a real sshd as the gateway: what a box fetches, and the key that it leaves there."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import fakeguest
import pytest
import realsshd
from fakeguest import FakeGuest, needs_namespace
from servers import free_port, listening

from kimbox.render import sealing
from kimbox.run import Completed, run, which
from kimbox.spec.model import Gateway, Role, Secure

guest = fakeguest.guest  # a fixture

pytestmark = [needs_namespace, pytest.mark.skipif(os.getuid() != 0, reason="ChrootDirectory of sshd needs root")]


@attrs.frozen
class Site:
    """The folder that a gateway shows to the user of the site, and the address of the gateway."""

    folder: Path
    port: int
    host_key: str
    #: The private key of the user.
    key: Path

    def keys(self) -> list[Path]:
        """The public keys that boxes have left."""
        return sorted((self.folder / "keys/worker").glob("*"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A gateway with a file for workers and a folder for their keys."""
    if realsshd.SSHD is None or which("openssl") is None:
        pytest.skip("needs the packages openssh-server and openssl")
    # No other user may write to a parent of the folder, as in /tmp.
    folder = Path(tempfile.mkdtemp(prefix="kimbox-test-", dir="/run"))
    folder.chmod(0o755)
    (folder / "worker").mkdir()
    (folder / "worker/site").write_text("example.org\n")
    (folder / "keys/worker").mkdir(parents=True)
    port, host_key = free_port(), realsshd.make_key(tmp_path / "host")
    realsshd.make_key(tmp_path / "user")
    (tmp_path / "config").write_text(
        f"{realsshd.configuration(tmp_path, port)}AuthorizedKeysFile {tmp_path}/user.pub\nPidFile {tmp_path}/pid\n"
        f"Subsystem sftp internal-sftp\nForceCommand internal-sftp\nChrootDirectory {folder}\n"
    )
    command = [str(realsshd.SSHD), "-D", "-e", "-f", str(tmp_path / "config")]
    try:
        with listening(command, port, tmp_path / "pid", tmp_path / "log"):
            yield Site(folder, port, host_key, tmp_path / "user")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def secure(guest: FakeGuest, site: Site, folder: Path, *options: str) -> Completed:
    """Runs the script as `kimbox secure` does, with the key of the site's user."""
    role = Role("worker", Gateway("127.0.0.1", site.port, (site.host_key,)), (), (), (), ())
    files = sealing.files(Secure("example.org", (role,), (), False, (), (), False), role) | {
        "answers.env": sealing.answers(role, "example.org", getpass.getuser()),
        "data_key": b"0123456789abcdef\n",
        "id": site.key.read_bytes(),
    }
    sent = folder / "sent"
    sent.mkdir(exist_ok=True)
    with tarfile.open(folder / "sent.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            (sent / name).write_bytes(data)
            archive.add(sent / name, name)
    guest.path("/persistent/kimbox").mkdir(exist_ok=True)
    return guest.run("/usr/lib/kimbox/secure", *options, stdin=str(folder / "sent.tar"))


def credentials(guest: FakeGuest) -> dict[str, str]:
    """The decrypted credentials of the box."""
    given = guest.path("/run/credentials/@system")
    given.mkdir(parents=True, exist_ok=True)
    (given / "kimbox.data_key").write_text("0123456789abcdef\n")
    assert guest.run("sh", "-c", ". /usr/lib/kimbox/sealed.sh; unlock /tmp/open").ok
    return {path.name: path.read_text() for path in guest.path("/tmp/open").iterdir()}


def test_a_box_leaves_the_public_part_of_a_key_of_its_own(guest: FakeGuest, site: Site, tmp_path: Path) -> None:
    """The private part is a credential, and is nowhere else. New credentials replace the key at the gateway."""
    done = secure(guest, site, tmp_path)
    assert done.code == 0, done.stderr
    (left,) = site.keys()
    assert re.fullmatch(r"[A-Za-z0-9-]+\.pub", left.name)
    had = credentials(guest)
    assert (set(had), had["site"]) == ({"site", "id_ed25519"}, "example.org\n")
    (tmp_path / "own").write_text(had["id_ed25519"])
    (tmp_path / "own").chmod(0o600)
    public = left.read_text()
    assert run(["ssh-keygen", "-y", "-f", tmp_path / "own"]).stdout.split()[:2] == public.split()[:2]
    assert not guest.path("/run/kimbox/secure").exists()
    assert secure(guest, site, tmp_path, "--rotate").code == 0
    assert site.keys() == [left]
    assert left.read_text() != public
    assert credentials(guest)["id_ed25519"] != had["id_ed25519"]


def test_a_gateway_without_a_folder_for_keys_gives_what_it_has(guest: FakeGuest, site: Site, tmp_path: Path) -> None:
    """A site may hand out keys itself."""
    shutil.rmtree(site.folder / "keys")
    (site.folder / "worker/id_ed25519").write_text("a key of the site\n")
    assert secure(guest, site, tmp_path).code == 0
    assert credentials(guest) == {"site": "example.org\n", "id_ed25519": "a key of the site\n"}


def test_a_key_that_the_gateway_does_not_take_is_an_error(guest: FakeGuest, site: Site, tmp_path: Path) -> None:
    """The box does not change: sealed, it could not reach its site."""
    shutil.rmtree(site.folder / "keys/worker")
    (site.folder / "keys/worker").write_text("a file in the place of the folder\n")
    done = secure(guest, site, tmp_path)
    assert done.code == 1
    assert "did not take the key of this box" in done.stderr
    assert not guest.path("/persistent/secure").exists()


def test_a_gateway_that_closes_connections_is_named(guest: FakeGuest, site: Site, tmp_path: Path) -> None:
    """sshd does this for some time after wrong passwords (PerSourcePenalties)."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_one() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"Not allowed at this time\r\n")

        thread = threading.Thread(target=close_one)
        thread.start()
        done = secure(guest, attrs.evolve(site, port=server.getsockname()[1]), tmp_path)
        thread.join()
    assert (done.code, "try again later" in done.stderr) == (1, True)
