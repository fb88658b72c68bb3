"""What opens a sealed box: each entry of `HOLES` breaks one thing, and names the checks of the audit that must fail."""

from __future__ import annotations

import struct
from collections.abc import Callable

import makeaudited
from makeaudited import AuditedBox

Hole = Callable[[AuditedBox], object]

POLICY = "persistent/secure/policy.env"
MOUNTS = "proc/self/mounts"


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


def matches(option: str) -> Hole:
    """A Match block for an account that the role does not have."""

    def dig(box: AuditedBox) -> None:
        box.append("etc/ssh/sshd_config", "Match User root,daemon\n")
        box.write("data/sshd.match", f"{option}\n")

    return dig


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

#: Checks of kernel settings: without those that the kernel of the test has no setting for.
SETTINGS = [
    "randomize_va_space", "yama.ptrace_scope", "fs.suid_dumpable", "fs.protected_hardlinks",
    "fs.protected_symlinks", "fs.protected_fifos", "fs.protected_regular", "kptr_restrict", "dmesg_restrict",
    "unprivileged_bpf_disabled", "kexec_load_disabled", "modules_disabled", "sysrq", "perf_event_paranoid",
    "core.bpf_jit_harden", "ipv4.ip_forward", "ipv6.forwarding", "ipv4.send_redirects", "ipv4.accept_redirects",
    "ipv4.icmp_ignore_bogus_error_responses", "ipv4.icmp_echo_ignore_broadcasts", "ipv6.accept_redirects",
    "ipv4.all.secure_redirects", "ipv4.all.rp_filter", "ipv4.accept_source_route", "ipv6.accept_source_route",
    "ipv4.all.log_martians", "ipv4.tcp_syncookies", "ipv6.accept_ra", "user_namespaces",
]  # fmt: skip

#: Options of sshd with values that open something.
OPTIONS = [
    "passwordauthentication yes", "kbdinteractiveauthentication yes", "permitemptypasswords yes",
    "permitrootlogin yes", "hostbasedauthentication yes", "ignorerhosts no", "permituserenvironment yes",
    "x11forwarding yes", "gssapiauthentication yes", "permittunnel yes",
    "authorizedkeysfile .ssh/authorized_keys", "authorizedkeyscommand /bin/true",
    "trustedusercakeys /etc/ssh/ca", "usepam no", "loglevel QUIET",
]  # fmt: skip

#: Checks of mounts, and mounts that fail them.
MOUNTED = (
    "tmp", "tmp_noexec", "shm", "shm_noexec", "home", "var_tmp", "persistent", "boot", "run", "others"
)  # fmt: skip
OPEN_MOUNTS = [
    f"x {place} ext4 rw 0 0\n"
    for place in ("/", "/tmp", "/dev/shm", "/home", "/var/tmp", "/persistent", "/boot", "/run", "/mnt")
]

