"""Hosts of other kinds: with a newer QEMU, with KIMBOX_HOME in a tmpfs, with a client of SPICE.

`script/test soak` runs it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import screens
from conftest import PROGRAM_PAUSE_S, Kimbox, state_of, until
from roots import extracted, write_program

from kimbox import run
from kimbox.drivers.qemu import process
from kimbox.machine import templates
from kimbox.machine.folder import Machine

pytestmark = [pytest.mark.guest, pytest.mark.soak]

#: QEMU and what it reads.
QEMU = ("qemu-system-x86", "qemu-utils", "seabios", "ipxe-qemu")

#: A client of SPICE.
SPICE = ("spice-client-gtk",)

#: A file system in memory, and the space that the test takes of it.
TMPFS, TMPFS_BYTES = Path("/dev/shm"), 3 << 30

BOX = "elsewhere"


@pytest.fixture
def box(kimbox: Kimbox) -> Iterator[Kimbox]:
    """The spec of a box. Its clones are removed at the end."""
    kimbox.spec(BOX)
    yield kimbox
    for one in kimbox.json("list")["boxes"]:
        if one["box"] == BOX:
            kimbox("destroy", "-y", one["name"])


def lives(kimbox: Kimbox, name: str) -> None:
    """A clone, in its whole life."""
    assert f"{name}\n" == kimbox("exec", name, "--", "hostname").stdout
    kimbox.sh(name, "echo kept >~/file; sync")
    kimbox("suspend", name)
    kimbox("resume", name)
    kimbox("snapshot", "save", "before", name)
    kimbox.sh(name, "rm ~/file; sync")
    kimbox("snapshot", "restore", "before", name)
    kimbox("reload", name)
    assert "kept\n" == kimbox.sh(name, "cat ~/file")
    kimbox("halt", name)
    assert "halted" == state_of(name)


def test_a_newer_qemu(box: Kimbox, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU of the newest Debian. It gets a template of its own: a frozen memory is read by the same QEMU alone."""
    root, programs = extracted(home / "newer-qemu", QEMU, "--variant=extract"), tmp_path / "programs"
    box("clone", "former")
    folders = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
    data = [word for folder in folders for word in ("-L", str(root / folder))]
    write_program(programs, root, "qemu-system-x86_64", *data)
    write_program(programs, root, "qemu-img")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    box("clone", "one", "two")
    pid = process.pid(Machine("one"))
    assert str(root).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert 2 == len({box.json("status", name)["template"] for name in ("former", "one", "two")})
    assert 2 == len({box.sh(name, "cat /etc/machine-id") for name in ("one", "two")})
    lives(box, "one")


@pytest.mark.skipif(not TMPFS.is_dir(), reason="there is no /dev/shm")
def test_a_home_in_a_tmpfs(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, templates and disks are files of a tmpfs."""
    free = os.statvfs(TMPFS)
    if free.f_bavail * free.f_frsize < TMPFS_BYTES:
        pytest.skip("/dev/shm is too small")
    with tempfile.TemporaryDirectory(dir=TMPFS, prefix="kimbox-") as home:
        monkeypatch.setenv("KIMBOX_HOME", home)
        elsewhere = attrs.evolve(kimbox, home=Path(home))
        elsewhere.spec(BOX)
        try:
            elsewhere("clone", "one", "two")
            assert [TMPFS in templates.folder(key).parents for key in templates.stored()] == [True]
            lives(elsewhere, "one")
        finally:
            for name in ("one", "two"):
                elsewhere("destroy", "-y", name, check=False)


def test_a_client_of_spice_shows_the_screen(box: Kimbox, home: Path, tmp_path: Path) -> None:
    """The whole screen is red, as the guest has painted it."""
    root = extracted(home / "spice", SPICE, "--variant=extract")
    write_program(tmp_path / "programs", root, "spicy-screenshot")
    box.spec(BOX, "display: spice\n")
    box("up")
    socket, picture = box.json("view")["socket"], tmp_path / "screen.ppm"
    box.sh(BOX, screens.PAINT)
    program = tmp_path / "programs/spicy-screenshot"

    def is_red() -> bool:
        run.run([program, f"--uri=spice+unix://{socket}", "-o", picture], timeout_s=60)
        pixels = picture.read_bytes().split(b"\n", 3)[3]  # a Portable Pixmap: three lines, then red, green and blue
        colours = {pixels[place : place + 3][::-1] for place in range(0, len(pixels), 3)}
        return len(colours) == 1 and colours <= set(screens.REDS)

    until("a red screen", is_red, every_s=PROGRAM_PAUSE_S)
