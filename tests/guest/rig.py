"""Boots the disk of a box in QEMU with the box's kernel and initramfs. A boot ends after the root is mounted.

A boot lasts seconds. The test sets the kernel command line. PID 1 is the script `look`.

Boots whose command line is used again and again start from a saved memory: the one at which the initramfs begins. No
driver of disks is loaded then, so that the guest has read nothing from the disk, which changes from boot to boot.
"""

from __future__ import annotations

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
from kimbox.image.disk.debugfs import NewFile, write_files
from kimbox.spec.layout import plan
from kimbox.spec.load import load_box

#: Path of the script `look` in the box.
LOOK = "/persistent/look"

#: The kernel command line, without the words of the test.
ACTIVE = (
    "root=/dev/mapper/vagrant--pipeline-{root} ro volgroup={group} lvroot=root lvsnap=root_snap lvsize=2052M "
    "console=ttyS0,115200 panic=5 rootdelay=3 init=" + LOOK
)

#: What the console shows when the initramfs begins, and when it begins with the root: it then loads drivers of disks.
LOADING = "Loading, please wait..."
BEGUN = "Running /scripts/local-premount"

#: Number of attempts to save the memory between the two, and pause between two looks at the console, in seconds.
SAVE_ATTEMPTS = 5
SAVE_PAUSE_S = 0.02

#: Added words of the kernel command line whose boots start from a saved memory, with its name.
SAVED_MEMORIES = {"resnap": "resnap", "": "changes", "resnap look=keep": "keeps"}

#: Inode of the root of a file system of ext4.
ROOT_INODE = 2


@attrs.frozen
class Rig:
    """A folder with the kernel and initramfs of a box. `disk` is a new disk of the box, which boots change."""

    folder: Path
    disk: Path

    @classmethod
    def of(cls, kimbox: Kimbox) -> Rig:
        """Makes a rig from the image of the spec in the folder of `kimbox`. No machine is started for it."""
        folder = kimbox.folder
        image = kimbox.home / "images" / str(kimbox.json("build")["key"]) / "disk.raw"
        layout = plan(load_box(folder / "kimbox.yaml").disk)
        raw, disk = folder / "disk.raw", folder / "disk.qcow2"
        run.run(["cp", "--sparse=always", "--no-preserve=mode", image, raw])
        for file in ("vmlinuz", "initrd.img"):
            place = f"{raw}?offset={layout.boot.offset_bytes}"
            run.run(["debugfs", "-R", f"dump /linux/{file} {file}", place], cwd=folder)
        look = NewFile(Path(__file__).with_name("look").read_bytes(), 0o100755)
        write_files(raw, layout.persistent.place.offset_bytes, ROOT_INODE, {Path(LOOK).name: look}, {})
        run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", disk])
        return cls(folder, disk)

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

    def start(
        self,
        words: str = "",
        *,
        root: str = "root_snap",
        group: str = "vagrant-pipeline",
        at: str = "",
        memory: Path | None = None,
    ) -> Boot:
        """Starts QEMU with these words added to the kernel command line.

        `at`: the name of a saved state. The machine has the disk of that state and continues after `go_on`.
        `memory`: a disk that no guest sees, for `save_memory` and `load_memory`. The machine waits for `go_on`.
        """
        for file in ("console", "events", "pid"):
            (self.folder / file).unlink(missing_ok=True)
        memories = ["-drive", f"if=none,id=saved,node-name=memory,format=qcow2,file={memory}"] if memory else []
        argv = [
            "qemu-system-x86_64", "-machine", "q35,sata=off,smbus=off", "-accel", "tcg,tb-size=256",
            "-cpu", EMULATED_CPU, "-smp", "1", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
            "-pidfile", self.folder / "pid",
            "-drive", f"if=none,id=disk,node-name=image,format=qcow2,file={self.disk}",
            "-device", "virtio-blk-pci,drive=disk", *memories,
            "-qmp", f"unix:{self.control},server=on,wait=off",
            *(["-loadvm", at] if at else []), *(["-S"] if at or memory else []),
            "-device", "virtio-serial-pci",
            "-chardev", f"file,id=console,path={self.folder / 'console'}", "-serial", "chardev:console",
            "-chardev", f"file,id=events,path={self.folder / 'events'}",
            "-device", "virtserialport,chardev=events,name=org.kimbox.0",
            "-kernel", self.folder / "vmlinuz", "-initrd", self.folder / "initrd.img",
            "-append", f"{ACTIVE.format(root=root, group=group)} {words}",
        ]  # fmt: skip
        return Boot(self, run.detach(argv, log=self.folder / "qemu.log"))

    def start_at_root(self, words: str) -> Boot:
        """Starts QEMU with the saved memory of one of `SAVED_MEMORIES`, which the first call saves.

        The machine has the disk as it is. After `go_on`, it begins with the root (`BEGUN`).
        """
        memory = self.folder / f"memory-{SAVED_MEMORIES[words]}.qcow2"
        if not memory.exists():
            self._save_memory(words, memory)
        boot = self.start(words, memory=memory)
        boot.load_memory()
        return boot

    def _save_memory(self, words: str, memory: Path) -> None:
        new = memory.with_suffix(".new")
        for _ in range(SAVE_ATTEMPTS):
            run.run(["qemu-img", "create", "-q", "-f", "qcow2", new, "1M"])
            boot = self.start(words, memory=new)
            boot.go_on()
            boot.until_printed(LOADING, every_s=SAVE_PAUSE_S)
            boot.save_memory()
            if BEGUN not in self.console:
                new.rename(memory)
                return
        raise AssertionError("the initramfs was further each time when its memory was saved")

    def boot(self, words: str = "", *, root: str = "root_snap", group: str = "vagrant-pipeline") -> str:
        """Boots, waits for the end, and returns the output of `look`: `pristine`, `changed`, `kept`, or empty."""
        if words in SAVED_MEMORIES and (root, group) == ("root_snap", "vagrant-pipeline"):
            boot = self.start_at_root(words)
            boot.go_on()
        else:
            boot = self.start(words, root=root, group=group)
        boot.ended()
        assert "reboot: Power down" in self.console, self.console[-2000:]
        printed = re.findall(r"look: (pristine|changed|kept|damaged)", self.console)
        return printed[-1] if printed else ""


