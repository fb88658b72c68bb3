"""The shipped pipeline on two real boxes, both sealed: a director, its site's gateway, and a worker with LAMMPS."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from conftest import Kimbox, exchange, until
from frames import wired
from makearchive import Archive
from promises import PROMISE, promised, step
from webfolder import serving

from kimbox import run
from kimbox.actions.audit import LOG_BYTES
from kimbox.drivers.qemu import qmp
from kimbox.files import data_ranges
from kimbox.guest.audit import newest
from kimbox.guest.events import Tail
from kimbox.machine.folder import Machine, read_end
from kimbox.paths import boxes_dir

pytestmark = pytest.mark.guest

#: What the site's users know.
PASSWORD = "correct horse"

VAULT = """kimbox: 1
name: vault
base: [openkim-director.yaml]
image: {{packages: [unattended-upgrades]}}
forwards: [{{guest: 8888}}]
secure:
  site: example.org
  keys: [operator.pub]
  dns: true
  updates: true
  roles:
    director: {{outbound: [{{host: archive.test, port: {port}}}]}}
provision:{promise}
"""

#: What was there in the first moment in which a step ran, in the boot that ended sealed.
FIRST_STEP = "/var/tmp/first-step"

HAND = """kimbox: 1
name: hand
base: [openkim-worker.yaml]
secure:
  site: example.org
  roles:
    worker: {{gateway: {{host: 10.0.2.2, port: {port}, host_keys: ["{key}"]}}}}
"""

#: Holes by the check that must find each.
HOLES = {
    "account.login": "useradd -m -s /bin/bash -p aaJ9Hcb0Jd3Qk intruder",
    "account.root_alike": "useradd -o -u 0 -M toor",
    "file.set_uid": "cp /bin/sh /usr/local/bin/shell && chmod 4755 /usr/local/bin/shell",
    "file.writable": "chmod o+w /etc/motd",
    "fw.sends": "nft add element inet kimbox outbound4 { 203.0.113.9 . tcp . 443 }",
    "fw.changed": "nft add rule inet kimbox input tcp dport 4711 accept",
    "kernel.sysrq": "echo 1 >/proc/sys/kernel/sysrq",
    "mount.shm": "mount -o remount,dev /dev/shm",
    "net.tcp": "systemd-run -q -p Type=exec systemd-socket-activate -l 9999 --inetd true",
    "secret.keys": "ssh-keygen -q -t ed25519 -f /home/key; chmod 0644 /home/key",
    "ssh.trustedusercakeys": "echo TrustedUserCAKeys /x >/etc/ssh/sshd_config.d/z.conf",
    "ssh.permitrootlogin": "echo PermitRootLogin yes >/etc/ssh/sshd_config.d/000.conf",
    "sudo.rules": "echo ALL ALL=NOPASSWD: ALL >/etc/sudoers.d/all",
}

#: The jobs that the director has.
JOBS = {job["job"]: job for job in json.loads((boxes_dir() / "openkim-pipeline/runner/jobs.json").read_text())}


@attrs.frozen
class Site:
    """The two boxes, the director sealed and the worker not yet."""

    vault: Kimbox
    hand: Kimbox
    #: Of the archive that the director may reach, on this host.
    port: int

    def operator(self, script: str) -> str:
        """Runs a shell script in the director, as the operator."""
        return self._ssh("ssh", ["-i", "operator", "-o", "BatchMode=yes"], "operator@127.0.0.1", script)

    def fetch(self, folder: Path) -> None:
        """Brings all results into a folder, as a user of the site does."""
        (folder / "askpass").write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
        (folder / "askpass").chmod(0o700)
        (folder / "commands").write_text(f"get -r results {folder}/\n")
        asked = {"SSH_ASKPASS": str(folder / "askpass"), "SSH_ASKPASS_REQUIRE": "force"}
        options = ["-o", "BatchMode=no", "-o", "PubkeyAuthentication=no", "-b", str(folder / "commands")]
        self._ssh("sftp", options, "alice@127.0.0.1", env=asked)

    def _ssh(self, program: str, options: list[str], *words: str, env: dict[str, str] | None = None) -> str:
        port = self.vault.json("status")["ssh_port"]
        known = [
            "-F",
            "none",
            "-o",
            f"UserKnownHostsFile={Machine('vault').known_hosts}",
            "-o",
            "HostKeyAlias=kimbox-vault",
        ]
        where = ["-P" if program == "sftp" else "-p", str(port)]
        folder = self.vault.folder
        return run.run([program, *known, *options, *where, *words], cwd=folder, env=env, timeout_s=600).stdout


def bring_up(home: Path, folder: Path, spec: str) -> Kimbox:
    """A box of this spec, ready."""
    kimbox = Kimbox(home, folder)
    (folder / "kimbox.yaml").write_text(spec)
    exchange(home)
    kimbox("up")
    exchange(home)
    return kimbox


def take(kimbox: Kimbox, name: str, password: str, *words: str, check: bool = True) -> run.Completed:
    """`kimbox secure` with a password from its stdin."""
    return kimbox("secure", name, *words, "--password-file", "-", input=f"{password}\n", check=check)


@pytest.fixture(scope="module")
def site(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A director, sealed, and a box that may become its worker."""
    folder = tmp_path_factory.mktemp("vault")
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "operator"])
    archive = Archive(folder / "security", "trixie-security", "Debian-Security")
    for version in ("1.0", "1.1"):
        archive.add("patient", version)
    archive.publish(signed=False)
    with serving(folder / "security/archive") as port:
        yield from boxes(home, folder, tmp_path_factory.mktemp("hand"), port)