HOLES: dict[str, tuple[set[str], Hole]] = {
    "TCP": ({"net.tcp"}, listens("tcp", ("00000000", 2323, "0A", 0))),
    "TCP on one address": ({"net.tcp"}, listens("tcp", ("0F02000A", 80, "0A", 0))),
    "TCP on IPv6": ({"net.tcp"}, listens("tcp6", (ANYWHERE6, 2323, "0A", 0))),
    "UDP": ({"net.udp"}, listens("udp", ("00000000", 111, "07", 0))),
    "UDP on IPv6": ({"net.udp"}, listens("udp6", (ANYWHERE6, 53, "07", 0))),
    "UDP of an account": ({"net.udp"}, listens("udp", ("00000000", 40124, "07", 1001))),
    "every service of the host": (
        {"net.host"}, lambda box: box.path("/run/credentials/@system/kimbox.connects_to").unlink()
    ),
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
        matches("authorizedkeysfile /run/kimbox/authorized_keys/%u .ssh/authorized_keys"),
    ),
    "an authority": ({"ssh.trustedusercakeys"}, matches("trustedusercakeys /etc/ssh/ca")),
    "passwords by ssh": ({"ssh.passwordauthentication"}, changes("data/sshd", "passwordauthentication no", PASSWORDS)),
    "passwords of the operator": (
        {"ssh.passwordauthentication"},
        lambda box: (
            box.append("etc/passwd", "operator:x:1002:1001::/nowhere:/bin/bash\n"),
            box.append("etc/shadow", "operator:!:20000::::::\n"),
            box.replace(POLICY, "OPERATOR=''", "OPERATOR='yes'"),
            box.write("data/sshd.of.operator", f"{PASSWORDS}\n"),
            box.append("etc/ssh/sshd_config", "Match User operator\n"),
        ),
    ),
    "root by ssh": ({"ssh.permitrootlogin"}, changes("data/sshd", "rootlogin no", "rootlogin without-password")),
    "ssh of one account": ({"ssh.x11forwarding"}, matches("x11forwarding yes")),
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
    "a key in /opt": ({"secret.keys"}, makes("opt/a b/deep/er/in/a/very/deep/folder/id", 0o644, KEY)),
    "a key in the cache": ({"secret.keys"}, makes("persistent/cache/id", 0o644, KEY)),
    "a key below /usr that no package has": ({"secret.keys"}, makes("usr/local/src/id", 0o644, KEY)),
    "a key in memory": ({"secret.keys"}, makes("run/id", 0o644, KEY)),
    "a key in a log": ({"secret.logs", "secret.keys"}, adds("persistent/log/provision.log", KEY)),
    "pointers of the kernel": ({"kernel.kptr_restrict"}, sets("kernel/kptr_restrict", 0)),
    "modules": ({"kernel.modules_disabled"}, sets("kernel/modules_disabled", 0)),
    "one interface": ({"kernel.ipv6.accept_ra"}, sets("net/ipv6/conf/eth0/accept_ra", 1)),
    "no AppArmor": ({"kernel.apparmor"}, makes("sys/module/apparmor/parameters/enabled", 0o444, "N\n")),
    "a profile that only reports": (
        {"kernel.apparmor_profiles"}, adds("sys/kernel/security/apparmor/profiles", "tool (complain)\n")
    ),
    "user namespaces": ({"kernel.user_namespaces"}, sets("kernel/unprivileged_userns_clone", 1)),
    "a router's setting": ({"kernel.ipv4.ip_forward"}, sets("net/ipv4/ip_forward", 1)),
    "a service": ({"service.running"}, runs("evil.service")),
    "a scope": ({"service.transient"}, adds("data/units", "run-r1.scope loaded active running x\n")),
    "a transient unit": ({"service.transient"}, makes("run/systemd/transient/run-u1.timer", 0o644)),
    "a unit in memory": ({"service.transient"}, makes("run/systemd/system/evil.path", 0o644)),
    "no clock": ({"service.time"}, changes("data/units", "timesyncd.service loaded active running", "x loaded")),
    "no answer": ({"service.time"}, lambda box: box.path("/run/systemd/timesync/synchronized").unlink()),
    "a timer": ({"service.timers"}, adds("data/units", "evil.timer loaded active waiting x\n")),
    "a job of cron": ({"service.cron"}, makes("etc/cron.d/evil", 0o644)),
    "a job of an account": ({"service.cron"}, makes("var/spool/cron/crontabs/worker", 0o600)),
    "a package that is to go": ({"package.removed"}, installed("gcc")),
    "a server": ({"package.unwanted"}, installed("rpcbind")),
    "no seal": ({"box.sealed"}, lambda box: box.path("/persistent/kimbox/secured").unlink()),
    "no digest": ({"fw.changed"}, lambda box: box.path("/run/kimbox/seal.nft.sha256").unlink()),
    "an account without a group": ({"account.no_group"}, adds("etc/passwd", "lost:x:1002:4242::/nowhere:/bin/false\n")),
    "the boot menu for all": ({"file.grub"}, lambda box: box.path("/boot/grub/grub.cfg").chmod(0o644)),
    "a rare protocol": ({"kernel.protocols"}, adds("proc/modules", "sctp 1 0 - Live 0x0\n")),
    "core dumps": ({"kernel.cores"}, changes("etc/security/limits.conf", "hard core 0", "soft core 0")),
    "a unit that failed": ({"service.failed"}, adds("data/units", "networking.service loaded failed failed x\n")),
    "no journal": ({"service.journal"}, changes("data/units", "journald.service loaded active running", "x loaded")),
    "every setting of the kernel": (
        {f"kernel.{name}" for name in SETTINGS},
        lambda box: [sets(name, 9)(box) for name in makeaudited.SETTINGS],
    ),
    "every option of sshd": (
        {f"ssh.{line.split()[0]}" for line in OPTIONS}, makes("data/sshd", 0o644, "\n".join(OPTIONS))
    ),
    "every mount": ({f"mount.{name}" for name in MOUNTED}, makes(MOUNTS, 0o444, "".join(OPEN_MOUNTS))),
}  # fmt: skip
