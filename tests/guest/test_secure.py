"""Two real boxes take roles: one becomes the gateway of its site, the other gets its credentials from it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from conftest import Kimbox

from kimbox import run
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.guest

#: What is known to few: the site's password, the one that follows it, and what the gateway hands out.
PASSWORD, TOKEN = "correct horse", "battery-staple-4711"

VAULT = """
boot: resnap
forwards: [{guest: 8888}]
repositories: {setup: {url: ./setup}}
secure:
  site: example.org
  keys: [operator.pub]
  roles: {director: {inbound: [22], accounts: [alice]}}
"""

HAND = """
boot: resnap
repositories: {{setup: {{url: ./setup}}}}
secure:
  roles:
    worker: {{gateway: {{host: 10.0.2.2, port: {port}, host_keys: ["{key}"]}}}}
"""

#: What the setup repository's `secure` of each role does.
DIRECT = f"""#!/bin/sh
set -eu
IFS=: read -r name hash <"$KIMBOX_CREDENTIALS/passwd"
useradd --no-create-home --shell /usr/sbin/nologin --password "$hash" "$name"
mkdir -p /srv/site/worker
echo {TOKEN} >/srv/site/worker/token
cat >/etc/ssh/sshd_config.d/gateway.conf <<END
Match User $name
	PasswordAuthentication yes
	ForceCommand internal-sftp -R
	ChrootDirectory /srv/site
	DisableForwarding yes
END
systemctl reload ssh
"""
WORK = """#!/bin/sh
set -eu
/usr/lib/kimbox/event jobs done="$(wc -l <"$KIMBOX_CREDENTIALS/token")" failed=0 \\
	length="$(wc -c <"$KIMBOX_CREDENTIALS/token")"
"""


@attrs.frozen
class Site:
    """The two boxes, the gateway sealed and the other not yet."""

    vault: Kimbox
    hand: Kimbox

    def operator(self, script: str) -> str:
        """Runs a shell script in the gateway, as the operator."""
        port = self.vault.json("status")["ssh_port"]
        options = ["-F", "none", "-i", "operator", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
        where = ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-p", str(port), "operator@127.0.0.1"]
        return run.run(["ssh", *options, *where, script], cwd=self.vault.folder, timeout_s=60).stdout


def prepare(home: Path, folder: Path, name: str, spec: str, secure: str) -> Kimbox:
    """A box with a setup repository whose `secure` is this, ready."""
    kimbox = Kimbox(home, folder)
    (folder / "setup").mkdir()
    for file, text in {"setup": "#!/bin/sh\n", "secure": secure}.items():
        (folder / "setup" / file).write_text(text)
        (folder / "setup" / file).chmod(0o755)
    kimbox.spec(name, spec)
    kimbox("up")
    return kimbox


def take(kimbox: Kimbox, name: str, password: str, *words: str, check: bool = True) -> run.Completed:
    """`kimbox secure` with a password from its stdin."""
    return kimbox("secure", name, *words, "--password-file", "-", input=f"{password}\n", check=check)


@pytest.fixture(scope="module")
def site(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway, sealed, and a box that may become its worker."""
    folder = tmp_path_factory.mktemp("vault")
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "operator"])
    vault = prepare(home, folder, "vault", VAULT, DIRECT)
    told = take(vault, "vault", PASSWORD, "--role", "director", "--site", "example.org", "--username", "alice")
    assert told.stdout == "vault is sealed, as director of example.org\n"
    key = Machine("vault").known_hosts.read_text().split(" ", 1)[1].strip()
    spec = HAND.format(port=vault.json("status")["ssh_port"], key=key)
    yield Site(vault, prepare(home, tmp_path_factory.mktemp("hand"), "hand", spec, WORK))
    for name in ("hand", "vault"):
        vault("destroy", "-y", name)


def test_nobody_enters_a_sealed_box(site: Site) -> None:
    """What would go in is refused, with what it is; what only ends it is not; `secure` again says what it is."""
    vault = site.vault
    status = vault.json("status")
    assert (status["state"], status["sealed"]) == ("sealed", {"role": "director", "site": "example.org"})
    assert (status["provenance"]["role"], status["provenance"]["site"]) == ("director", "example.org")
    assert "vault  sealed: director" in vault("list").stdout
    for words in (["ssh"], ["exec", "--", "true"], ["provision"], ["suspend"], ["snapshot", "save", "x"]):
        refused = vault.json(*words, check=False)
        assert (refused["exit_code"], "sealed" in refused["message"]) == (5, True), words
    again = take(vault, "vault", "whatever", "--username", "bob")
    assert again.stdout == "vault is sealed already, as director of example.org\n"
    assert vault.json("up")["state"] == "sealed"


