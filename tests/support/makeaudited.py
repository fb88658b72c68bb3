"""A root folder like that of a sealed box without any breach. Tests add a breach and run the audit.

The scripts run at their real paths in a mount namespace. nft, systemctl, sshd, apt-config and apt-get are scripts that
print the files in /data, and /proc is a folder of files. Other programs are those of the host.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fakeguest import UNSHARE, FakeGuest

from kimbox.run import Completed, run

BOOT = "11111111-2222-4333-8444-555555555555"
AUDIT = "/usr/lib/kimbox/audit"

#: The root is copied into a tmpfs, so that a search of the root does not continue into the host's. With a second
#: argument, /proc is the real one.
_ENTER = """
mkdir -p "$1.live" && mount -t tmpfs -o mode=0755 none "$1.live" && cp -a "$1/." "$1.live/" || exit 99
[ -z "$2" ] || mount --rbind /proc "$1.live/proc" || exit 99
mount --rbind / "$1.live/host" || exit 99
root=$1.live
shift 2
exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""

_SYSTEMCTL = """#!/bin/sh
case $1 in
list-unit-files) cat /data/unit-files ;;
list-units) cat /data/units ;;
esac
"""

#: The rules that nft lists after `seal` has loaded them.
RULES = """\
table inet kimbox {
    set inbound {
        type inet_service
        elements = { 22 }
    }

    set hypervisor4 {
        type ipv4_addr
    }

    set resolving {
        type uid
    }

    set outbound4 {
        type ipv4_addr . inet_proto . inet_service
        flags timeout
        elements = { 10.0.2.9 . tcp . 22,
            10.0.2.10 . tcp . 443 timeout 2h expires 1h }
    }

    chain input {
        type filter hook input priority filter; policy drop;
        iif "lo" accept
        ct state established,related accept
        ct state invalid drop
        tcp dport @inbound ct state new accept
        ip saddr @hypervisor4 tcp dport 22 ct state new accept
        icmpv6 type { nd-neighbor-solicit, nd-router-advert, nd-neighbor-advert } ip6 hoplimit 255 accept
    }

    chain forward {
        type filter hook forward priority filter; policy drop;
    }

    chain output {
        type filter hook output priority filter; policy drop;
        oif "lo" accept
        ct state established,related accept
        ip daddr . meta l4proto . th dport @outbound4 accept
        meta l4proto { tcp, udp } reject with icmpx admin-prohibited
    }
}
"""

