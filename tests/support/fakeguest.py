"""A root folder in which the guest's own scripts run at their real paths, in a mount namespace of their own.

Programs are symbolic links to those of the host. /persistent, /run, /var and /home/vagrant belong to the test.
runuser, systemctl, chown and sync are replaced by scripts. The two virtio-serial ports are files.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import makebox
import pytest

from kimbox import paths
from kimbox.guest.delivery import parcels_of, write_tar
from kimbox.guest.deliverydisk import SERIAL, DeliveryDisk
from kimbox.lock.git import submodules
from kimbox.lock.git.bundle import write_bundle
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock, make_lock
from kimbox.render import sealing
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.run import Completed, run
from kimbox.spec.model import SETUP_TIMEOUT_S, Box, Mode, Probe, Repository, Role, Run, Secure, Step

#: Enters a mount namespace. An ordinary user needs a user namespace too, which gives the right to mount.
UNSHARE = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]

_ENTER = """
mount --rbind / "$1/host" && mount --rbind /proc "$1/proc" || exit 99
[ -z "$2" ] || mount -t tmpfs -o "$2" none "$1/persistent" || exit 99
[ -z "$2" ] || cp -a "$1/persistent.first/." "$1/persistent/" 2>/dev/null
[ -z "$3" ] || mount -o "remount,$3" "$1/persistent" || exit 99
root=$1
shift 3
exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""

_RUNUSER = '#!/bin/sh\n[ "$1" = -u ] && shift 2\n[ "$1" = -- ] && shift\nexec "$@"\n'
_CHOWN = "#!/bin/sh\n"
#: Writes its arguments to a log. The real `sync` would write the file systems of the host.
_SYNC = '#!/bin/sh\necho "sync $*" >>/tmp/sync.log\n'
_SYSTEMCTL = """#!/bin/sh
[ "$1" != is-system-running ] || cat /run/systemd/system/state
echo "$*" >>/run/systemctl.log
"""


def can_unshare() -> bool:
    """Whether this host permits a mount namespace."""
    return run([*UNSHARE, "true"], check=False).ok


needs_namespace = pytest.mark.skipif(not can_unshare(), reason="this host does not permit a mount namespace")


