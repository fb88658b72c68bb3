"""The audit of provisioners/secure: no check fails in a sealed box, and the audit detects each kind of breach."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import jsonschema
import makeaudited
import pytest
from fakeguest import needs_namespace
from makeaudited import AuditedBox

from kimbox import paths
from kimbox.guest import audit
from kimbox.guest.audit import Status

pytestmark = needs_namespace

Hole = Callable[[AuditedBox], object]

POLICY = "persistent/secure/policy.env"
MOUNTS = "proc/self/mounts"


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditedBox:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return AuditedBox(tmp_path / "box")


def listens(name: str, *rows: tuple[str, int, str, int]) -> Hole:
    return lambda box: box.listen(name, [*makeaudited.LISTENING[name], *rows])


def rule(chain: str, text: str) -> Hole:
    """Returns a function that adds a rule at the start of a chain."""
    first = f"hook {chain} priority filter; policy drop;\n"
    return changes("data/nft", first, f"{first}{text}\n")


def adds(name: str, text: str) -> Hole:
    return lambda box: box.append(name, text)


def changes(name: str, old: str, new: str) -> Hole:
    return lambda box: box.replace(name, old, new)


def makes(name: str, mode: int, text: str = "x\n") -> Hole:
    return lambda box: box.write(name, text, mode)


def folder(name: str, mode: int) -> Hole:
    def make(box: AuditedBox) -> None:
        box.path(name).mkdir(parents=True)
        box.path(name).chmod(mode)

    return make


def sets(name: str, value: int) -> Hole:
    return makes(f"proc/sys/{name}", 0o644, f"{value}\n")


def runs(unit: str) -> Hole:
    return adds("data/units", f"{unit} loaded active running x\n")


def installed(package: str) -> Hole:
    return adds("var/lib/dpkg/status", f"\nPackage: {package}\nStatus: install ok installed\n")


UPDATES = "KIMBOX_UPDATES='yes'\n"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n"
ANYWHERE6 = "0" * 32
CAP_SETUID = struct.pack("<5I", 0x02000001, 1 << 7, 0, 0, 0)
PASSWORDS = "passwordauthentication yes"
INPUT = "input priority filter; policy "
POLICIES = {"fw.input", "fw.forward", "fw.output"}
MAPPED_LOOPBACK = "0000000000000000FFFF00000100007F"

HOLES: dict[str, tuple[set[str], Hole]] = {
    "TCP": ({"net.tcp"}, listens("tcp", ("00000000", 2323, "0A", 0))),
    "TCP on one address": ({"net.tcp"}, listens("tcp", ("0F02000A", 80, "0A", 0))),
    "TCP on IPv6": ({"net.tcp"}, listens("tcp6", (ANYWHERE6, 2323, "0A", 0))),
    "UDP": ({"net.udp"}, listens("udp", ("00000000", 111, "07", 0))),
    "UDP on IPv6": ({"net.udp"}, listens("udp6", (ANYWHERE6, 53, "07", 0))),
    "UDP of an account": ({"net.udp"}, listens("udp", ("00000000", 40124, "07", 1001))),
    "no firewall": ({*POLICIES, "fw.changed"}, makes("data/nft", 0o644, "")),
    "input accepts": ({"fw.input", "fw.changed"}, changes("data/nft", f"{INPUT}drop", f"{INPUT}accept")),
    "another family": ({*POLICIES, "fw.changed"}, changes("data/nft", "table inet", "table ip")),
    "a port": ({"fw.accepts", "fw.changed"}, rule("input", "tcp dport 2323 accept")),
    "ports": ({"fw.accepts", "fw.changed"}, rule("input", "tcp dport { 22, 80 } accept")),
    "every port": ({"fw.accepts", "fw.changed"}, rule("input", "counter packets 0 bytes 0 accept")),
    "a network": ({"fw.accepts", "fw.changed"}, rule("input", 'iifname "eth0" accept comment "x"')),
    "another chain": ({"fw.accepts", "fw.changed"}, rule("input", "jump more")),
    "a port in the set": ({"fw.accepts", "fw.changed"}, changes("data/nft", "{ 22 }", "{ 22,\n 2323 }")),
    "the host without an operator": (
        {"fw.accepts", "fw.changed"},
        changes("data/nft", "type ipv4_addr\n", "type ipv4_addr\nelements = { 10.0.2.2 }\n"),
    ),
    "a router": ({"fw.forwards", "fw.changed"}, rule("forward", "accept")),
    "everything out": ({"fw.sends", "fw.changed"}, rule("output", "meta skuid 0 accept")),
    "another host": (
        {"fw.sends", "fw.changed"}, changes("data/nft", "10.0.2.9 . tcp", "203.0.113.9 . tcp . 443,\n10.0.2.9 . tcp")
    ),
    "a name server": (
        {"fw.sends", "fw.changed"}, changes("data/nft", "set hypervisor4 {", "set resolvers4 {\nelements = { 8.8.8.8 }")
    ),
    "a name server for every account": (
        {"fw.sends", "fw.changed"}, changes("data/nft", "type uid\n", "type uid\nelements = { 0, 1001 }\n")
    ),
    "keys elsewhere": (
        {"ssh.authorizedkeysfile"},
        makes("data/sshd.match", 0o644, "authorizedkeysfile /run/kimbox/authorized_keys/%u .ssh/authorized_keys\n"),
    ),
    "an authority": ({"ssh.trustedusercakeys"}, makes("data/sshd.match", 0o644, "trustedusercakeys /etc/ssh/ca\n")),
    "passwords by ssh": ({"ssh.passwordauthentication"}, changes("data/sshd", "passwordauthentication no", PASSWORDS)),
    "root by ssh": ({"ssh.permitrootlogin"}, changes("data/sshd", "rootlogin no", "rootlogin without-password")),
    "ssh of one account": ({"ssh.x11forwarding"}, makes("data/sshd.match", 0o644, "x11forwarding yes\n")),
    "a password": ({"account.password"}, changes("etc/shadow", "daemon:*", "daemon:$y$j9T$x")),
    "no password": ({"account.empty"}, changes("etc/shadow", "worker:!", "worker:")),
    "root's password": (
        {"account.password", "account.login", "account.root"},
        changes("etc/shadow", "root:*", "root:$y$j9T$x"),
    ),
    "root's key": ({"account.login"}, makes("root/.ssh/authorized_keys", 0o600)),
    "a key without a shell": ({"account.login"}, makes("run/kimbox/authorized_keys/daemon", 0o600)),
    "vagrant": (
        {"account.login", "account.vagrant", "account.password", "sudo.rules"},
        lambda box: (
            box.append("etc/passwd", "vagrant:x:1000:1001::/nowhere:/bin/bash\n"),
            box.append("etc/shadow", "vagrant:$6$x:20000::::::\n"),
            box.write("etc/sudoers.d/vagrant", "vagrant ALL=(ALL) NOPASSWD: ALL\n", 0o440),
        ),
    ),
    "another root": ({"account.root_alike", "account.twice"}, adds("etc/passwd", "toor:x:0:0::/root:/bin/false\n")),
    "a hash for all to read": (
        {"account.shadowed", "account.password", "account.login"},
        adds("etc/passwd", "old:$1$x:1002:1001::/nowhere:/bin/sh\n"),
    ),
    "a member of disk": ({"account.groups"}, changes("etc/group", "disk:x:6:", "disk:x:6:worker")),
    "in disk at once": ({"account.groups"}, adds("etc/passwd", "d:x:1002:6::/nowhere:/usr/sbin/nologin\n")),
    "a shell for a service": ({"account.system_shell"}, changes("etc/passwd", "sbin:/usr/sbin/nologin", ":/bin/sh")),
    "an open home": ({"account.homes"}, lambda box: box.path("/home/worker").chmod(0o770)),
    "sudo for a group": (
        {"sudo.rules", "account.groups"},
        changes("etc/group", "sudo:x:27:", "sudo:x:27:worker"),
    ),
    "sudo for a primary group": ({"sudo.rules"}, adds("etc/sudoers.d/README", "%worker ALL=(ALL) ALL\n")),
    "sudo for the number of a group": ({"sudo.rules"}, adds("etc/sudoers.d/README", "%#1001 ALL=(ALL) ALL\n")),
    "sudo for a group of another system": ({"sudo.rules"}, adds("etc/sudoers.d/README", "%:domain ALL=(ALL) ALL\n")),
    "sudo over two lines": ({"sudo.rules"}, adds("etc/sudoers", "worker \\\n ALL=(ALL) ALL\n")),
    "sudo by number": ({"sudo.rules"}, adds("etc/sudoers", "#1001 ALL=(ALL) ALL\n")),
    "another folder for sudo": ({"sudo.rules"}, adds("etc/sudoers", "@includedir /home/worker\n")),
    "a console": ({"console.login", "service.running"}, runs("serial-getty@ttyS0.service")),
    "a shell on a console": ({"console.login", "service.running"}, runs("debug-shell.service")),
    "suid in /tmp": ({"mount.tmp"}, changes(MOUNTS, "/tmp tmpfs rw,nosuid", "/tmp tmpfs rw")),
    "devices on /persistent": ({"mount.persistent"}, changes(MOUNTS, "ext4 rw,nosuid,nodev 0 0", "ext4 rw,nosuid 0 0")),
    "another disk": ({"mount.others"}, adds(MOUNTS, "/dev/vdb /mnt/usb vfat rw 0 0\n")),
    "set-uid": ({"file.set_uid"}, makes("usr/local/bin/sh", 0o4755)),
    "set-gid": ({"file.set_uid"}, makes("persistent/log/x", 0o2755)),
    "sudo without an operator": ({"file.set_uid"}, makes("srv/usr/bin/sudo", 0o4755)),
    "a file for all": ({"file.writable"}, makes("etc/profile", 0o666)),
    "a folder for all": ({"file.writable"}, folder("srv/drop", 0o777)),
    "a public folder": ({"file.public"}, folder("persistent/public", 0o1777)),
    "shadow for all": ({"file.shadow"}, lambda box: box.path("/etc/shadow").chmod(0o644)),
    "passwd of a group": ({"file.passwd"}, lambda box: box.path("/etc/passwd").chmod(0o664)),
    "rules of a group": ({"file.sudoers"}, makes("etc/sudoers.d/more", 0o660, "# none\n")),
    "a host key for a group": ({"file.host_keys"}, makes("persistent/ssh/ssh_host_rsa_key", 0o640, KEY)),
    "the configuration of sshd": ({"file.sshd_config"}, makes("etc/ssh/sshd_config.d/more.conf", 0o664)),
    "secrets for others": ({"secret.private"}, lambda box: box.path("/persistent/secure").chmod(0o755)),
    "a secret for others": ({"secret.private"}, lambda box: box.path("/" + POLICY).chmod(0o640)),
    "credentials in memory for others": ({"secret.private"}, folder("run/kimbox/credentials", 0o711)),
    "something beside": ({"secret.kept"}, makes("persistent/secure/notes", 0o600)),
    "a password beside": ({"secret.plain"}, adds("persistent/secure/answers.env", "KIMBOX_PASSWORD='x'\n")),
    "a key beside": ({"secret.kept", "secret.plain"}, makes("persistent/secure/id", 0o600, KEY)),
    "credentials not locked": ({"secret.plain"}, makes("persistent/secure/credentials.enc", 0o600, "me:word\n")),
    "a key for others": ({"secret.keys"}, makes("home/worker/.ssh/id", 0o644, KEY)),
    "a key in a log": ({"secret.logs", "secret.keys"}, adds("persistent/log/provision.log", KEY)),
    "pointers of the kernel": ({"kernel.kptr_restrict"}, sets("kernel/kptr_restrict", 0)),
    "modules": ({"kernel.modules_disabled"}, sets("kernel/modules_disabled", 0)),
    "one interface": ({"kernel.ipv6.accept_ra"}, sets("net/ipv6/conf/eth0/accept_ra", 1)),
    "user namespaces": ({"kernel.user_namespaces"}, sets("kernel/unprivileged_userns_clone", 1)),
    "a router's setting": ({"kernel.ipv4.ip_forward"}, sets("net/ipv4/ip_forward", 1)),
    "a service": ({"service.running"}, runs("evil.service")),
    "a timer": ({"service.timers"}, adds("data/units", "evil.timer loaded active waiting x\n")),
    "a job of cron": ({"service.cron"}, makes("etc/cron.d/evil", 0o644)),
    "a job of an account": ({"service.cron"}, makes("var/spool/cron/crontabs/worker", 0o600)),
    "a package that is to go": ({"package.removed"}, installed("gcc")),
    "a server": ({"package.unwanted"}, installed("rpcbind")),
    "no seal": ({"box.sealed"}, lambda box: box.path("/persistent/kimbox/secured").unlink()),
    "no digest": ({"fw.changed"}, lambda box: box.path("/run/kimbox/seal.nft.sha256").unlink()),
}  # fmt: skip


def test_a_sealed_box_has_no_breach(box: AuditedBox) -> None:
    """No check fails. Each line is valid by the schema. Role and site are those of the box, with all characters."""
    done = box.audit()
    schema = json.loads((paths.schemas_dir() / "audit.schema.json").read_text())
    for line in done.stdout.splitlines():
        jsonschema.validate(json.loads(line), schema)
    report = audit.newest(done.stdout.encode())
    assert report
    assert ("worker", 'café "north"', makeaudited.BOOT) == (report.role, report.site, report.boot)
    assert [] == [check.id for check in report.of(Status.FAIL)]
    assert len(report.of(Status.PASS)) > 90


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_of_each_kind_is_found(box: AuditedBox, name: str) -> None:
    """The checks of this breach fail, and no other checks."""
    expected, dig = HOLES[name]
    dig(box)
    assert expected == box.failed()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away and make devices")
def test_what_only_root_can_leave_is_found(box: AuditedBox) -> None:
    """Files of a removed account, a device outside of /dev, and a device in /dev that every user can open."""
    box.write("srv/orphan", "x")
    os.chown(box.path("/srv/orphan"), 4242, 0)
    box.write("srv/group", "x")
    os.chown(box.path("/srv/group"), 0, 4242)
    for device in ("/srv/disk", "/dev/vda"):
        os.mknod(box.path(device), 0o060600, os.makedev(254, 0))
    box.path("/dev/vda").chmod(0o604)
    rows = box.rows()
    assert {"file.unowned", "file.device", "file.devices"} == {
        name for name, c in rows.items() if c["status"] == "fail"
    }
    assert {"/srv/orphan", "/srv/group"} == set(rows["file.unowned"]["found"].split(", "))
    assert ("/srv/disk", "vda") == (rows["file.device"]["found"], rows["file.devices"]["found"])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can set capabilities")
def test_a_program_with_a_capability_is_found(box: AuditedBox) -> None:
    """A capability gives rights as a set-uid bit does. A link to such a program is not another one."""
    box.write("srv/a b\nc", "x", 0o755)
    os.setxattr(box.path("/srv/a b\nc"), "security.capability", CAP_SETUID)
    box.path("/srv/link").symlink_to("/srv/a b\nc")
    rows = box.rows()
    assert {"file.capabilities"} == {name for name, c in rows.items() if c["status"] == "fail"}
    assert "/srv/a b?c" == rows["file.capabilities"]["found"]


@pytest.mark.parametrize("setting", ["user/max_user_namespaces=0", "kernel/apparmor_restrict_unprivileged_userns=1"])
def test_user_namespaces_can_be_prevented_in_other_ways(box: AuditedBox, setting: str) -> None:
    """By a limit of none, and by AppArmor."""
    name, _, value = setting.partition("=")
    sets("kernel/unprivileged_userns_clone", 1)(box)
    sets(name, int(value))(box)
    assert set() == box.failed()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_key_may_be_for_the_group_of_a_role_s_account(box: AuditedBox) -> None:
    """A director uses this to distribute keys. Any other group is a breach."""
    for name, group in {"handed": 1001, "root": 0}.items():
        box.write(f"persistent/{name}", KEY, 0o640)
        os.chown(box.path(f"/persistent/{name}"), 0, group)
    assert set() == box.failed()
    os.chown(box.path("/persistent/handed"), 0, 1)
    assert "/persistent/handed" == box.rows()["secret.keys"]["found"]


@pytest.mark.parametrize(
    "dig",
    [
        listens("tcp6", (MAPPED_LOOPBACK, 25, "0A", 0)),
        rule("input", "tcp dport 22 accept"),
        rule("input", "ip saddr 10.0.2.2 tcp dport { 22 } ct state new accept"),
        rule("input", "udp sport 67 udp dport 68 accept"),
        rule("output", "ip daddr 10.0.2.3 udp dport 53 accept"),
        folder("tmp/.X11-unix", 0o1777),
        makes("etc/cron.daily/dpkg", 0o755),
        makes("etc/cron.d/e2scrub_all", 0o644),
    ],
)
def test_what_is_no_hole_is_let_pass(box: AuditedBox, dig: Hole) -> None:
    """Loopback in another notation, ports of the role, DHCP, host names, and files of base packages."""
    dig(box)
    assert box.failed() <= {"fw.changed"}


def test_the_policy_lets_pass_what_the_role_needs(box: AuditedBox) -> None:
    """The policy permits an operator with sudo, a service and timers of updates. Without it, each is a breach."""
    box.append("etc/passwd", "operator:x:1002:1001::/nowhere:/bin/bash\n")
    box.append("etc/shadow", "operator:!:20000::::::\n")
    box.write("run/kimbox/authorized_keys/operator", "ssh-ed25519 AAAA\n")
    box.write("etc/sudoers.d/operator", "operator ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    box.append("data/units", "apt-daily.timer loaded active waiting x\n")
    assert {"account.login", "sudo.rules", "service.timers"} == box.failed()
    box.replace(POLICY, "OPERATOR=''", "OPERATOR='yes'")
    box.replace(POLICY, "UPDATES=''", "UPDATES='yes'")
    assert set() == box.failed()
    box.path("/" + POLICY).unlink()
    strict = {"box.sealed", "net.tcp", "fw.accepts", "account.login", "sudo.rules", "service.running", "service.timers"}
    assert strict == box.failed()


def test_the_policy_is_read_and_never_run(box: AuditedBox) -> None:
    """No text in the policy is executed."""
    box.append(POLICY, "touch /data/ran\nKIMBOX_OPERATOR=$(touch /data/ran)\nKIMBOX_ROLE='$(touch /data/ran)'\n")
    done = box.audit()
    assert "$(touch /data/ran)" == json.loads(done.stdout.splitlines()[0])["role"]
    assert not (box.root.with_name("box.live") / "data/ran").exists()


@pytest.mark.parametrize(("expected", "last"), [(1, None), (8, "7\n"), (1, "x\n"), (1, "9" * 15), (1, "")])
def test_a_report_for_the_host_has_a_number(box: AuditedBox, expected: int, last: str | None) -> None:
    """The number after that of the last one. A report that somebody runs by hand has none."""
    if last is not None:
        box.write("run/kimbox/audit.sequence", last)
    for number, words in ((expected, ["--next"]), (0, [])):
        report = audit.newest(box.audit(*words).stdout.encode())
        assert report
        assert number == report.sequence


def test_names_of_files_cannot_break_the_report(box: AuditedBox) -> None:
    """The report is complete and bounded with line breaks, quotes and invalid UTF-8 in names, and with 1000 files."""
    box.path("/srv").mkdir()
    for name in (b'a\n{"end":true,"checks":1}', b'"\\\x1b[31m', b"\xff\xfe", "caf\u00e9".encode()):
        path = os.fsencode(box.path("/srv")) + b"/" + name
        os.close(os.open(path, os.O_CREAT, 0o600))
        Path(os.fsdecode(path)).chmod(0o666)
    found = box.rows()["file.writable"]["found"]
    for path in ('/srv/a?{"end":true,"checks":1}', '/srv/"\\\x1b[31m', "/srv/\ufffd\ufffd", "/srv/caf\u00e9"):
        assert path in found
    for number in range(1000):
        box.write(f"srv/{number:04}", "", 0o666)
    found = box.rows()["file.writable"]["found"]
    assert len(found) <= 1000
    listed = found.split(" ... and ")
    assert 1004 == len(listed[0].split(", ")) + int(listed[1].removesuffix(" more"))


@pytest.mark.parametrize(
    ("expected", "found", "upgrade"),
    [
        ("info", "libc6", "Inst libc6 [1] (2 Debian-Security:13/stable-security)\nInst bash [1] (2 Debian:13)\n"),
        ("info", "none", "Inst bash [1] (2 Debian:13)\n"),
        ("skip", "the box has no lists of packages", None),
    ],
)
def test_security_updates(box: AuditedBox, expected: str, found: str, upgrade: str | None) -> None:
    """Updates from a security archive are reported. Without package lists, the check is skipped."""
    if upgrade is None:
        box.path("/var/lib/apt/lists/archive_Packages").unlink()
    else:
        box.write("data/upgrade", upgrade)
    row = box.rows()["package.updates"]
    assert (expected, found) == (row["status"], row["found"])
    box.write("persistent/secure/policy.env", box.path("/persistent/secure/policy.env").read_text() + UPDATES, 0o600)
    if expected == "info":  # if the spec requires updates, they must be installed
        assert ("fail" if found == "libc6" else "pass") == box.rows()["package.updates"]["status"]


def test_a_box_without_sshd(box: AuditedBox) -> None:
    """Without sshd, the checks are skipped. An sshd that rejects its configuration is a breach."""
    box.write("usr/local/sbin/sshd", "#!/bin/sh\necho Bad configuration >&2; exit 255\n", 0o755)
    row = box.rows()["ssh.permitrootlogin"]
    assert ("fail", "Bad configuration") == (row["status"], row["found"])
    box.path("/proc/4711/comm").unlink()
    assert "skip" == box.rows()["ssh.permitrootlogin"]["status"]


def test_any_debian_gives_a_report(box: AuditedBox) -> None:
    """The report is complete with the /proc of this host, with ordinary programs and with few files."""
    for name in ("nft", "systemctl", "sshd", "apt-config", "apt-get"):
        box.write(f"usr/local/sbin/{name}", "#!/bin/sh\nexit 127\n", 0o755)
    for name in ("etc/shadow", "etc/sudoers", "var/lib/dpkg/status"):
        box.path(name).unlink()
    done = box.audit(host=True)
    assert (0, "") == (done.code, done.stderr)
    report = audit.newest(done.stdout.encode())
    assert report
    assert {"fw.input", "service.running", "account.login"} <= {check.id for check in report.breaches}
    # The file gives its content to one read only. A reader that reads single bytes, as the shell does, gets one byte.
    value = Path("/proc/sys/kernel/kptr_restrict").read_text().strip()
    row = next(check for check in report.checks if check.id == "kernel.kptr_restrict")
    assert ("as expected" if value in ("1", "2") else f"kernel/kptr_restrict = {value}") == row.found


def test_help_and_wrong_words(box: AuditedBox) -> None:
    """--help prints a description. Every other argument is refused."""
    assert "KIMBOX_INBOUND" in box.audit("--help").stdout
    assert (2, "usage: audit [--next]\n") == (box.audit("--all").code, box.audit("--all").stderr)
