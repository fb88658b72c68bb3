"""The audit of provisioners/secure: no check fails in a sealed box, and the audit detects each kind of breach."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jsonschema
import makeaudited
import pytest
from auditholes import (
    CAP_SETUID,
    HOLES,
    KEY,
    MAPPED_LOOPBACK,
    PASSWORDS,
    POLICY,
    UPDATES,
    Hole,
    folder,
    listens,
    makes,
    matches,
    rule,
    sets,
)
from fakeguest import needs_namespace
from makeaudited import AuditedBox

from kimbox import paths
from kimbox.guest import audit
from kimbox.guest.audit import Status

pytestmark = needs_namespace


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditedBox:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return AuditedBox(tmp_path / "box")


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


def test_every_check_can_fail(box: AuditedBox) -> None:
    """Each check of the report fails by one of the holes, or in a test below that needs root or a list of updates."""
    by_other_tests = {"file.unowned", "file.device", "file.devices", "file.capabilities", "package.updates"}
    never = {"package.count"}  # for information
    assert set(box.rows()) == set.union(by_other_tests, never, *(failed for failed, _ in HOLES.values()))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away and make devices")
def test_what_only_root_can_leave_is_found(box: AuditedBox) -> None:
    """Files of a removed account, a device outside of /dev, and a device in /dev that every user can open."""
    box.write("srv/orphan", "x")
    os.chown(box.path("/srv/orphan"), 4242, 0)
    box.write("srv/group", "x")
    os.chown(box.path("/srv/group"), 0, 4242)
    box.write("persistent/cache/vagrant/wheel", "x")  # of the account that runs steps at the next start
    os.chown(box.path("/persistent/cache/vagrant/wheel"), 4242, 4242)
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


def test_an_operator_needs_no_port_of_the_role(box: AuditedBox) -> None:
    """With keys of an operator sshd listens on port 22, which only the host can reach."""
    box.replace(POLICY, "INBOUND='22'", "INBOUND=''")
    box.replace("data/nft", "elements = { 22 }", "")
    box.write("run/kimbox/seal.nft.sha256", f"{makeaudited.digest_of(box.path('/data/nft'))}  -\n")
    assert {"net.tcp", "service.running"} == box.failed()
    box.replace(POLICY, "OPERATOR=''", "OPERATOR='yes'")
    assert set() == box.failed()
    listens("tcp", ("00000000", 2222, "0A", 0))(box)
    assert ("2222 (tcp)", "loopback alone, and 22 for the operator") == tuple(
        box.rows()["net.tcp"][key] for key in ("found", "expected")
    )


def test_a_password_that_the_role_gives_is_told(box: AuditedBox) -> None:
    """The gateway of a site takes the password of its user: the check passes, and says so."""
    box.replace(POLICY, "GATEWAY_HOST='10.0.2.9'", "GATEWAY_HOST=''")
    box.write("data/sshd.of.me", f"{PASSWORDS}\n")
    box.append("etc/passwd", "me:x:1002:1001::/nowhere:/usr/sbin/nologin\n")
    row = box.rows()["ssh.passwordauthentication"]
    assert ("pass", "no, and for worker me as the role decides") == (row["status"], row["expected"])
    assert "no, and yes for me" == row["found"]
    matches(PASSWORDS)(box)
    assert {"ssh.passwordauthentication"} == box.failed()


@pytest.mark.parametrize(
    ("file", "line", "asked"),
    [
        ("sshd_config", "Match all", {"worker"}),
        ("sshd_config", "MaxSessions 3", {"worker"}),
        ("sshd_config", "# Match User daemon", {"worker"}),
        ("sshd_config", "Include /etc/ssh/sshd_config.d/*.conf", {"worker"}),
        ("sshd_config.d/a.conf", "Match User worker", {"worker"}),
        ("sshd_config.d/a.conf", "Match User worker,daemon", {"worker", "daemon"}),
        ("sshd_config.d/a.conf", "  Match User daemon  ", {"worker", "daemon"}),
        *(
            (file, line, {"worker", "daemon", "root", "systemd-timesync"})
            for file in ("sshd_config", "sshd_config.d/a.conf")
            for line in (
                "Match User dae*", "Match User !worker", "Match User", "match user daemon", "Match Group daemon",
                "Match Address 10.0.2.2", "Match User daemon Address 10.0.2.2", "Match=User daemon",
                "Match\tUser daemon", '"Match" User daemon', "Match all User daemon", "Include /etc/other",
                "include sshd_config.d/*.conf",
            )
        ),
    ],
)  # fmt: skip
def test_each_account_that_a_match_block_may_name_is_asked_for(
    box: AuditedBox, file: str, line: str, asked: set[str]
) -> None:
    """Lines of other forms may name any account. The account of the role is always asked for."""
    box.append("etc/ssh/sshd_config", f"{line}\n") if file == "sshd_config" else box.write(f"etc/ssh/{file}", line)
    box.replace("usr/local/sbin/sshd", "#!/bin/sh\n", '#!/bin/sh\necho "loglevel $3"\n')
    assert asked == set(re.findall(r"user=([a-z-]+),host=", str(box.rows()["ssh.loglevel"]["found"])))


def test_keys_that_everybody_has_are_no_finding(box: AuditedBox) -> None:
    """Those of a package below /usr, and of the tests of a Python package."""
    box.write("usr/local/share/doc/key", KEY)
    box.write("usr/local/lib/python3.13/dist-packages/tornado/test/test.key", KEY)
    assert "/usr/local/share/doc/key" == box.rows()["secret.keys"]["found"]
    box.write("var/lib/dpkg/info/doc.list", "/.\n/usr/local/share/doc/key\n/opt/key\n")
    assert set() == box.failed()
    box.write("opt/key", KEY)  # a package may leave its own there, which nobody else has
    assert {"secret.keys"} == box.failed()


@pytest.mark.parametrize(
    ("expected", "severity", "servers", "tracking", "up"),
    [
        ("pass", "low", "", "A,1,Normal", 86400), ("fail", "low", "", "A,1,Not synchronised", 86400),
        ("info", "low", "", "", 60), ("pass", "medium", "10.0.2.9", "A,1,Normal", 86400),
        ("fail", "medium", "10.0.2.9", "", 86400),
    ],
)  # fmt: skip
def test_a_clock_by_chrony(box: AuditedBox, expected: str, severity: str, servers: str, tracking: str, up: int) -> None:
    """Its own report counts. A clock without an answer is a breach only if the spec names servers."""
    box.replace("data/units", "systemd-timesyncd.service", "chrony.service")
    box.append(POLICY, f"KIMBOX_TIME='{servers}'\n")
    box.write("usr/local/sbin/chronyc", f"#!/bin/sh\necho '{tracking}'\n", 0o755)
    box.write("proc/uptime", f"{up}.12 1.00\n")
    row = box.rows()["service.time"]
    assert (expected, severity) == (row["status"], row["severity"])


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
