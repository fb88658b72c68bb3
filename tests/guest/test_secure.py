"""The shipped pipeline on two real, sealed boxes: a director, which is also the gateway, and a worker with LAMMPS."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import breaches
import pytest
from conftest import PROGRAM_PAUSE_S, Kimbox, until
from frames import wired
from intrusion import INTRUDE, disk_check, has_only_persistent
from leaks import command_lines, found_on
from makearchive import Archive
from promises import PROMISE, promised
from securesite import FIRST_STEP, PASSWORD, Site, boxes, secure
from webfolder import serving

from kimbox import run
from kimbox.actions.audit import LOG_BYTES
from kimbox.drivers import registry
from kimbox.drivers.qemu import qmp
from kimbox.files import read_end
from kimbox.guest.audit import Status, newest, reports
from kimbox.guest.events import Tail
from kimbox.image.disk import pristine
from kimbox.landlock import limits_ports
from kimbox.machine.folder import Machine
from kimbox.paths import boxes_dir

pytestmark = pytest.mark.guest

#: A private key of ssh on a disk: its second line has the public part.
PRIVATE_KEY = rb"-----BEGIN OPENSSH PRIVATE KEY-----\n[A-Za-z0-9+/]{70}\n[A-Za-z0-9+/]{70}"

#: The jobs of the director.
JOBS = {job["job"]: job for job in json.loads((boxes_dir() / "openkim-pipeline/runner/jobs.json").read_text())}


@pytest.fixture(scope="module")
def site(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A sealed director, and a box that can become its worker."""
    folder = tmp_path_factory.mktemp("vault")
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "operator"])
    archive = Archive(folder / "security", "trixie-security", "Debian-Security")
    for version in ("1.0", "1.1"):
        archive.add("patient", version)
    archive.publish(signed=False)
    with serving(folder / "security/archive") as port:
        yield from boxes(home, folder, port)


def test_a_sealed_box_accepts_no_login(site: Site) -> None:
    """Verbs that enter the box are refused, with a message that it is sealed. A second `secure` names its role."""
    kimbox = site.kimbox
    status = kimbox.json("status", "vault")
    assert (status["state"], status["sealed"]) == ("sealed", {"role": "director", "site": "example.org"})
    assert (status["provenance"]["role"], status["provenance"]["site"]) == ("director", "example.org")
    assert "vault  sealed: director" in kimbox("list").stdout
    verbs = (["ssh"], ["exec", "vault", "--", "true"], ["provision"], ["suspend"], ["snapshot", "save", "x"])
    for words in verbs:
        refused = kimbox.json(*words, *([] if "vault" in words else ["vault"]), check=False)
        assert (refused["exit_code"], "sealed" in refused["message"]) == (5, True), words
    repeated = secure(kimbox, "whatever", "vault", "--username", "bob")
    assert repeated.stdout == "vault is sealed already, as director of example.org\n"
    assert kimbox.json("up", "vault")["state"] == "sealed"


def test_its_first_report_has_no_breach(site: Site) -> None:
    """The report of the box that no test has changed has no failed check."""
    until("the report of the box", lambda: has_report("vault"))
    report = site.kimbox.json("audit", "vault")
    assert (report["breaches"], report["report"]["role"]) == ([], "director")
    assert report["counts"]["pass"] > 60
    health = site.kimbox.json("status", "vault")["health"]
    assert {"/", "/boot", "/persistent"} <= {space["mount"] for space in health["spaces"] if space["free_bytes"]}
    assert health["snapshot_percent"] in range(101)


