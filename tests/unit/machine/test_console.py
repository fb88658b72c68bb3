"""Consoles as real programs write them, and the causes that kimbox finds in them."""

from __future__ import annotations

import time

import makemachine
import pytest

from kimbox.guest.events import Event, parse_line
from kimbox.machine import console
from kimbox.machine.console import CONSOLE_BYTES, LINE_CHARACTERS, console_lines, explain, is_fatal, last_panic

SEABIOS = (
    b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\r\n"
    b"\r\n\r\niPXE (http://ipxe.org) 00:02.0 C000 PCI2.10 PnP PMM+3EFD1040+3EF31040 C000\r\n"
    b"\r\nBooting from Hard Disk...\r\n"
)
GRUB = SEABIOS + b"GRUB loading.\r\nWelcome to GRUB!\r\n\r\n\x1b[0;30;47m\x1b[37;40m\x1b[H\x1b[J\x1b[1;1H"
LINUX = (
    GRUB + b"\x1b[m\x1b[H\x1b[JLoading Linux 6.12.41+deb13-amd64 ...\r\nLoading initial ramdisk ...\r\n"
    b"[    0.000000] Linux version 6.12.41+deb13-amd64 (debian-kernel@lists.debian.org)\r\n"
    b"[    0.000000] Command line: BOOT_IMAGE=/vmlinuz root=/dev/mapper/vg-root ro console=ttyS0\r\n"
    b"[    1.532113] Run /init as init process\r\n"
)
SYSTEMD = (
    LINUX + b"\x1b[!p\x1b]104\x07\x1b[?7h\x1b[1G\x1b[0J\x1b[6n\x1b[32766;32766H\r\n"
    b"Welcome to \x1b[1mDebian GNU/Linux 13 (trixie)\x1b[0m!\r\n\r\n"
    b"[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mlocal-fs.target\x1b[0m - Local File Systems.\r\n"
)


def parsed(*lines: str) -> list[Event]:
    """The events of these lines."""
    return [event for line in lines if (event := parse_line(line.encode()))]


@pytest.mark.parametrize(
    ("expected", "console"),
    [
        ("firmware found nothing", SEABIOS + b"Boot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n"),
        ("firmware found nothing", b"\x1b[2JBoot failed: could not read the boot disk\r\n"),
        ("loader stopped: no such partition", SEABIOS + b"GRUB loading.error: no such partition.\r\ngrub rescue> "),
        (
            "boot loader stopped: no such device: 3f6b2c1e-0000",
            GRUB + b"error: no such device: 3f6b2c1e-0000.\r\nEntering rescue mode...\r\ngrub rescue> ",
        ),
        (
            "boot loader stopped: file `/vmlinuz-6.12.41+deb13-amd64' not found",
            GRUB + b"error: ../../grub-core/fs/fshelp.c:257:file `/vmlinuz-6.12.41+deb13-amd64' not found.\r\n",
        ),
        ("boot loader stopped: ../x unknown filesystem", GRUB + b"error: ../x unknown filesystem.\r\n"),
        ("stopped at its prompt", GRUB + b"\x1b[4;1HMinimal BASH-like line editing.\x1b[7;1Hgrub> \x1b[7;7H"),
        (
            "found no root file system: /dev/mapper/vg-root does not exist",
            LINUX + b"Gave up waiting for root file system device.  Common problems:\r\n - Boot args\r\n"
            b"ALERT!  /dev/mapper/vg-root does not exist.  Dropping to a shell!\r\n\r\n\r\n(initramfs) \x1b[6n",
        ),
        (
            "could not set up the root volume: no room for the snapshot",
            LINUX + b"kimbox: resnap: FAILED: no room for the snapshot\r\n"
            b"[    9.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n",
        ),
        (
            "kernel panicked: Attempted to kill init! exitcode=0x0000000b",
            SYSTEMD + b"[    3.123456] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n"
            b"[    3.123457] CPU: 0 UID: 0 PID: 1 Comm: systemd Not tainted 6.12.41+deb13-amd64 #1\r\n"
            b"[    3.123470] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b ]---\r\n",
        ),
        (
            "kernel found no root file system on unknown-block(0,0)",
            LINUX + b"[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n",
        ),
        (
            "has no init program",
            LINUX + b"Target filesystem doesn't have requested /sbin/init.\r\n"
            b"No init found. Try passing init= bootarg.\r\n",
        ),
        (
            "fsck cannot repair it",
            LINUX + b"/dev/mapper/vg-root: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\r\n\t(i.e., without -a)\r\n"
            b"The root filesystem on /dev/mapper/vg-root requires a manual fsck\r\n",
        ),
        (
            "ran out of memory and killed lmp",
            SYSTEMD + b"[   88.1] oom-kill:constraint=CONSTRAINT_NONE,task=lmp,pid=812,uid=1000\r\n"
            b"[   88.1] Out of memory: Killed process 812 (lmp) total-vm:1823412kB, anon-rss:901232kB\r\n",
        ),
        (
            "systemd stopped in emergency mode",
            SYSTEMD + b"[\x1b[0;1;31mFAILED\x1b[0m] Failed to mount \x1b[0;1;39mpersistent.mount\x1b[0m.\r\n"
            b"You are in emergency mode. After logging in, type \"journalctl -xb\" to view\r\n",
        ),
        (
            "guest's systemd stopped",
            SYSTEMD + b"[!!!!!!] Failed to allocate manager object.\r\nsystemd[1]: Freezing execution.\r\n",
        ),
        (
            "no network: systemd-networkd did not start",
            SYSTEMD + b"[\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[1msystemd-networkd.service\x1b[0m - Net.\r\n",
        ),
        (
            "snapshot of root is full",
            SYSTEMD + b"[   61.2] device-mapper: snapshots: Invalidating snapshot: Unable to allocate exception.\r\n"
            b"[   61.3] EXT4-fs error (device dm-0): ext4_find_entry:1683: inode #131: comm sh: reading directory\r\n"
            b"[   61.4] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000007\r\n",
        ),
        ("it sent no event", b""),
        ("it sent no event", SYSTEMD),
    ],
)  # fmt: skip
def test_the_cause_is_found(expected: str, console: bytes) -> None:
    """Each program of a boot writes a line of its own when it stops."""
    cause = explain(console, [], alive=True, waited_s=300)
    assert expected in cause.message
    assert cause.hint