@attrs.frozen
class Boot:
    """A running QEMU."""

    rig: Rig
    poll: Callable[[], int | None]

    def until_printed(self, words: str, *, every_s: float | None = None) -> None:
        """Waits until the console shows these words."""

        def is_printed() -> bool:
            return words in self.rig.console or self.poll() is not None

        until(f"{words!r} on the console", is_printed, limit_s=120, every_s=every_s)
        assert words in self.rig.console, f"QEMU exited before: {self.rig.console[-2000:]}"

    def ended(self) -> None:
        """Waits until QEMU has exited."""
        until("the end of the boot", lambda: self.poll() is not None, limit_s=120)

    def save(self, point: str) -> None:
        """Saves the state of the machine, disk and memory, and kills it."""
        job = {"job-id": "save", "tag": point, "vmstate": "image", "devices": ["image"]}
        qmp.run_job(self.rig.control, "snapshot-save", job, timeout_s=120)
        self.kill()

    def save_memory(self) -> None:
        """Saves the memory and the devices, without the disk, and kills the machine."""
        self._run_job("snapshot-save")
        self.kill()

    def load_memory(self) -> None:
        """Loads what `save_memory` has saved."""
        self._until_waiting()
        self._run_job("snapshot-load")

    def _run_job(self, command: str) -> None:
        job = {"job-id": command, "tag": "memory", "vmstate": "memory", "devices": ["memory"]}
        qmp.run_job(self.rig.control, command, job, timeout_s=120)

    def go_on(self) -> None:
        """Continues a machine that waits."""
        self._until_waiting()
        qmp.execute(self.rig.control, "cont")

    def _until_waiting(self) -> None:
        waiting = ("prelaunch", "restore-vm", "paused")

        def is_waiting() -> bool:
            assert self.poll() is None, (self.rig.folder / "qemu.log").read_text()
            return self.rig.control.exists() and self._status() in waiting

        until("the machine to wait", is_waiting)

    def _status(self) -> str:
        with contextlib.suppress(qmp.QmpError):
            return str(qmp.execute(self.rig.control, "query-status")["status"])
        return ""

    def kill(self) -> None:
        """Kills QEMU, as a power failure does."""
        with contextlib.suppress(FileNotFoundError):  # QEMU has already exited
            run.run(["kill", "-KILL", (self.rig.folder / "pid").read_text().strip()], check=False)
        self.ended()