def test_only_ssh_is_open(site: Site, tmp_path: Path) -> None:
    """Only one port is open, and only the operator's key logs in as operator. No console. No outbound connection."""
    accounts = site.operator("sudo cut -d: -f1,2 /etc/shadow").splitlines()
    usable = [name for name, _, rest in (a.partition(":") for a in accounts) if not rest.startswith(("!", "*"))]
    assert usable == ["alice"]
    assert site.operator("getent passwd vagrant || true; sudo ls /etc/sudoers.d") == "README\noperator\n"
    first = promised(site.operator(f"cat {FIRST_STEP}"))
    assert {"/boot", "/persistent", "/tmp", "/run/lock"} <= first
    assert first == promised(site.operator(PROMISE))
    assert site.operator("systemctl list-units --plain --no-legend 'getty@*' 'serial-getty@*'") == ""
    assert site.operator("cat /proc/sys/kernel/modules_disabled") == "1\n"
    # Addresses are random from the first process on, also under emulation. Otherwise programs are at 555555554000.
    assert not site.operator("sudo head -n 1 /proc/1/maps").startswith("555555554000")
    site.operator("sudo systemd-run -q -p Type=exec systemd-socket-activate -l 8888 --accept --inetd echo hello")
    inside = "for i in $(seq 50); do bash -c 'cat </dev/tcp/127.0.0.1/8888' 2>/dev/null && break; sleep 0.2; done"
    assert site.operator(inside) == "hello\n"
    assert answer_of(site.kimbox.json("status", "vault")["forwards"]["8888"]) == b""
    line = site.operator("grep 'fe80.* eth0' /proc/net/if_inet6").split()[0]
    with wired(Machine("vault"), ":".join(line[i : i + 4] for i in range(0, 32, 4)), tmp_path) as wire:
        wire.introduce()
        for port in (*range(1, 1024), 8888, 11300, 22):
            wire.knock(port)
        until("answers of both families", lambda: wire.opened(6) == wire.opened(4) == {22}, limit_s=60)
        assert (wire.answered(6), wire.answered(4)) == ({22}, {22})
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"/dev/tcp/10.0.2.2/{server.getsockname()[1]}"
        reach = f"timeout 20 bash -c ': <{target}' 2>/dev/null && echo out || echo shut"
        assert site.operator(reach) == "shut\n"
        assert site.kimbox.sh("hand", reach) == "out\n"


