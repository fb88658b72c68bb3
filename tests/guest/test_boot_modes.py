"""The boot modes: one image, one box, whose root is chosen at each start from outside; its volumes have other names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox, until
from promises import PROMISE, promised, step
from webfolder import serving

from kimbox import run
from kimbox.lock.apt import sources as apt
from kimbox.machine.folder import Machine
from kimbox.spec.layout import plan
from kimbox.spec.load import load_box

pytestmark = pytest.mark.guest

NAME = "modes"
SPEC = """boot: {mode}
disk: {{volume_group: my-site, names: {{root: base-1, root_snap: new-root}}}}
provision:
  - {{name: mark, script: 'echo x >>/persistent/runs; touch /made'}}
{promise}"""

#: What was there in the first moment in which a step ran.
FIRST_STEP = "/var/tmp/first-step"

#: The host, as QEMU's user network shows it to the guest.
HOST = "10.0.2.2"

#: Runs of the step, and which of the files that tests make are there.
LOOK = "wc -l </persistent/runs; ls -d /made /changed /base /persistent/kept /boot/kept 2>/dev/null || true"


@pytest.fixture(scope="module")
def box(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """A box with `boot: keep` and a step that leaves a mark; each test finds it ready, in whatever mode."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp(NAME))
    write_spec(kimbox, "keep")
    kimbox("up")
    yield kimbox
    kimbox("destroy", "-y")


def write_spec(box: Kimbox, mode: str) -> None:
    """The spec with that `boot:`."""
    box.spec(NAME, SPEC.format(mode=mode, promise=step(FIRST_STEP).strip("\n")))


def look(box: Kimbox) -> list[str]:
    """What `LOOK` finds."""
    return box.sh(NAME, LOOK).split()


def reloaded(box: Kimbox, *options: str) -> str:
    """Restarts the box and returns the mode that it told, as its kernel command line bears out."""
    assert box.json("reload", *options)["state"] == "ready"
    mode = str(box.json("status")["boot"])
    root = "base--1" if mode == "maintain" else "new--root"  # as device-mapper writes hyphens
    words, mounts = box.sh(NAME, "cat /proc/cmdline /proc/mounts").split("\n", 1)
    assert f"root=/dev/mapper/my--site-{root}" in words.split()
    assert ("resnap" in words.split()) is (mode == "resnap")
    assert f"/dev/mapper/my--site-{root} / ext4 rw" in mounts
    assert "/dev/vda1 /boot ext4 rw" in mounts
    return mode


def reboots(box: Kimbox) -> None:
    """The guest restarts itself, and kimbox has no hand in it but to see it ready."""
    machine = Machine(NAME)
    boot = box.sh(NAME, "cat /proc/sys/kernel/random/boot_id").strip()
    box.sh(NAME, "sudo systemctl --no-block reboot", check=False)
    until("the next boot", lambda: {event.boot for event in machine.boot_events()} not in ({boot}, set()))
    assert box.json("up")["state"] == "ready"


def download(package: str, version: str, folder: Path) -> Path:
    """A package of Debian trixie, by this machine's apt."""
    lines = [source.line().replace("deb ", "deb [trusted=yes] ", 1) for source in apt.sources("debian", "trixie", None)]
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "status").touch()
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::Status": folder / "status",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run.run(["apt-get", *words, "-q", "update"])
    run.run(["apt-get", *words, "-q", "download", f"{package}={version}"], cwd=folder)
    (found,) = folder.glob("*.deb")
    # Not compressed: to unpack it is what takes longest under emulation.
    run.run(["dpkg-deb", "--raw-extract", found, folder / "tree"])
    run.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", folder / "tree", folder / "plain.deb"])
    return folder / "plain.deb"


def update_kernel(box: Kimbox, folder: Path) -> None:
    """Installs the kernel's package anew, in a root whose link to the kernel is broken."""
    release = box.sh(NAME, "uname -r").strip()
    version = box.sh(NAME, f"dpkg-query -f '${{Version}}' -W linux-image-{release}")
    download(f"linux-image-{release}", version, folder).rename(folder / "kernel.deb")
    before = box.sh(NAME, f"stat -c %i-%Y /boot/initrd.img-{release}")
    with serving(folder) as port:
        box.sh(NAME, f"busybox wget -q -O /var/tmp/kernel.deb http://{HOST}:{port}/kernel.deb")
    box.sh(NAME, "sudo ln -sfn nowhere /boot/linux")
    box.sh(NAME, "sudo apt-get install -q -y --reinstall /var/tmp/kernel.deb")
    assert box.sh(NAME, f"stat -c %i-%Y /boot/initrd.img-{release}") != before
    assert box.sh(NAME, "readlink /boot/linux") == f"linux-{release}\n"
    held = box.sh(NAME, f"lsinitramfs /boot/initrd.img-{release}")
    assert re.search(r"^scripts/local-premount/resnap$", held, re.MULTILINE)
    assert re.findall(r"sbin/modprobe.*", held) == ["sbin/modprobe.kimbox"]  # which init-top makes modprobe


