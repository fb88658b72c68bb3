"""Boots the disk of a box in QEMU with the box's kernel and initramfs. A boot ends after the root is mounted.

A boot lasts seconds. The test sets the kernel command line. PID 1 is the script `look`.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import attrs
from conftest import Kimbox, until

from kimbox import run
from kimbox.drivers.accelerator import EMULATED_CPU
from kimbox.drivers.qemu import qmp
from kimbox.guest.events import Event, Tail

#: Path of the script `look` in the box.
LOOK = "/persistent/look"

#: The kernel command line, without the words of the test.
ACTIVE = (
    "root=/dev/mapper/vagrant--pipeline-{root} ro volgroup={group} lvroot=root lvsnap=root_snap lvsize=2052M "
    "console=ttyS0,115200 panic=5 rootdelay=3 init=" + LOOK
)


@attrs.frozen
class Rig:
    """A folder with the kernel and initramfs of a box. `disk` is the box's own disk, which boots change."""

    folder: Path
    disk: Path

    @classmethod
    def of(cls, kimbox: Kimbox, name: str, folder: Path) -> Rig:
        """Makes a rig from a running box, and halts the box."""
        for file in ("vmlinuz", "initrd.img"):
            (folder / file).write_bytes(base64.b64decode(kimbox.sh(name, f"sudo base64 /boot/linux/{file}")))
        text = Path(__file__).with_name("look").read_text()
        kimbox("exec", name, "--", "sudo", "sh", "-c", f"cat >{LOOK}; chmod 0755 {LOOK}; sync", input=text)
        kimbox("halt", name)
        return cls(folder, kimbox.machine(name).disk)

    @property
    def console(self) -> str:
        """The output of the last boot on its serial console."""
        path = self.folder / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def events(self) -> list[Event]:
        """The events that the last boot sent to the host."""
        return Tail(self.folder / "events").read()

    @property
    def control(self) -> Path:
        """QEMU's control socket."""
        return self.folder / "qmp.sock"

    def start(self, words: str = "", *, root: str = "root_snap", group: str = "vagrant-pipeline", at: str = "") -> Boot:
        """Starts QEMU with these words added to the kernel command line.

        `at`: the name of a saved state. The machine has the disk of that state and continues after `go_on`.
        """
        for file in ("console", "events", "pid"):
            (self.folder / file).unlink(missing_ok=True)
        argv = [
            "qemu-system-x86_64", "-machine", "q35,sata=off,smbus=off", "-accel", "tcg,tb-size=256",
            "-cpu", EMULATED_CPU, "-smp", "1", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
            "-pidfile", self.folder / "pid",
            "-drive", f"if=none,id=disk,node-name=image,format=qcow2,file={self.disk}",
            "-device", "virtio-blk-pci,drive=disk",
            "-qmp", f"unix:{self.control},server=on,wait=off", *(["-loadvm", at, "-S"] if at else []),
            "-device", "virtio-serial-pci",
            "-chardev", f"file,id=console,path={self.folder / 'console'}", "-serial", "chardev:console",
            "-chardev", f"file,id=events,path={self.folder / 'events'}",
            "-device", "virtserialport,chardev=events,name=org.kimbox.0",
            "-kernel", self.folder / "vmlinuz", "-initrd", self.folder / "initrd.img",
            "-append", f"{ACTIVE.format(root=root, group=group)} {words}",
        ]  # fmt: skip
        return Boot(self, run.detach(argv, log=self.folder / "qemu.log"))

    def boot(self, words: str = "", *, root: str = "root_snap", group: str = "vagrant-pipeline") -> str:
        """Boots, waits for the end, and returns the output of `look`: `pristine`, `changed`, `kept`, or empty."""
        self.start(words, root=root, group=group).ended()
        assert "reboot: Power down" in self.console, self.console[-2000:]
        printed = re.findall(r"look: (pristine|changed|kept|damaged)", self.console)
        return printed[-1] if printed else ""


@attrs.frozen
class Boot:
    """A running QEMU."""

    rig: Rig
    poll: Callable[[], int | None]

    def until_printed(self, words: str) -> None:
        """Waits until the console shows these words."""
        until(f"{words!r} on the console", lambda: words in self.rig.console or self.poll() is not None, limit_s=120)
        assert words in self.rig.console, f"QEMU exited before: {self.rig.console[-2000:]}"

    def ended(self) -> None:
        """Waits until QEMU has exited."""
        until("the end of the boot", lambda: self.poll() is not None, limit_s=120)

    def save(self, point: str) -> None:
        """Saves the state of the machine, disk and memory, and kills it."""
        job = {"job-id": "save", "tag": point, "vmstate": "image", "devices": ["image"]}
        qmp.run_job(self.rig.control, "snapshot-save", job, timeout_s=120)
        self.kill()

    def go_on(self) -> None:
        """Continues a machine that was started from a saved state."""
        until("the saved machine to be loaded", lambda: self.rig.control.exists() and self._status() == "prelaunch")
        qmp.execute(self.rig.control, "cont")

    def _status(self) -> str:
        with contextlib.suppress(qmp.QmpError):
            return str(qmp.execute(self.rig.control, "query-status")["status"])
        return ""

    def kill(self) -> None:
        """Kills QEMU, as a power failure does."""
        with contextlib.suppress(FileNotFoundError):  # QEMU has already exited
            run.run(["kill", "-KILL", (self.rig.folder / "pid").read_text().strip()], check=False)
        self.ended()