def boxes(home: Path, folder: Path, other: Path, port: int) -> Iterator[Site]:
    """Both boxes, each in its folder; gone at the end."""
    vault = bring_up(home, folder, VAULT.format(port=port, promise=step(FIRST_STEP)))
    told = take(vault, "vault", PASSWORD, "--role", "director", "--site", "example.org", "--username", "alice")
    assert told.stdout == "vault is sealed, as director of example.org\n"
    key = Machine("vault").known_hosts.read_text().split(" ", 1)[1].strip()
    spec = HAND.format(port=vault.json("status")["ssh_port"], key=key)
    yield Site(vault, bring_up(home, other, spec), port)
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


def test_what_it_tells_of_itself_is_sound(site: Site) -> None:
    """Before anybody has opened anything in it."""
    until("the report of the box", lambda: has_report("vault"))
    sound = site.vault.json("audit", "vault")
    assert (sound["breaches"], sound["report"]["role"]) == ([], "director")
    assert sound["counts"]["pass"] > 60


def test_what_is_open_of_it(site: Site, tmp_path: Path) -> None:
    """One port, the operator by key, and nothing else: no account, no password, no console, no way out."""
    accounts = site.operator("sudo cut -d: -f1,2 /etc/shadow").splitlines()
    usable = [name for name, _, rest in (a.partition(":") for a in accounts) if not rest.startswith(("!", "*"))]
    assert usable == ["alice"]
    assert site.operator("getent passwd vagrant || true; sudo ls /etc/sudoers.d") == "README\noperator\n"
    first = promised(site.operator(f"cat {FIRST_STEP}"))
    assert {"/boot", "/persistent", "/tmp", "/run/lock"} <= first
    assert first == promised(site.operator(PROMISE))
    assert site.operator("systemctl list-units --plain --no-legend 'getty@*' 'serial-getty@*'") == ""
    assert site.operator("cat /proc/sys/kernel/modules_disabled") == "1\n"
    site.operator("sudo systemd-run -q -p Type=exec systemd-socket-activate -l 8888 --accept --inetd echo hello")
    inside = "for i in $(seq 50); do bash -c 'cat </dev/tcp/127.0.0.1/8888' 2>/dev/null && break; sleep 0.2; done"
    assert site.operator(inside) == "hello\n"
    assert said(site.vault.json("status")["forwards"]["8888"]) == b""
    line = site.operator("grep 'fe80.* eth0' /proc/net/if_inet6").split()[0]
    with wired(Machine("vault"), ":".join(line[i : i + 4] for i in range(0, 32, 4)), tmp_path) as wire:
        wire.introduce()
        for port in (*range(1, 1024), 8888, 11300, 22):
            wire.knock(port)
        until("answers of both families", lambda: wire.opened(6) == wire.opened(4) == {22}, limit_s=60)
        assert (wire.answered(6), wire.answered(4)) == ({22}, {22})
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


def test_security_updates_come_by_themselves(site: Site) -> None:
    """From an archive that the spec gives by name: shut until the name has an address, then open, and it alone."""
    reach = f"timeout 20 bash -c ': </dev/tcp/10.0.2.2/{site.port}' 2>/dev/null && echo out || echo shut"
    assert site.operator(reach) == "shut\n"
    site.operator("echo 10.0.2.2 archive.test | sudo tee -a /etc/hosts; sudo systemctl start kimbox-outbound.service")
    assert site.operator(reach) == "out\n"
    assert site.operator("systemctl is-active apt-daily.timer apt-daily-upgrade.timer") == "active\nactive\n"
    source = f"deb [trusted=yes] http://archive.test:{site.port} trixie-security main"
    site.operator(
        f"sudo sh -c 'rm -f /etc/apt/sources.list.d/*; echo {source} >/etc/apt/sources.list; "
        "systemctl start apt-daily.service; apt-get -q -y install patient=1.0'"
    )
    assert site.operator("cat /usr/share/patient/version") == "1.0"
    site.operator("sudo systemctl start apt-daily-upgrade.service")
    assert site.operator("cat /usr/share/patient/version") == "1.1"


def test_the_audit_finds_each_hole(site: Site, tmp_path: Path) -> None:
    """A hole of each kind, opened by the operator, is found."""
    site.operator(f"sudo sh -c '{'; '.join(HOLES.values())}'")
    (tmp_path / "report").write_text(site.operator("sudo /usr/lib/kimbox/audit"))
    report = newest((tmp_path / "report").read_bytes())
    assert report is not None
    assert set(HOLES) <= {check.id for check in report.breaches}


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