def test_a_step_finds_what_ready_promises(box: Kimbox) -> None:
    """In the first moment in which a step runs; and nothing is mounted later over what it writes."""
    first = promised(box.sh(NAME, f"cat {FIRST_STEP}"))
    assert {"/", "/boot", "/persistent", "/tmp", "/run/lock"} <= first
    box.sh(NAME, "timeout 300 systemctl is-system-running --wait || true")
    assert first == promised(box("exec", NAME, "--", "sh", "-s", input=PROMISE).stdout)
    assert box.sh(NAME, "ls /boot/step") == "/boot/step\n"


def test_resnap_forgets_the_root_and_keep_keeps_it(box: Kimbox) -> None:
    """A change of root stays in `keep` and is gone in `resnap`, where steps run again; /persistent and /boot stay.

    Whatever stands in GRUB's environment, a reboot of the guest's own keeps the snapshot; the next start mends it.
    """
    key = box.machine(NAME).known_hosts.read_text()
    harm = "printf junk | sudo dd of=/boot/grub/grubenv conv=notrunc status=none"
    box.sh(NAME, f"{harm}; sudo touch /changed /persistent/kept /boot/kept; sync")
    reboots(box)
    assert box.json("status")["boot"] == "keep"
    assert look(box) == ["1", "/boot/kept", "/changed", "/made", "/persistent/kept"]
    kept = promised(box.sh(NAME, f"cat {FIRST_STEP}"))
    assert reloaded(box, "--boot", "resnap") == "resnap"
    assert kept == promised(box.sh(NAME, f"cat {FIRST_STEP}"))
    assert look(box) == ["2", "/boot/kept", "/made", "/persistent/kept"]
    assert reloaded(box) == "keep"
    assert look(box) == ["2", "/boot/kept", "/made", "/persistent/kept"]
    assert box.machine(NAME).known_hosts.read_text() == key


def test_maintain_for_once(box: Kimbox, tmp_path: Path) -> None:
    """The real root, announced; nothing is provisioned. A reboot inside has the spec's mode; a resnap the change.

    The kernel's package is installed anew in that root: its initramfs makes snapshots as before, and GRUB starts it.
    GRUB's own tool in the guest and kimbox outside share GRUB's environment: a variable of the guest's stays, and
    a file that the guest makes anew is found. Another `boot:` in the spec holds from the next start on.
    """
    tool = "sudo grub-editenv /boot/grub/grubenv"
    box.sh(NAME, f"{tool} create; {tool} set mine='a b'; sync")
    announced = box("reload", "--boot", "maintain", "--once").stdout
    assert "MAINTAIN MODE" in announced
    assert "MAINTAIN MODE" in box("status").stdout
    refused = box.json("provision", check=False)
    assert (refused["exit_code"], "maintain mode" in refused["message"]) == (5, True)
    listed = box.sh(NAME, f"sudo touch /base; sync; test ! -e /made; {tool} list").splitlines()
    assert [line for line in listed if line != "next_entry="] == ["mine=a b", "saved_entry=keep"]
    assert "maintain mode" in box.sh(NAME, "cat /run/motd.d/kimbox")
    assert box.sh(NAME, "bash -lic 'echo $debian_chroot' 2>/dev/null") == "maintain\n"
    update_kernel(box, tmp_path)
    reboots(box)
    assert box.json("status")["boot"] == "keep"
    assert "/made" in look(box)
    images = sorted((box.home / "images").iterdir())
    write_spec(box, "resnap")
    assert "another image" not in box("reload").stderr
    assert box.json("status")["boot"] == "resnap"
    assert images == sorted((box.home / "images").iterdir())
    assert {"/base", "/made"} <= set(look(box))
    assert box.sh(NAME, f"{tool} list").splitlines() == ["mine=a b", "saved_entry=resnap"]
    write_spec(box, "keep")


def test_a_running_box_is_not_rebooted_by_up(box: Kimbox) -> None:
    """Another mode is refused, with the command; the same one is what it has."""
    before = box.json("status")
    mode, other = ("keep", "resnap") if before["boot"] == "keep" else (before["boot"], "keep")
    refused = box.json("up", "--boot", other, check=False)
    assert refused["exit_code"] == 5
    assert f"runs in mode {mode}" in refused["message"]
    assert f"kimbox reload --boot {other} {NAME}" in refused["hint"]
    assert box.json("up", "--boot", mode)["pid"] == before["pid"]


def test_a_snapshot_that_is_lost_is_told_at_once(box: Kimbox) -> None:
    """The box boots nothing in its stead: `up` has the reason and the way back, long before its time is up."""
    box("halt", NAME)
    offset = plan(load_box(box.folder / "kimbox.yaml").disk).snapshot.place.offset_bytes
    disk = Machine(NAME).disk
    run.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0 {offset + 4} 4", disk])  # struct disk_header: valid
    failed = box.json("up", "--boot", "keep", "--timeout", "30m", check=False)
    assert failed["exit_code"] == 4
    assert "the snapshot my-site/new-root was full" in failed["message"]
    assert f"`kimbox up --boot resnap {NAME}`" in failed["hint"]
    status = box.json("status")
    assert (status["state"], status["failure"]) == ("crashed", "boot new-root")
    assert "new-root was full" in status["reason"]
    assert box.json("up", "--boot", "resnap")["state"] == "ready"