#: The content and the mode of each file of the box.
FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "systemd-timesync:x:991:991::/:/usr/sbin/nologin\nworker:x:1001:1001::/home/worker:/bin/sh\n",
        0o644,
    ),
    "etc/group": ("root:x:0:\ndaemon:x:1:\ndisk:x:6:\nsudo:x:27:\nsystemd-timesync:x:991:\nworker:x:1001:\n", 0o644),
    "etc/shadow": (
        "root:*:20000::::::\ndaemon:*:20000::::::\nsystemd-timesync:!*:20000::::::\nworker:!:20000::::::\n",
        0o640,
    ),
    "etc/gshadow": ("root:*::\n", 0o640),
    "etc/sudoers": (
        "# who\nDefaults use_pty\nroot ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n",
        0o440,
    ),
    "etc/sudoers.d/README": ("#\n# As of Debian\n", 0o440),
    "etc/security/limits.conf": ("# cores\n* hard core 0\n", 0o644),
    "etc/ssh/sshd_config": ("PermitRootLogin no\n", 0o644),
    "etc/cron.daily/apt-compat": ("#!/bin/sh\n", 0o755),
    "etc/kimbox/box.env": ("KIMBOX_MANIFEST='x'\nKIMBOX_ROLE='dev'\nKIMBOX_SITE=''\n", 0o644),
    "boot/grub/grub.cfg": ("set timeout=0\n", 0o600),
    "home/worker/.ssh/authorized_keys": ("ssh-ed25519 AAAA worker\n", 0o600),
    "persistent/kimbox/secured": ("", 0o644),
    "persistent/secure/answers.env": (
        "KIMBOX_ROLE='worker'\nKIMBOX_SITE='caf\u00e9 \"north\"'\nKIMBOX_USERNAME='me'\n",
        0o600,
    ),
    "persistent/secure/policy.env": (
        "KIMBOX_INBOUND='22'\nKIMBOX_OPERATOR=''\nKIMBOX_ACCOUNTS='worker'\nKIMBOX_SERVICES='pipeline-worker.service'\n"
        "KIMBOX_REMOVED='gcc'\nKIMBOX_UPDATES=''\nKIMBOX_DNS=''\nKIMBOX_GATEWAY_HOST='10.0.2.9'\n",
        0o600,
    ),
    "persistent/secure/credentials.enc": ("Salted__xxxxxxxx", 0o600),
    "persistent/secure/outbound": ("10.0.2.9 22 tcp\ngit.example.org 443 tcp\n", 0o600),
    "persistent/ssh/ssh_host_ed25519_key": ("-----BEGIN OPENSSH PRIVATE KEY-----\n", 0o600),
    "persistent/log/provision.log": ("set up\n", 0o644),
    "var/lib/dpkg/status": (
        "Package: bash\nStatus: install ok installed\n\nPackage: gcc\nStatus: deinstall ok config-files\n",
        0o644,
    ),
    "var/lib/apt/lists/archive_Packages": ("", 0o644),
    "run/kimbox/closed": ("", 0o644),
    "run/credentials/@system/kimbox.connects_to": ("22", 0o400),
    "run/systemd/timesync/synchronized": ("", 0o644),
    "sys/module/apparmor/parameters/enabled": ("Y\n", 0o444),
    "sys/kernel/security/apparmor/profiles": ("man (enforce)\nlsb_release (enforce)\n", 0o444),
    "data/units": (
        "systemd-journald.service loaded active running Journal\nssh.service loaded active running sshd\n"
        "pipeline-worker.service loaded active running worker\nnetworking.service loaded inactive dead net\n"
        "kimbox-audit.timer loaded active waiting audit\nsystemd-timesyncd.service loaded active running clock\n"
        "init.scope loaded active running init\n",
        0o644,
    ),
    "data/unit-files": ("getty@.service enabled enabled\n", 0o644),
    "data/sshd": (
        "passwordauthentication no\nkbdinteractiveauthentication no\npermitemptypasswords no\npermitrootlogin no\n"
        "hostbasedauthentication no\nignorerhosts yes\npermituserenvironment no\nx11forwarding no\n"
        "gssapiauthentication no\npermittunnel no\nusepam yes\nloglevel INFO\n",
        0o644,
    ),
    "data/upgrade": ("Inst bash [5.2] (5.3 Debian:13.1/stable [amd64])\n", 0o644),
    "data/nft": (
        RULES,
        0o644,
    ),
    "usr/local/sbin/nft": ("#!/bin/sh\ncat /data/nft\n", 0o755),
    "usr/local/sbin/sshd": (
        "#!/bin/sh\ncat /data/sshd\n[ \"$1 $2\" = '-T -C' ] || exit 0\n"
        'user=${3#user=} && cat /data/sshd.match "/data/sshd.of.${user%%,*}" 2>/dev/null\nexit 0\n',
        0o755,
    ),
    "usr/local/sbin/systemctl": (_SYSTEMCTL, 0o755),
    "usr/local/sbin/apt-config": ("#!/bin/sh\necho \"lists='/var/lib/apt/lists/'\"\n", 0o755),
    "usr/local/sbin/apt-get": ("#!/bin/sh\ncat /data/upgrade\n", 0o755),
    "proc/sys/kernel/random/boot_id": (BOOT + "\n", 0o444),
    "proc/sys/kernel/core_pattern": ("core\n", 0o644),
    "proc/uptime": ("86400.12 86000.00\n", 0o444),
    "proc/modules": ("virtio_net 1 0 - Live 0x0\n", 0o444),
    "proc/4711/comm": ("sshd\n", 0o444),
    "proc/self/mounts": (
        "/dev/mapper/root / ext4 rw,relatime 0 0\nproc /proc proc rw,nosuid,nodev,noexec 0 0\n"
        "tmpfs /run tmpfs rw,nosuid,nodev,mode=755 0 0\ntmpfs /tmp tmpfs rw,nosuid,nodev,noexec 0 0\n"
        "tmpfs /dev/shm tmpfs rw,nosuid,nodev,noexec 0 0\n/dev/mapper/persistent /persistent ext4 rw,nosuid,nodev 0 0\n"
        "/dev/vda1 /boot ext4 rw,nosuid,nodev,noexec 0 0\n",
        0o444,
    ),
}

_SOCKETS = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

#: The listening sockets: address, port and state as the kernel writes them, and the user id.
LISTENING = {
    "tcp": [("0100007F", 11300, "0A", 0), ("00000000", 22, "0A", 0), ("0F02000A", 8080, "01", 0)],
    "tcp6": [("0" * 24 + "01000000", 25, "0A", 0), ("0" * 32, 22, "0A", 0)],
    "udp": [("0F02000A", 68, "07", 998), ("00000000", 40123, "07", 991)],
    "udp6": [],
}