def answer_of(port: int) -> bytes:
    """Returns the first bytes that a port of this host sends within three seconds, or empty bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        try:
            return connection.recv(5)
        except (TimeoutError, ConnectionError):
            return b""


def test_security_updates_are_automatic(site: Site) -> None:
    """The archive has a host name in the spec. The box can connect to it as soon as the name has an address."""
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


def test_the_clock_is_set_from_the_servers_of_the_spec(site: Site) -> None:
    """The client of the image runs, asks that server alone, and may reach it. The host of the test has no server."""
    assert site.operator("systemctl is-active systemd-timesyncd") == "active\n"
    servers = site.operator("timedatectl show-timesync -p SystemNTPServers -p FallbackNTPServers -p ServerName")
    assert set(servers.splitlines()) == {"SystemNTPServers=10.0.2.2", "FallbackNTPServers=", "ServerName=10.0.2.2"}
    assert "10.0.2.2 . udp . 123" in site.operator("sudo nft list set inet kimbox outbound4")


def test_the_site_refuses_and_accepts(site: Site, tmp_path: Path) -> None:
    """A wrong password changes nothing. With the right one, the second command for both boxes makes a sealed worker."""
    kimbox = site.kimbox
    refused = secure(kimbox, "wrong", "hand", "--site", "example.org", "--username", "alice", check=False)
    assert refused.code == 4
    assert "does not accept alice" in refused.stderr
    assert kimbox.json("status", "hand")["state"] == "ready"
    assert kimbox.sh("hand", "sudo ls /persistent/secure 2>/dev/null || echo none") == "none\n"
    secure(kimbox, PASSWORD, "--site", "example.org", "--username", "alice")
    status = kimbox.json("status", "hand")
    assert (status["state"], status["sealed"]) == ("sealed", {"role": "worker", "site": "example.org"})


def done_jobs() -> int:
    """Returns the number of done jobs that the director has reported last in this boot."""
    counts = [event.text("done") for event in Machine("vault").boot_events() if event.name == "jobs"]
    return int(counts[-1]) if counts else 0


def has_report(name: str) -> bool:
    """Whether a box has sent an audit report in this run."""
    return newest(read_end(Machine(name).audit_log, LOG_BYTES)) is not None


def test_twenty_jobs_are_done_though_both_boxes_are_reset(site: Site, tmp_path: Path) -> None:
    """Every job has one result with the expected values, and with the box that computed it."""
    until("the first results", lambda: done_jobs() >= 3, limit_s=900)
    for name in ("vault", "hand"):
        qmp.execute(Machine(name).qmp_socket, "system_reset")
    until("all results", lambda: done_jobs() == len(JOBS), limit_s=1800)
    assert site.kimbox.json("status", "vault")["jobs"]["done"] == len(JOBS)
    until("the report of the worker", lambda: has_report("hand"))
    assert site.kimbox.json("audit", "hand")["breaches"] == []
    health = site.kimbox.json("status", "hand")["health"]
    assert max(health["link_age_s"], health["last_job_age_s"]) < 600
    assert health["snapshot_percent"] in range(100)
    assert health["clock_synchronised"] is None  # its spec names no time server
    site.sftp(tmp_path, f"get -r results {tmp_path}/")
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


def test_a_worker_whose_key_was_removed_is_shut_out(site: Site, tmp_path: Path) -> None:
    """Each worker has left a key of its own at the gateway. Without it, its connection ends, and it gets no other."""
    until("the tunnel of the worker", lambda: site.connections_of_workers() > 0, every_s=PROGRAM_PAUSE_S)
    (name,) = [line for line in site.sftp(tmp_path, "ls -1 keys/worker").stdout.splitlines() if "sftp>" not in line]
    assert re.fullmatch(r"keys/worker/hand-[0-9a-f]{8}\.pub", name)
    assert site.operator("wc -l </etc/ssh/pipeline_worker_keys") == "1\n"
    site.sftp(tmp_path, f"rm {name}")
    until("its connections end", lambda: site.connections_of_workers() == 0, every_s=PROGRAM_PAUSE_S)
    assert site.operator("cat /etc/ssh/pipeline_worker_keys") == ""
    refused = site.sftp(tmp_path, f"put {tmp_path}/askpass results/x", check=False)
    assert "Permission denied" in refused.stderr


def test_no_secret_is_left_about(site: Site, tmp_path: Path) -> None:
    """No file, process or disk contains the password. The only private key is the host key, also at the director.

    A sealed box is not packaged.
    """
    kimbox, secret = site.kimbox, PASSWORD.encode()
    for folder in (Machine("hand").folder, Machine("vault").folder, kimbox.folder):
        texts = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".qcow2"]
        assert [path for path in texts if secret in path.read_bytes()] == []
    assert [line for line in command_lines() if secret in line] == []
    keys = site.operator("sudo grep -rlI 'OPENSSH PRIVATE KEY' /persistent /etc /home /root /srv /var || true")
    assert keys == "/persistent/ssh/ssh_host_ed25519_key\n"
    kimbox("halt", "hand")
    assert disk_check(kimbox, "hand") == ("pass", [])
    refused = kimbox.json("package", "hand", "--format", "raw", "--output", str(tmp_path / "package"), check=False)
    assert (refused["exit_code"], "sealed" in refused["message"]) == (5, True)
    assert not (tmp_path / "package/hand.raw").exists()
    raw = tmp_path / "hand.raw"
    run.run(["qemu-img", "convert", "-O", "raw", Machine("hand").disk, raw])
    found = found_on(raw, re.escape(secret), rb"KIMBOX_VERSION=", PRIVATE_KEY)
    assert secret not in found
    assert b"KIMBOX_VERSION=" in found  # the search itself works
    assert len(found) == 2  # the version, and one key


def write_step(kimbox: Kimbox, script: str) -> None:
    """Changes the spec of the worker: its step `pins` has this script, and a new manifest the host."""
    spec = kimbox.folder / "hand.yaml"
    spec.write_text(f"{spec.read_text().partition('provision:')[0]}provision: [{{name: pins, script: '{script}'}}]\n")


def test_new_credentials(site: Site) -> None:
    """A sealed box requests new credentials at a start. If this fails, it keeps the old ones and reports the reason.

    A worker that was shut out gets a new key in this way. The same start brings the manifest of the present spec.
    """
    kimbox = site.kimbox
    former = kimbox.json("status", "hand")["manifest"]
    write_step(kimbox, "true")
    failed = secure(kimbox, "wrong", "hand", "--rotate", "--username", "alice", check=False)
    assert failed.code == 4
    assert "does not accept alice" in failed.stderr
    status = kimbox.json("status", "hand")
    assert (status["state"], status["wanted"], status["failure"]) == ("sealed", None, None)
    assert status["manifest"] == status["provenance"]["manifest"] != former
    assert "new credentials" in secure(kimbox, PASSWORD, "hand", "--rotate", "--username", "alice").stdout
    assert kimbox.json("status", "hand")["state"] == "sealed"
    assert not Machine("hand").rotate_file.exists()
    until("a report after it", lambda: has_report("hand"))
    assert kimbox.json("audit", "hand")["breaches"] == []
    until("the tunnel with the new key", lambda: site.connections_of_workers() > 0, every_s=PROGRAM_PAUSE_S)
    for name in ("hand", "vault"):
        assert after_sealed(name) == {"sealed"}


@pytest.mark.soak
def test_a_bad_manifest_leaves_a_box_sealed(site: Site) -> None:
    """It goes back to the last good manifest by itself, and reports the reason. `hand` is then as before."""
    kimbox = site.kimbox
    if kimbox.json("status", "hand")["sealed"] is None:
        secure(kimbox, PASSWORD, "hand", "--site", "example.org", "--username", "alice")
    good = kimbox.json("status", "hand")["manifest"]
    write_step(kimbox, "exit 7")
    failed = kimbox.json("reload", "hand", check=False)
    assert (failed["exit_code"], failed["code"], failed["fields"]["state"]) == (4, "manifest-failed", "sealed")
    status = kimbox.json("status", "hand")
    assert (status["state"], status["manifest"], status["wanted"]) == ("sealed", good, failed["fields"]["manifest"])
    assert status["reason"] == "provision pins: ended with status 7"
    until("a report after it", lambda: has_report("hand"))
    assert kimbox.json("audit", "hand")["breaches"] == []
    write_step(kimbox, "true")


def after_sealed(name: str) -> set[str]:
    """Returns the names of the state events that follow the event `sealed` in the same boot, for all boots."""
    events: dict[str, list[str]] = {}
    for event in Tail(Machine(name).events_file).read():
        if event.name in ("booting", "waiting", "provisioning", "ready", "sealed", "failed"):
            events.setdefault(event.boot, []).append(event.name)
    return {later for names in events.values() if "sealed" in names for later in names[names.index("sealed") + 1 :]}


def test_a_gateway_slows_guessing(site: Site, tmp_path: Path) -> None:
    """After three wrong passwords it accepts none of that user, not even the right one. Logins by key go on."""
    for password in ("wrong", "wrong", "wrong", PASSWORD):
        refused = site.sftp(tmp_path, "pwd", password=password, check=False)
        assert (refused.ok, "Permission denied" in refused.stderr) == (False, True)
    assert site.operator("echo in") == "in\n"
    assert site.connections_of_workers() > 0


def test_an_intruder_leaves_nothing(site: Site) -> None:
    """Root in a sealed box writes everywhere. The host names what; after its next start nothing of it is there or runs.

    It takes one start of the director, at another port of this host: its worker reaches it by their network.
    """
    kimbox, machine = site.kimbox, Machine("vault")
    assert (
        site.operator("cat >/run/intrude && sh /run/intrude", as_root=True, input=INTRUDE.read_text()) == "intruded\n"
    )
    kimbox("halt", "vault")
    status, parts = disk_check(kimbox, "vault")
    assert status == "fail"
    written = {pristine.BOOT_LOADER, pristine.LVM, "LV root", "LV swap", "/boot/intruder", "/boot/grub/grubenv"}
    assert written <= set(parts)
    assert [part for part in parts if "/boot/initrd.img" in part] != []
    assert set(registry.of(machine).put_back(machine.record())) == set(parts)
    assert has_only_persistent(machine)
    port = machine.record().ssh_port
    with socket.create_server(("127.0.0.1", port)):
        assert kimbox.json("up", "vault")["before"] == "halted"
    status_now = kimbox.json("status", "vault")
    assert status_now["ssh_port"] != port
    until("the tunnel of the worker", lambda: site.connections_of_workers() > 0, every_s=PROGRAM_PAUSE_S)
    assert (status_now["state"], status_now["put_back"]["changed"]) == ("sealed", [])
    assert site.operator("ls -d /persistent/ran-* /boot/intruder 2>/dev/null; readlink /persistent/log; true") == ""
    assert site.operator("systemctl show -P LoadState intruder.service") == "not-found\n"
    assert "intruder" not in site.operator("sudo cat /persistent/secure/operator_keys")
    assert site.operator("sudo find /persistent/cache ! -type d -name '*evil*'") == ""
    assert site.operator("sudo find /persistent/kimbox/manifests -name '*evil*'") == ""
    assert "203.0.113.9" not in site.operator("sudo nft list table inet kimbox")
    assert site.operator("sudo ls /persistent/pipeline") != ""  # the data of the role


def test_the_audit_finds_each_breach(site: Site) -> None:
    """After the operator has opened everything, each of these checks fails, and every other check is as before."""
    before, after = reports(site.operator(breaches.script(), as_root=True).encode())
    # No time server answers, which is a breach 15 min after the start of the box. The kernel of this host may have no
    # limits of ports.
    assert {check.id for check in before.breaches} <= {"service.time"}
    assert {check.id for check in before.of(Status.FAIL)} - {"service.time"} == set(
        [] if limits_ports() else ["net.host"]
    )
    status = {check.id: check.status for check in before.checks if check.id != "service.time"}
    changed = {check.id: check for check in after.checks if check.status is not status.get(check.id, check.status)}
    assert set(changed) == breaches.expected()
    assert {check.status for check in changed.values()} == {Status.FAIL}
    transient = next(check for check in after.checks if check.id == "service.transient").found
    assert {"escaped.scope", "autovt@9.service"} <= set(transient.split(", "))


@pytest.mark.skipif(not limits_ports(), reason="this kernel has no Landlock with ports (Linux 6.7)")
def test_root_without_a_firewall_reaches_what_the_spec_names(site: Site) -> None:
    """The other services on 127.0.0.1 of this host stay closed to the box."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = (server.getsockname()[1], site.port)
        targets = " ".join(f"/dev/tcp/10.0.2.2/{port}" for port in ports)
        reach = (
            f"for target in {targets}; do timeout 20 bash -c ': <'$target 2>/dev/null && echo out || echo shut; done"
        )
        assert site.operator(f"nft flush ruleset; {reach}", as_root=True) == "shut\nout\n"


