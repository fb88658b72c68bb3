"""Commands that open a sealed director, with the checks of its audit that must fail after each, and no other checks.

The rest cannot be broken in a running guest: settings that the kernel keeps once they are set, modules that it no
longer loads, AppArmor, the journal. tests/support/auditholes.py breaks these in files.
"""

from __future__ import annotations

import textwrap

#: Kernel settings, with a value that opens something. A router's setting is the first, because it resets others.
SETTINGS = {
    "net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1, "kernel/randomize_va_space": 0,
    "kernel/yama/ptrace_scope": 0, "fs/suid_dumpable": 1, "fs/protected_hardlinks": 0, "fs/protected_symlinks": 0,
    "fs/protected_fifos": 0, "fs/protected_regular": 0, "kernel/kptr_restrict": 0, "kernel/dmesg_restrict": 0,
    "kernel/sysrq": 1, "kernel/perf_event_paranoid": 1, "net/core/bpf_jit_harden": 0,
    "kernel/unprivileged_userns_clone": 1, "net/ipv4/conf/all/send_redirects": 1,
    "net/ipv4/icmp_ignore_bogus_error_responses": 0, "net/ipv4/icmp_echo_ignore_broadcasts": 0,
    "net/ipv4/conf/all/accept_redirects": 1, "net/ipv6/conf/all/accept_redirects": 1,
    "net/ipv4/conf/all/secure_redirects": 1, "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/all/accept_source_route": 1, "net/ipv6/conf/all/accept_source_route": 1,
    "net/ipv4/conf/all/log_martians": 0, "net/ipv4/tcp_syncookies": 0, "net/ipv6/conf/all/accept_ra": 1,
}  # fmt: skip

#: The checks of these settings.
_KERNEL = """
ipv4.ip_forward ipv6.forwarding randomize_va_space yama.ptrace_scope fs.suid_dumpable fs.protected_hardlinks
fs.protected_symlinks fs.protected_fifos fs.protected_regular kptr_restrict dmesg_restrict sysrq perf_event_paranoid
core.bpf_jit_harden user_namespaces ipv4.send_redirects ipv4.icmp_ignore_bogus_error_responses
ipv4.icmp_echo_ignore_broadcasts ipv4.accept_redirects ipv6.accept_redirects ipv4.all.secure_redirects
ipv4.all.rp_filter ipv4.accept_source_route ipv6.accept_source_route ipv4.all.log_martians ipv4.tcp_syncookies
ipv6.accept_ra
"""

#: Options of sshd. The present sshd keeps its own until it is restarted, so that the test can still log in.
OPTIONS = {
    "PasswordAuthentication": "yes", "KbdInteractiveAuthentication": "yes", "PermitEmptyPasswords": "yes",
    "PermitRootLogin": "yes", "HostbasedAuthentication": "yes", "IgnoreRhosts": "no", "PermitUserEnvironment": "yes",
    "X11Forwarding": "yes", "GSSAPIAuthentication": "yes", "PermitTunnel": "yes",
    "AuthorizedKeysFile": ".ssh/authorized_keys", "AuthorizedKeysCommand": "/bin/true", "TrustedUserCAKeys": "/x",
    "UsePAM": "no", "LogLevel": "QUIET",
}  # fmt: skip


def _until_bound(protocol: str, port: int) -> str:
    """A shell command that waits until a program has bound a port: a new unit may get little processor time."""
    return f"for try in $(seq 300); do grep -q ':{port:04X} ' /proc/net/{protocol}* && break; sleep 0.1; done"


_LISTENER = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 111)); time.sleep(9999)"
_CAPABLE = (
    "import os, struct; "
    "os.setxattr('/usr/local/bin/able', 'security.capability', struct.pack('<5I', 0x02000001, 1 << 7, 0, 0, 0))"
)