def test_what_is_open_of_it(site: Site) -> None:
    """One port, the operator by key, and nothing else: no account, no password, no console, no way out."""
    accounts = site.operator("sudo cut -d: -f1,2 /etc/shadow").splitlines()
    usable = [name for name, _, rest in (a.partition(":") for a in accounts) if not rest.startswith(("!", "*"))]
    assert usable == ["alice"]
    assert site.operator("getent passwd vagrant || true; sudo ls /etc/sudoers.d") == "README\noperator\n"
    assert site.operator("systemctl list-units --plain --no-legend 'getty@*' 'serial-getty@*'") == ""
    assert site.operator("cat /proc/sys/kernel/modules_disabled") == "1\n"
    site.operator("sudo systemd-run -q -p Type=exec systemd-socket-activate -l 8888 --accept --inetd echo hello")
    inside = "for i in 1 2 3 4 5 6 7 8 9; do bash -c 'cat </dev/tcp/127.0.0.1/8888' 2>/dev/null && break; done"
    assert site.operator(inside) == "hello\n"
    assert said(site.vault.json("status")["forwards"]["8888"]) == b""
    with socket.create_server(("127.0.0.1", 0)) as outside:
        to = f"/dev/tcp/10.0.2.2/{outside.getsockname()[1]}"
        reach = f"timeout 20 bash -c ': <{to}' 2>/dev/null && echo out || echo shut"
        assert site.operator(reach) == "shut\n"
        assert site.hand.sh("hand", reach) == "out\n"


def said(port: int) -> bytes:
    """What a port of this host answers within three seconds; nothing where nobody does."""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        try:
            return connection.recv(5)
        except (TimeoutError, ConnectionError):
            return b""


def test_the_site_refuses_and_accepts(site: Site, tmp_path: Path) -> None:
    """A wrong password changes nothing; the right one makes a worker that tells of its work; no secret is left."""
    hand = site.hand
    refused = take(hand, "hand", "wrong", "--site", "example.org", "--username", "alice", check=False)
    assert refused.code == 4
    assert "does not accept alice" in refused.stderr
    assert hand.json("status")["state"] == "ready"
    assert hand.sh("hand", "sudo ls /persistent/secure 2>/dev/null || echo none") == "none\n"
    take(hand, "hand", PASSWORD, "--site", "example.org", "--username", "alice")
    status = hand.json("status")
    assert (status["state"], status["sealed"]) == ("sealed", {"role": "worker", "site": "example.org"})
    assert status["jobs"] == {"done": 1, "failed": 0, "length": len(TOKEN) + 1}
    assert "1 done, 0 failed" in hand("status").stdout
    for secret in (PASSWORD.encode(), TOKEN.encode()):
        for folder in (Machine("hand").folder, hand.folder):
            texts = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".qcow2"]
            assert [path for path in texts if secret in path.read_bytes()] == []
        assert [line for line in command_lines() if secret in line] == []
    hand("halt", "hand")
    raw = tmp_path / "hand.raw"
    run.run(["qemu-img", "convert", "-O", "raw", Machine("hand").disk, raw])
    assert run.run(["grep", "-c", "-a", "-F", "-e", PASSWORD, "-e", TOKEN, raw], check=False).stdout == "0\n"
    hand("up")


def command_lines() -> list[bytes]:
    """What every process of this host was started with, and its environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                found.append((folder / name).read_bytes())
            except OSError:
                continue
    return found


def test_new_credentials(site: Site) -> None:
    """A sealed box asks for them itself, at a start; where that fails it goes on with the old ones, and says why."""
    hand = site.hand
    failed = take(hand, "hand", "wrong", "--rotate", "--username", "alice", check=False)
    assert failed.code == 4
    assert "does not accept alice" in failed.stderr
    assert hand.json("status")["state"] == "sealed"
    assert "new credentials" in take(hand, "hand", PASSWORD, "--rotate", "--username", "alice").stdout
    assert hand.json("status")["jobs"]["done"] == 1
    assert not Machine("hand").rotate_file.exists()


def test_the_way_back(site: Site) -> None:
    """Maintain mode is none of a sealed box's; `--unseal` opens it without what it knew, and it is as it was before."""
    hand = site.hand
    refused = hand.json("reload", "--boot", "maintain", check=False)
    assert (refused["exit_code"], "--unseal" in refused["hint"]) == (5, True)
    assert hand.json("status")["state"] == "sealed"
    hand("secure", "hand", "--unseal", "--yes")
    assert not Machine("hand").data_key.exists()
    status = hand.json("status")
    assert (status["state"], status["boot"], status["sealed"]) == ("ready", "maintain", None)
    assert hand.sh("hand", "ls -A /persistent").split() == [
        "cache", "git", "kimbox", "log", "lost+found", "runsecure", "runsetup", "ssh", "status.json",
    ]  # fmt: skip
    assert hand.json("reload")["state"] == "ready"
    box = json.loads(hand.sh("hand", "cat /etc/kimbox/box.json"))
    assert (box["role"], box["site"]) == ("dev", "")