#: Kernel settings of a sealed box. The names are paths below /proc/sys.
SETTINGS = {
    "kernel/randomize_va_space": 2, "kernel/yama/ptrace_scope": 2, "fs/suid_dumpable": 0, "fs/protected_hardlinks": 1,
    "fs/protected_symlinks": 1, "fs/protected_fifos": 2, "fs/protected_regular": 2, "kernel/kptr_restrict": 2,
    "kernel/dmesg_restrict": 1, "kernel/unprivileged_bpf_disabled": 1, "kernel/kexec_load_disabled": 1,
    "kernel/modules_disabled": 1, "kernel/sysrq": 0, "kernel/perf_event_paranoid": 3, "net/core/bpf_jit_harden": 2,
    "net/ipv4/ip_forward": 0, "net/ipv4/icmp_ignore_bogus_error_responses": 1,
    "net/ipv4/icmp_echo_ignore_broadcasts": 1, "net/ipv4/tcp_syncookies": 1,
    **{
        f"net/{family}/conf/{interface}/{name}": 0
        for interface in ("all", "default", "eth0")
        for family, names in {
            "ipv4": ("accept_redirects", "accept_source_route", "send_redirects", "secure_redirects"),
            "ipv6": ("accept_redirects", "accept_source_route", "forwarding", "accept_ra"),
        }.items()
        for name in names
    },
    "kernel/unprivileged_userns_clone": 0,
    "net/ipv4/conf/all/rp_filter": 1, "net/ipv4/conf/all/log_martians": 1, "net/ipv4/conf/lo/accept_redirects": 1,
}  # fmt: skip

#: Entries of /etc that the programs of the host need.
_KEPT = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")


def digest_of(path: Path) -> str:
    """Returns the sha256 digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class AuditedBox(FakeGuest):
    """A sealed box. Tests change its files to add a breach."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for entry in (root / "etc").iterdir():
            if entry.is_symlink() and entry.name not in _KEPT:
                entry.unlink()
        for name, (text, mode) in FILES.items():
            self.write(name, text, mode)
        for name, value in SETTINGS.items():
            self.write(f"proc/sys/{name}", f"{value}\n")
        for name, rows in LISTENING.items():
            self.listen(name, rows)
        self.write("run/kimbox/seal.nft.sha256", f"{digest_of(self.path('/data/nft'))}  -\n")
        self.path("/persistent/secure").chmod(0o700)
        self.path("/home/worker").chmod(0o750)
        if os.getuid() == 0:
            os.chown(self.path("/home/worker"), 1001, 1001)
        self.path("/tmp").chmod(0o1777)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """Writes a file in place of an existing file or link."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def append(self, name: str, text: str) -> None:
        """Appends to a file."""
        path = self.path(name)
        mode = path.stat().st_mode & 0o7777
        self.write(name, path.read_text() + text, mode)

    def replace(self, name: str, old: str, new: str) -> None:
        """Replaces a text in a file. The text must occur in it."""
        path = self.path(name)
        text = path.read_text()
        assert old in text
        self.write(name, text.replace(old, new), path.stat().st_mode & 0o7777)

    def listen(self, name: str, rows: list[tuple[str, int, str, int]]) -> None:
        """Writes a file of /proc/net. An address has the kernel's form."""
        lines = [
            f"   {i}: {address}:{port:04X} {'0' * len(address)}:0000 {state} 0:0 00:0 0 {uid:5d} 0 {100 + i}\n"
            for i, (address, port, state, uid) in enumerate(rows)
        ]
        self.write(f"proc/net/{name}", _SOCKETS + "".join(lines))

    def audit(self, *arguments: str, host: bool = False) -> Completed:
        """Runs the audit. With `host`, /proc is the real one."""
        enter = ["sh", "-c", _ENTER, "enter", str(self.root), "host" if host else "", AUDIT, *arguments]
        return run([*UNSHARE, *enter], check=False, timeout_s=120)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Runs the audit and returns every check of its report, by id."""
        done = self.audit()
        assert (0, "") == (done.code, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert {"end": True, "checks": len(lines) - 2} == lines[-1]
        checks = {line["id"]: line for line in lines[1:-1]}
        assert len(checks) == len(lines) - 2
        return checks

    def failed(self) -> set[str]:
        """Runs the audit and returns the ids of the checks that failed."""
        return {name for name, check in self.rows().items() if check["status"] == "fail"}