def test_a_box_without_its_marks_stays_closed(site: Site) -> None:
    """The mark on /persistent is removed. kimbox passes to the box that it is sealed, and the box opens nothing."""
    site.operator("sudo rm /persistent/kimbox/secured; sync")
    failed = site.kimbox.json("reload", "vault", check=False)
    assert (failed["exit_code"], "/persistent/kimbox/secured is missing" in failed["message"]) == (4, True)
    assert site.kimbox.json("status", "vault")["state"] == "crashed"


def test_unseal(site: Site) -> None:
    """A sealed box has no maintain mode. `--unseal` removes its secrets and opens it as it was before."""
    kimbox = site.kimbox
    refused = kimbox.json("reload", "hand", "--boot", "maintain", check=False)
    assert (refused["exit_code"], "--unseal" in refused["hint"]) == (5, True)
    assert kimbox.json("status", "hand")["state"] == "sealed"
    kimbox("secure", "hand", "--unseal", "--yes")
    assert not Machine("hand").data_key.exists()
    status = kimbox.json("status", "hand")
    assert (status["state"], status["boot"], status["sealed"]) == ("ready", "maintain", None)
    assert kimbox.sh("hand", "ls -A /persistent").split() == [
        "cache", "log", "lost+found", "runsecure", "runsetup", "ssh", "status.json",
    ]  # fmt: skip
    # As after a kimbox that was killed before it removed the mark: the box reports it again.
    Machine("hand").unseal_mark.touch()
    kimbox("secure", "hand", "--unseal", "--yes")
    assert not Machine("hand").unseal_mark.exists()
    assert kimbox.json("reload", "hand")["state"] == "ready"
    box = json.loads(kimbox.sh("hand", "cat /etc/kimbox/box.json"))
    assert (box["role"], box["site"]) == ("dev", "")
