"""The boot modes of one box: the host selects its root at each start. Its volumes do not have the default names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Kimbox, until
from promises import PROMISE, promised, step
from webfolder import serving

from kimbox import run
from kimbox.lock.apt import sources
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

#: Output of the check that runs as the first step.
FIRST_STEP = "/var/tmp/first-step"

#: Address of the host in QEMU's user network.
HOST = "10.0.2.2"

#: Prints how often the step ran, and which files of the tests exist.
LOOK = "wc -l </persistent/runs; ls -d /made /changed /base /persistent/kept /boot/kept 2>/dev/null || true"


@pytest.fixture(scope="module")
def box(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """A box with `boot: keep` and a step that creates a file. It is ready at the start of each test, in any mode."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp(NAME))
    write_spec(kimbox, "keep")
    kimbox("up")
    yield kimbox
    kimbox("destroy", "-y")


def write_spec(box: Kimbox, mode: str) -> None:
    """Writes the spec with this `boot:`."""
    box.spec(NAME, SPEC.format(mode=mode, promise=step(FIRST_STEP).strip("\n")))


def look(box: Kimbox) -> list[str]:
    """Returns the output of `LOOK` as words."""
    return box.sh(NAME, LOOK).split()


def reloaded(box: Kimbox, *options: str) -> str:
    """Restarts the box and returns its boot mode. Checks that its kernel command line and its mounts match the mode."""
    assert box.json("reload", *options)["state"] == "ready"
    mode = str(box.json("status")["boot"])
    root = "base--1" if mode == "maintain" else "new--root"  # as device-mapper writes hyphens
    words, mounts = box.sh(NAME, "cat /proc/cmdline /proc/mounts").split("\n", 1)
    assert f"root=/dev/mapper/my--site-{root}" in words.split()
    assert ("resnap" in words.split()) is (mode == "resnap")
    assert f"/dev/mapper/my--site-{root} / ext4 rw" in mounts
    assert "/dev/vda1 /boot ext4 rw" in mounts
    return mode


def reboot_inside(box: Kimbox) -> None:
    """Reboots from inside the guest. `kimbox up` then only waits until the box is ready."""
    machine = Machine(NAME)
    boot = box.sh(NAME, "cat /proc/sys/kernel/random/boot_id").strip()
    box.sh(NAME, "sudo systemctl --no-block reboot", check=False)
    until("the next boot", lambda: {event.boot for event in machine.boot_events()} not in ({boot}, set()))
    assert box.json("up")["state"] == "ready"


def apt(folder: Path) -> list[str]:
    """Options with which the apt of this host reads the archives of Debian trixie. Its files are in `folder`."""
    lines = [
        source.line().replace("deb ", "deb [trusted=yes] ", 1) for source in sources.sources("debian", "trixie", None)
    ]
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
    return words


def other_kernel(words: list[str], release: str) -> str:
    """Returns the newest kernel of the archives whose release is not `release`, as the name of a package."""
    names = run.run(["apt-cache", *words, "pkgnames", "linux-image-"]).stdout.split()
    kernels = {name for name in names if re.fullmatch(r"linux-image-\d[^-]*-cloud-amd64", name)}
    listed = "".join(f"{name}\n" for name in kernels - {f"linux-image-{release}"})
    return run.run(["sort", "-V"], input=listed).stdout.split()[-1]


def install(box: Kimbox, words: list[str], package: str, folder: Path) -> None:
    """Downloads a package, given as an argument of apt-get, and installs it in the box."""
    run.run(["apt-get", *words, "-q", "download", package], cwd=folder)
    (package_file,) = folder.glob("*.deb")
    # Not compressed, because decompression is the slowest part of the installation under emulation.
    run.run(["dpkg-deb", "--raw-extract", package_file, folder / "tree"])
    run.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", folder / "tree", folder / "kernel.deb"])
    with serving(folder) as port:
        box.sh(NAME, f"busybox wget -q -O /var/tmp/kernel.deb http://{HOST}:{port}/kernel.deb")
    box.sh(NAME, "sudo apt-get install -q -y --reinstall /var/tmp/kernel.deb")


def update_kernel(box: Kimbox, folder: Path) -> None:
    """Reinstalls the package of the kernel, in a root with a broken link to the kernel."""
    release = box.sh(NAME, "uname -r").strip()
    version = box.sh(NAME, f"dpkg-query -f '${{Version}}' -W linux-image-{release}")
    before = box.sh(NAME, f"stat -c %i-%Y /boot/initrd.img-{release}")
    box.sh(NAME, "sudo ln -sfn nowhere /boot/linux")
    install(box, apt(folder), f"linux-image-{release}={version}", folder)
    assert box.sh(NAME, f"stat -c %i-%Y /boot/initrd.img-{release}") != before
    assert box.sh(NAME, "readlink /boot/linux").startswith(f"linux-{release}.")
    assert box.sh(NAME, "stat -L -c %i /boot/linux/initrd.img") == box.sh(
        NAME, f"stat -c %i /boot/initrd.img-{release}"
    )
    listed = box.sh(NAME, f"lsinitramfs /boot/initrd.img-{release}")
    assert re.search(r"^scripts/local-premount/resnap$", listed, re.MULTILINE)
    assert re.findall(r"sbin/modprobe.*", listed) == ["sbin/modprobe.kimbox"]  # init-top renames it to modprobe