def test_a_harmless_line_is_not_the_cause() -> None:
    """GRUB boots although it lacks a module. The first event of the guest's system shows that."""
    console = GRUB + b"error: file `/grub/i386-pc/gfxterm.mod' not found.\r\n" + SYSTEMD
    cause = explain(console, parsed(makemachine.event("booting", mode="keep")), alive=True, waited_s=60)
    assert "boot loader" not in cause.message
    assert "reported no ssh host key" in cause.message


@pytest.mark.parametrize(
    ("expected", "events"),
    [
        ("within 90 s: its root is mounted", [makemachine.event("booting", mode="keep")]),
        ("but sshd did not start", [makemachine.event("hostkey", key="k")]),
        ("provisiond sent no event", [makemachine.event("sshd")]),
        ("last event was rebooting", [makemachine.event("rebooting")]),
        (
            "no event from the box for 90 s: the last event was step 2 of 5, provision make: running",
            [
                makemachine.event("provisioning", manifest="a"),
                makemachine.event("step", n=2, of=5, kind="provision", name="make", status="running"),
            ],
        ),
    ],
)
def test_a_timeout_names_the_last_stage(expected: str, events: list[str]) -> None:
    """The last stage that the boot reached, and the time since then."""
    assert expected in explain(SYSTEMD, parsed(*events), alive=True, waited_s=90).message


def test_a_process_that_ended() -> None:
    """Without the guest, or because the guest shut down."""
    assert "process ended" in explain(SYSTEMD, [], alive=False, waited_s=1).message
    console = SYSTEMD + b"[   12.0] reboot: Power down\r\n"
    assert "shut itself down" in explain(console, [], alive=False, waited_s=1).message


def test_lines_are_readable() -> None:
    """Without escape sequences, colours and cursor movements. A cursor movement separates words."""
    lines = console_lines(SYSTEMD)
    assert "Welcome to Debian GNU/Linux 13 (trixie)!" in lines
    assert "[  OK  ] Reached target local-fs.target - Local File Systems." in lines
    assert ["one", "two"] == console_lines(b"\x1b[1;1Hone\x1b[02;30Htwo")
    assert ["title: a b"] == console_lines(b"\x1b]0;evil\x07title: \x1b]8;;http://x\x1b\\a b\x1b(B\x1b=")