#: Shell command -> the checks that fail after it. In this order.
BREACHES: dict[str, str] = {
    "mount -t tmpfs none /home && mount -t tmpfs none /var/tmp && mount -t tmpfs none /mnt": "home var_tmp others",
    "for place in /tmp /dev/shm /persistent /boot /run; do mount -o remount,suid,dev,exec $place; done": (
        "tmp tmp_noexec shm shm_noexec persistent boot run"
    ),
    "useradd -m -s /bin/bash -p aaJ9Hcb0Jd3Qk intruder && chmod 0777 /home/intruder": (
        "account.login account.password account.homes file.writable"
    ),
    "useradd -o -u 0 -M toor": "account.root_alike account.twice",
    "useradd -M -s /bin/false blank && passwd -q -d blank": "account.empty",
    "useradd -M vagrant": "account.vagrant",
    "usermod -p aaJ9Hcb0Jd3Qk root": "account.root",
    "gpasswd -a intruder disk": "account.groups",
    "usermod -s /bin/sh daemon": "account.system_shell",
    "echo 'old:$1$x:4711:4711::/nowhere:/bin/false' >>/etc/passwd": "account.shadowed account.no_group",
    "echo ALL ALL=NOPASSWD: ALL >/etc/sudoers.d/all && chmod 0644 /etc/sudoers.d/all": "sudo.rules file.sudoers",
    "mkdir -p /run/systemd/system && printf '[Service]\\nExecStart=/bin/sleep 9999\\n' "
    ">/run/systemd/system/autovt@9.service && systemctl daemon-reload && systemctl start autovt@9.service": (
        "console.login service.running service.transient"
    ),
    "systemd-run -q --on-active=9999 true": "service.timers",
    "systemd-run -q --unit=broken.service -p Type=exec false; true": "service.failed",
    "echo '* * * * * root true' >/etc/cron.d/more": "service.cron",
    "systemd-run -q -p Type=exec systemd-socket-activate -l 9999 --inetd true && "
    + _until_bound("tcp", 9999): "net.tcp",
    f'systemd-run -q -p Type=exec python3 -c "{_LISTENER}" && {_until_bound("udp", 111)}': "net.udp",
    "nft chain inet kimbox input '{ policy accept; }' && nft chain inet kimbox forward '{ policy accept; }' && "
    "nft chain inet kimbox output '{ policy accept; }'": "fw.input fw.forward fw.output fw.changed",
    "nft add rule inet kimbox input tcp dport 4711 accept": "fw.accepts",
    "nft add rule inet kimbox forward accept": "fw.forwards",
    "nft add element inet kimbox outbound4 '{ 203.0.113.9 . tcp . 443 }'": "fw.sends",
    "{ "
    + "".join(f"echo {name} {value}; " for name, value in OPTIONS.items())
    + "echo AuthorizedKeysCommandUser nobody; } >/etc/ssh/sshd_config.d/00-open.conf && "
    "chmod 0664 /etc/ssh/sshd_config.d/00-open.conf": "file.sshd_config "
    + " ".join(f"ssh.{name.lower()}" for name in OPTIONS),
    "cp /bin/sh /usr/local/bin/shell && chmod 4755 /usr/local/bin/shell": "file.set_uid",
    f'cp /bin/true /usr/local/bin/able && python3 -c "{_CAPABLE}"': "file.capabilities",
    "mkdir -m 1777 /srv/drop": "file.public",
    "touch /srv/lost && chown 4242:4242 /srv/lost": "file.unowned",
    "mknod /srv/disk b 254 0 && chmod o+rw /dev/vda": "file.device file.devices",
    "chmod 0664 /etc/group": "file.passwd",
    "chmod o+r /etc/gshadow": "file.shadow",
    "touch /persistent/ssh/old_key && chmod 0644 /persistent/ssh/old_key": "file.host_keys",
    "chmod 0644 /boot/grub/grub.cfg": "file.grub",
    "chmod 0755 /persistent/secure": "secret.private",
    "echo token: x >/persistent/secure/notes": "secret.kept secret.plain",
    "mkdir /opt/a && ssh-keygen -q -t ed25519 -N '' -f /opt/a/id && chmod 0644 /opt/a/id": "secret.keys",
    "cp /opt/a/id /var/log/id && chmod 0600 /var/log/id": "secret.logs",
    "rm /etc/security/limits.d/kimbox.conf": "kernel.cores",
    "printf '\\nPackage: telnet\\nStatus: install ok installed\\n' >>/var/lib/dpkg/status": "package.unwanted",
    "; ".join(f"echo {value} >/proc/sys/{name}" for name, value in SETTINGS.items()): " ".join(
        f"kernel.{name}" for name in _KERNEL.split()
    ),
}


def script() -> str:
    """Returns a shell script for root: it prints a report of the audit, opens everything, and prints another report."""
    commands = "\n".join(
        f"{{ {command}; }} </dev/null >&2 || echo 'not broken: {number}' >&2" for number, command in enumerate(BREACHES)
    )
    return textwrap.dedent("""\
        /usr/lib/kimbox/audit
        setsid systemd-run -q --scope --unit=escaped sleep 9999 </dev/null >/dev/null 2>&1 &
        for try in $(seq 100); do [ -e /run/systemd/transient/escaped.scope ] && break; sleep 0.1; done
        {commands}
        /usr/lib/kimbox/audit
        """).replace("{commands}", commands)


def expected() -> set[str]:
    """Returns the checks that fail after the script, and passed before it."""
    checks = " ".join(BREACHES.values()).split()
    return {name if "." in name else f"mount.{name}" for name in checks}