def test_a_step_has_what_ready_promises(box: Kimbox) -> None:
    """The first step has all of it, and nothing is mounted later over the files that it writes."""
    first = promised(box.sh(NAME, f"cat {FIRST_STEP}"))
    assert {"/", "/boot", "/persistent", "/tmp", "/run/lock"} <= first
    box.sh(NAME, "timeout 300 systemctl is-system-running --wait || true")
    assert first == promised(box("exec", NAME, "--", "sh", "-s", input=PROMISE).stdout)
    assert box.sh(NAME, "ls /boot/step") == "/boot/step\n"


def test_resnap_discards_the_root_and_keep_keeps_it(box: Kimbox) -> None:
    """`keep` keeps changes of the root. `resnap` discards them and runs the steps. /persistent and /boot stay.

    With a damaged GRUB environment, a reboot from inside the guest keeps the snapshot. The next start repairs it.
    """
    key = box.machine(NAME).known_hosts.read_text()
    damage = "printf junk | sudo dd of=/boot/grub/grubenv conv=notrunc status=none"
    box.sh(NAME, f"{damage}; sudo touch /changed /persistent/kept /boot/kept; sync")
    reboot_inside(box)
    assert box.json("status")["boot"] == "keep"
    assert look(box) == ["1", "/boot/kept", "/changed", "/made", "/persistent/kept"]
    kept = promised(box.sh(NAME, f"cat {FIRST_STEP}"))
    assert reloaded(box, "--boot", "resnap") == "resnap"
    assert kept == promised(box.sh(NAME, f"cat {FIRST_STEP}"))
    assert look(box) == ["2", "/boot/kept", "/made", "/persistent/kept"]
    assert reloaded(box) == "keep"
    assert look(box) == ["2", "/boot/kept", "/made", "/persistent/kept"]
    assert box.machine(NAME).known_hosts.read_text() == key


#: Prints the running kernel and loads one of its modules, which the initramfs does not have.
KERNEL = "uname -r; sudo modprobe dummy"


def test_each_root_boots_a_kernel_that_has_its_modules(box: Kimbox, tmp_path: Path) -> None:
    """A kernel that was installed on the snapshot boots with that snapshot alone, also after a power cut.

    The snapshot loses the modules of the kernel that GRUB starts: the power fails while a package is removed. The
    initramfs chooses the other kernel. A new snapshot has the modules of the real root, and boots its kernel. /boot has
    no file of the other kernel then.
    """
    release = box.sh(NAME, KERNEL).strip()
    files = "ls -i /boot/linux/ /boot/*-* | sort"
    before = box.sh(NAME, files)
    words = apt(tmp_path)
    package = other_kernel(words, release)
    install(box, words, package, tmp_path)
    box.sh(NAME, f"sudo rm -r /lib/modules/{release}; sync")
    box("halt", "--force", NAME)
    assert box.json("up")["state"] == "ready"
    assert box.json("status")["boot"] == "keep"
    assert box.sh(NAME, KERNEL) == f"{package.removeprefix('linux-image-')}\n"
    assert f"this root has no modules of the kernel {release}" in box("logs", "--serial", NAME).stdout
    assert reloaded(box, "--boot", "resnap") == "resnap"
    assert box.sh(NAME, KERNEL) == f"{release}\n"
    assert box.sh(NAME, files) == before


def test_maintain_once(box: Kimbox) -> None:
    """`--boot maintain --once` boots the root itself with a warning, and provisions nothing.

    A reboot from inside the guest uses the mode of the spec. A later resnap has the change of the root.

    grub-editenv in the guest and kimbox on the host both write GRUB's environment: kimbox keeps a variable of the
    guest, also in a new file of the guest. A changed `boot:` of the spec applies at the next start.
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
    reboot_inside(box)
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


@pytest.mark.soak
def test_a_kernel_is_reinstalled_in_the_root(box: Kimbox, tmp_path: Path) -> None:
    """Its new initramfs still replaces snapshots, and GRUB starts it."""
    box("reload", "--boot", "maintain", "--once")
    update_kernel(box, tmp_path)
    reboot_inside(box)
    assert box.json("status")["boot"] == "keep"
    assert "/made" in look(box)


def test_a_running_box_is_not_rebooted_by_up(box: Kimbox) -> None:
    """`up` with another mode is refused with the command that changes it. `up` with the same mode does nothing."""
    before = box.json("status")
    mode, other = ("keep", "resnap") if before["boot"] == "keep" else (before["boot"], "keep")
    refused = box.json("up", "--boot", other, check=False)
    assert refused["exit_code"] == 5
    assert f"runs in mode {mode}" in refused["message"]
    assert f"kimbox reload --boot {other} {NAME}" in refused["hint"]
    assert box.json("up", "--boot", mode)["pid"] == before["pid"]


def test_a_lost_snapshot_is_reported_immediately(box: Kimbox) -> None:
    """The box boots nothing in its place. `up` reports the reason and the repair long before its timeout."""
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