def done() -> int:
    """How many jobs the director has told to be done."""
    told = [event.text("done") for event in Machine("vault").boot_events() if event.name == "jobs"]
    return int(told[-1]) if told else 0


def has_report(name: str) -> bool:
    """Whether a box has told in this run how well it is closed."""
    return newest(read_end(Machine(name).audit_log, LOG_BYTES)) is not None


def test_twenty_jobs_are_done_though_both_boxes_are_reset(site: Site, tmp_path: Path) -> None:
    """Every job has its one result, with the values that are known of its model, and says what computed it."""
    until("the first results", lambda: done() >= 3, limit_s=900)
    for name in ("vault", "hand"):
        qmp.execute(Machine(name).qmp_socket, "system_reset")
    until("all results", lambda: done() == len(JOBS), limit_s=1800)
    assert site.vault.json("status")["jobs"]["done"] == len(JOBS)
    until("the report of the worker", lambda: has_report("hand"))
    assert site.hand.json("audit", "hand")["breaches"] == []
    site.fetch(tmp_path)
    assert {path.stem for path in (tmp_path / "results").glob("*.json")} == set(JOBS)
    image = Machine("hand").record().image
    for name, job in JOBS.items():
        result = json.loads((tmp_path / "results" / f"{name}.json").read_text())
        assert (result["status"], result["duplicate"], result["worker"]) == ("done", False, "hand"), result
        for value in ("a", "e"):
            assert abs(result["values"][value] - job["expected"][value]) <= job["expected"]["tolerance"], result
        assert (result["box"]["role"], result["box"]["image"]) == ("worker", image)
    for path in (tmp_path / "results/duplicates").glob("*.json"):
        assert json.loads(path.read_text())["duplicate"] is True


def test_no_secret_is_left_about(site: Site, tmp_path: Path) -> None:
    """Neither the password nor the key of the gateway: in no file, process or disk; such a box is not packaged."""
    hand = site.hand
    key = site.operator("sudo sed -n 3p /persistent/pipeline/site/worker/id_ed25519").strip()
    assert len(key) == 70
    for secret in (PASSWORD.encode(), key.encode()):
        for folder in (Machine("hand").folder, Machine("vault").folder, hand.folder, site.vault.folder):
            texts = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".qcow2"]
            assert [path for path in texts if secret in path.read_bytes()] == []
        assert [line for line in command_lines() if secret in line] == []
    hand("halt", "hand")
    refused = hand.json("package", "hand", "--format", "raw", "--output", str(tmp_path / "package"), check=False)
    assert (refused["exit_code"], "sealed" in refused["message"]) == (5, True)
    assert not (tmp_path / "package/hand.raw").exists()
    raw = tmp_path / "hand.raw"
    run.run(["qemu-img", "convert", "-O", "raw", Machine("hand").disk, raw])
    assert holds(raw, PASSWORD.encode(), key.encode()) == []
    assert holds(raw, b"KIMBOX_VERSION=") != []  # what is there is found


def holds(disk: Path, *words: bytes) -> list[bytes]:
    """Which of these words are in a sparse disk; pieces overlap by so much that none is cut."""
    found = set()
    with disk.open("rb") as file:
        for start, end in data_ranges(file.fileno()):
            for at in range(start, end, 16 << 20):
                file.seek(at)
                piece = file.read(min((16 << 20) + 100, end - at))
                found |= {word for word in words if word in piece}
    return sorted(found)


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
    assert hand.json("status")["state"] == "sealed"
    assert not Machine("hand").rotate_file.exists()
    until("a report after it", lambda: has_report("hand"))
    assert hand.json("audit", "hand")["breaches"] == []
    for name in ("hand", "vault"):
        assert after_sealed(name) == {"sealed"}


def after_sealed(name: str) -> set[str]:
    """Which words on how far it has come followed, in any boot, the one that the box is sealed; it tells that again."""
    told: dict[str, list[str]] = {}
    for event in Tail(Machine(name).events_file).read():
        if event.name in ("booting", "waiting", "provisioning", "ready", "sealed", "failed"):
            told.setdefault(event.boot, []).append(event.name)
    return {later for names in told.values() if "sealed" in names for later in names[names.index("sealed") + 1 :]}


def test_a_box_that_lost_its_marks_stays_closed(site: Site) -> None:
    """/persistent has no trace left of the role: the host knows of it, and nothing is open before that is seen."""
    site.operator("sudo rm /persistent/kimbox/secured; sync")
    failed = site.vault.json("reload", check=False)
    assert (failed["exit_code"], "/persistent/kimbox/secured is missing" in failed["message"]) == (4, True)
    assert site.vault.json("status")["state"] == "crashed"


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
    # kimbox died before it had noted that: the box says it again.
    Machine("hand").unseal_mark.touch()
    hand("secure", "hand", "--unseal", "--yes")
    assert not Machine("hand").unseal_mark.exists()
    assert hand.json("reload")["state"] == "ready"
    box = json.loads(hand.sh("hand", "cat /etc/kimbox/box.json"))
    assert (box["role"], box["site"]) == ("dev", "")