class FakeGuest:
    """The guest's file system and its two virtio-serial ports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        provisioner = paths.provisioners_dir() / "provision"
        scratch = paths.provisioners_dir() / "scratch"
        for name in (
            "host",
            "proc",
            "tmp",
            "run",
            "root",
            "dev/virtio-ports",
            "var/lib",
            "home/vagrant",
            "usr/local/sbin",
        ):
            (root / name).mkdir(parents=True)
        for entry in Path("/").iterdir():
            if entry.is_symlink():
                (root / entry.name).symlink_to(entry.readlink())
        self._link_all("usr", without={"lib", "local"})
        self._link_all("usr/lib", without={"kimbox"})
        self._link_all("etc", without={"kimbox"})
        for name in ("dev/null", "dev/zero", "dev/urandom", "dev/fd", "dev/stdin", "dev/stdout", "dev/stderr"):
            (root / name).symlink_to(f"/host/{name}")
        for name in ("bin", "sbin", "lib", "lib64"):
            if not (root / name).is_symlink() and Path("/", name).is_dir():
                (root / name).symlink_to(f"/host/{name}")
        shutil.copytree(provisioner / "root/usr/lib/kimbox", root / "usr/lib/kimbox")
        for other in (scratch, paths.provisioners_dir() / "mounts", paths.provisioners_dir() / "secure"):
            shutil.copytree(other / "root/usr/lib/kimbox", root / "usr/lib/kimbox", dirs_exist_ok=True)
        for name in ("harden", "seal"):  # the real scripts would close the host
            (root / "usr/lib/kimbox" / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        shutil.copytree(provisioner / "persistent", root / "persistent")
        shutil.copytree(provisioner / "persistent", root / "persistent.first")
        for name, text in {"runuser": _RUNUSER, "systemctl": _SYSTEMCTL, "chown": _CHOWN, "sync": _SYNC}.items():
            (root / "usr/local/sbin" / name).write_text(text)
            (root / "usr/local/sbin" / name).chmod(0o755)
        self.ports = root / "dev/virtio-ports"
        for name in ("org.kimbox.0", "org.kimbox.log"):
            (self.ports / name).touch()

    def _link_all(self, folder: str, *, without: set[str]) -> None:
        (self.root / folder).mkdir(exist_ok=True)
        for entry in Path("/", folder).iterdir():
            if entry.name not in without:
                (self.root / folder / entry.name).symlink_to(f"/host/{folder}/{entry.name}")

    def run(self, *command: str, stdin: str = "", mount: str = "", remount: str = "", pids: bool = False) -> Completed:
        """Runs a command in the guest.

        `stdin`: a file of the host. `mount`: options of a tmpfs that is mounted on /persistent. `remount`: options that
        are set after /persistent has its content. `pids`: the command has a pid namespace of its own.
        """
        argv = ["sh", "-c", _ENTER, "enter", str(self.root), mount, remount, *command]
        if stdin:
            argv = ["sh", "-c", 'in=$1; shift; exec "$@" <"$in"', "with", stdin, *argv]
        return run([*UNSHARE, *(["--pid", "--fork"] if pids else []), *argv], check=False, timeout_s=60)

    def path(self, name: str) -> Path:
        """The path on the host of a file of the guest."""
        return self.root / name.lstrip("/")

    def events(self, *, box: bool = False) -> list[dict[str, Any]]:
        """Returns the events in the port without `boot` and `uptime_s`, and empties the port.

        The event `box` (what the box consists of) can come between any two others. It is left out unless `box` is true.
        """
        port = self.ports / "org.kimbox.0"
        lines = [json.loads(line) for line in port.read_text().splitlines()]
        port.write_text("")
        for line in lines:
            assert len(line.pop("boot")) == 36
            assert line.pop("uptime_s") > 0
        return [line for line in lines if box or line["event"] != "box"]

    def note_syncs(self, condition: str) -> None:
        """Makes each later sync record whether a condition (a shell command) holds, and the events sent before."""
        port = "/dev/virtio-ports/org.kimbox.0"
        held = f"if {condition}; then held=true; else held=false; fi"
        note = f'printf \'{{"held": %s, "sent": [%s]}}\\n\' "$held" "$(paste -sd, {port})" >>/tmp/notes'
        self.path("/usr/local/sbin/sync").write_text(f"#!/bin/sh\n{held}\n{note}\n")

    def was_synced_before(self, event: str) -> bool:
        """Whether the condition of `note_syncs` held at a sync before this event was sent."""
        notes = [json.loads(line) for line in self.path("/tmp/notes").read_text().splitlines()]
        return any(note["held"] and all(sent["event"] != event for sent in note["sent"]) for note in notes)

    def log(self) -> str:
        """The content of the log port."""
        return (self.ports / "org.kimbox.log").read_text()

    def secure(self, role: str = "worker", site: str = "example.org") -> None:
        """Does to the guest what `kimbox secure` does, with a role without a gateway and one file of credentials."""
        sealed, given, files = (
            self.path("/persistent/secure"),
            self.path("/run/credentials/@system"),
            self.root / "tmp/given",
        )
        for folder in (sealed, given, files):
            folder.mkdir(parents=True, exist_ok=True)
        policy = Secure(site, (Role(role, None, (), (), (), ()),), (), False, (), (), False)
        for name, data in sealing.files(policy, policy.roles[0]).items():
            (sealed / name).write_bytes(data)
        (sealed / "answers.env").write_bytes(sealing.answers(policy.roles[0], site, "me"))
        (given / "kimbox.data_key").write_text("0123456789abcdef\n")
        (files / "passwd").write_text("me:hash\n")
        lock = '. /usr/lib/kimbox/sealed.sh; lock /tmp/given "$given/kimbox.data_key" "$sealed/credentials.enc"'
        assert self.run("sh", "-c", lock).ok
        self.path("/persistent/kimbox/secured").touch()
        self._close()

    def _close(self) -> None:
        """Creates the mark of `seal` if the box is sealed."""
        if self.path("/persistent/kimbox/secured").exists():
            self.path("/run/kimbox").mkdir(exist_ok=True)
            self.path("/run/kimbox/closed").touch()

    def attach(self, archive: Path, disk: DeliveryDisk) -> None:
        """Attaches an archive as the disk with a delivery, as QEMU does at a start, with this description."""
        data = archive.read_bytes()
        block, given = self.path("/sys/block/vdb"), self.path("/run/credentials/@system")
        for folder in (block, given):
            folder.mkdir(parents=True, exist_ok=True)
        (block / "serial").write_text(SERIAL)
        (block / "size").write_text(f"{-(-len(data) // 512)}\n")
        self.path("/dev/vdb").write_bytes(data + bytes(-len(data) % 512))
        (given / "kimbox.delivery").write_text(disk.credential())

    def new_root(self) -> None:
        """Does what a resnap does: root becomes as built, /persistent stays."""
        shutil.rmtree(self.path("/var/lib/kimbox"), ignore_errors=True)
        shutil.rmtree(self.path("/etc/kimbox"), ignore_errors=True)
        self.new_boot()

    def new_boot(self) -> None:
        """Does what every boot does: empties /run."""
        shutil.rmtree(self.path("/run/kimbox"), ignore_errors=True)
        self._close()


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return FakeGuest(tmp_path / "guest")


def step(name: str, script: str, **more: Any) -> Step:
    return attrs.evolve(Step(name, script, Mode.SYSTEM, Run.ONCE, 30), **more)


def box_with(
    folder: Path,
    *steps: Step,
    probes: tuple[Probe, ...] = (),
    setup: str = "#!/bin/sh\necho set up\n",
    timeout_s: int = SETUP_TIMEOUT_S,
) -> Box:
    """Returns a box with these steps, a setup repository and a second repository."""
    if not (folder / "setup").exists():
        makebox.make_repository(folder / "setup", {"setup": setup})
        makebox.make_repository(folder / "code", {"a": "one\n"})
    repositories = (
        Repository("setup", f"file://{folder}/setup", False, "main", "/usr/local/src/setup", timeout_s),
        Repository("code", f"file://{folder}/code", False, "main", "/home/vagrant/src/code"),
    )
    return makebox.make_box(folder, repositories=repositories, provision=steps, probes=probes)


def delivery(
    folder: Path, box: Box, lock: Lock | None = None, mirrors: dict[str, Mirror] | None = None
) -> tuple[str, Path]:
    """Returns the manifest's digest and the tar that the host sends. Without `lock`, the box is locked now."""
    lock = lock or make_lock(box)
    mirrors = mirrors or {repository.name: Mirror.of(repository) for repository in box.repositories}
    manifest = render_manifest(box, lock)
    for name, mirror in list(mirrors.items()):
        inner = submodules.collect(mirror, lock.repositories[name].commit)
        mirrors |= {submodules.key(name, path): submodule.mirror for path, submodule in inner.items()}
    bundles = []
    for parcel in parcels_of(box, lock):
        bundles.append(folder / parcel.file)
        write_bundle(mirrors[parcel.mirror], parcel.commit, bundles[-1], parcel.tags)
    write_tar(manifest, bundles, folder / "delivery.tar")
    return manifest_digest(manifest), folder / "delivery.tar"


def provision(guest: FakeGuest, folder: Path, box: Box) -> int:
    """Delivers a box and runs provisiond. Returns its exit status."""
    digest, tar = delivery(folder, box)
    received = guest.run("/usr/lib/kimbox/receive", digest, stdin=str(tar))
    assert received.code == 0, received.stderr
    return guest.run("/usr/lib/kimbox/provisiond").code


def steps_of(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Returns kind, name and status of every step that has ended, in order."""
    return [(e["kind"], e["name"], e["status"]) for e in events if e["event"] == "step" and e["status"] != "running"]