HOSTILE = {
    "binary": bytes(range(256)) * 4096,
    "one line": b"A" * (4 << 20),
    "beginnings of patterns": b"error: GRUB Kernel panic - not syncing Out of memory: Killed process 1 " * 60000,
    "lines of a beginning": b"error: ../a:1: error: \r\n" * 100000,
    "escapes without end": b"\x1b[" * (1 << 20),
    "OSC without end": b"\x1b]" * (1 << 20),
    "parameters": b"\x1b[" + b"1;" * (1 << 20) + b"H",
    "moves": b"\x1b[1;1H" * 200000,
    "numbers": b"Out of memory: Killed process " + b"1" * (2 << 20),
    "blanks": b"ALERT!" + b" " * (2 << 20) + b"\n" + (b" " * 399 + b"x\n") * 5000,
    "titles": b"\x1b]0;\x1b[31m" * 100000,
    "bad UTF-8": b"\xff\xfe\xc3(" * (1 << 19),
    "line separators": "\u2028\u2029\x85\x0b\x0c".encode() * 100000,
}


@pytest.mark.parametrize("console", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_console_is_safe_and_bounded(console: bytes) -> None:
    """No control sequence reaches the terminal, and the length of lines and the time are bounded."""
    started = time.process_time()
    lines = console_lines(console)
    cause = explain(console, [], alive=True, waited_s=1)
    assert all(line.isprintable() and 0 < len(line) <= LINE_CHARACTERS for line in lines)
    assert sum(map(len, lines)) <= CONSOLE_BYTES
    assert cause.message.isprintable()
    assert len(cause.message) < 1000
    assert time.process_time() - started < 5  # of CPU: patterns that go back and forth would take hours


def test_braces_of_a_guest_are_no_fields() -> None:
    """The text of a guest is not a format string."""
    cause = explain(b"Kernel panic - not syncing: {0} {waited_s} %s\n", [], alive=True, waited_s=1)
    assert "panicked: {0} {waited_s} %s" in cause.message


def test_a_boot_has_failed_only_if_it_cannot_continue() -> None:
    """A second panic ends the wait. A first panic (the guest restarts) and a lack of memory do not."""
    panic = b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\r\n"
    assert not is_fatal(panic, [])
    assert is_fatal(panic + b"GRUB\r\n" + panic, [])
    assert is_fatal(b"kimbox: resnap: FAILED: no volume group\r\n", [])
    full = b"device-mapper: snapshots: Invalidating snapshot: Unable to allocate exception.\r\n"
    assert is_fatal(full, [])
    assert not is_fatal(full + GRUB + b"  Booting `pristine: a new snapshot of root'\r\n", [])
    assert not is_fatal(b"Out of memory: Killed process 7 (lmp)\r\n", [])
    assert not is_fatal(b"Debian GNU/Linux 13 minimal ttyS0\r\n", [])


def test_the_commands_of_a_hint_have_the_name() -> None:
    """They are run in any folder, where a verb without a name would use another spec, or none."""
    hint = console.Cause("x", "`kimbox logs --serial` and `kimbox up --boot resnap`; `kimbox destroy`").hint_for("tiny")
    assert "`kimbox logs --serial tiny` and `kimbox up --boot resnap tiny`; `kimbox destroy tiny`" == hint
    for sign in console.SIGNS:
        assert sign.cause.hint.count("`kimbox ") == sign.cause.hint_for("tiny").count(" tiny`")


@pytest.mark.parametrize(
    ("expected", "console"),
    [
        (None, b"GRUB\nBooting `kimbox'\n[    1.0] Linux\n"),
        (None, b"Booting `kimbox'\nKernel panic - not syncing: Fatal exception\n"),
        ("Fatal exception", b"Booting `a'\n[9.1] Kernel panic - not syncing: Fatal exception\r\nBooting `a'\nLinux\n"),
        ("second", b"Kernel panic - not syncing: first\nKernel panic - not syncing: second\nBooting `a'\n"),
        ("x\ufffd[31m", b"Kernel panic - not syncing: x\x1b[0m\x9b[31m\nBooting `a'\n"),
        ("unknown reason", b"Kernel panic - not syncing\nBooting `a'\n"),
        ("z" * 198, b"Kernel panic - not syncing: " + b"z" * 9000 + b"\nBooting `a'\n"),
    ],
)
def test_the_panic_before_the_last_boot(expected: str | None, console: bytes) -> None:
    assert expected == last_panic(console)
