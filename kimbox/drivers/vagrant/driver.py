"""The provider `vagrant`: a machine that Vagrant runs, by the Vagrantfile that `kimbox render` writes.

The only module that knows python-vagrant. That library takes no exit status for granted and loses what Vagrant says on
stderr, so every call here keeps both streams, judges the exit status, and fails in Vagrant's own words.

The guest has no port to the host: it keeps its events on /persistent, and they are fetched over ssh into the files that
QEMU would write, so that all the rest of kimbox finds them where it looks.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import attrs

from kimbox import paths, run
from kimbox.drivers import accelerator
from kimbox.drivers.provider import Launch, allot_ports
from kimbox.drivers.vagrant import boxes, hypervisor
from kimbox.drivers.vagrant.fetch import Fetcher, forget
from kimbox.drivers.vagrant.hypervisor import Hypervisor
from kimbox.errors import GuestError, KimboxError, MissingToolError
from kimbox.files import read_bounded, remove_tree, write_atomic
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.events import printable
from kimbox.guest.ssh import Guest
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import keys
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Ended, Machine, Record, read_end
from kimbox.machine.state import Facts, State
from kimbox.render.vagrantfile import VagrantMachine, render_vagrantfile
from kimbox.spec.model import BootMode, Box

#: A run of Vagrant's output that is kept for the message of a failure.
SAID_BYTES = 64 << 10
SAID_LINES = 12

#: While a boot is waited for, the guest is asked so often at most, in seconds.
LISTEN_S = 0.5

#: A guest that has just gone back to a snapshot answers within this time: libvirt's bridge first learns where it is.
ANSWER_S = 180.0

_ERROR = re.compile(r"^\d+,[^,]*,error-exit,([^,]*),(.*)$", re.MULTILINE)
_HOST_KEY = re.compile(r"^\S+ (ssh-ed25519 \S+)$", re.MULTILINE)
_HOST_NAME = re.compile(r"^[ \t]+HostName (\S+)$", re.MULTILINE)
_PORT = re.compile(r"^[ \t]+Port (\d{1,5})$", re.MULTILINE)


@attrs.define
class Vagrant:
    """The provider `vagrant` of one machine."""

    machine: Machine
    _fetcher: Fetcher | None = None
    _heard: float = 0.0
    name = "vagrant"

    # ---- Vagrant itself

    def _call(self, what: str, act: Callable[[Any], Any]) -> Any:
        """Has python-vagrant act in the machine's folder; raises GuestError with what Vagrant said if it fails."""
        log.now(f"vagrant {what}")
        return _act(self._under, self.machine.folder, self.machine.vagrant_log, what, act, of=self.machine.name)

    @property
    def _under(self) -> Hypervisor:
        return hypervisor.of(self.machine.folder)

    def _status(self) -> str:
        """Vagrant's word for the state of the machine. Raises GuestError if it says none, or one that is not known."""
        name = self.machine.name
        told = str(self._call("status", lambda v: v._run_vagrant_command(["status", name, "--machine-readable"])))
        words = [line.split(",") for line in told.splitlines()]
        found = [parts[3] for parts in words if len(parts) > 3 and parts[1:3] == [name, "state"]]
        if len(found) != 1 or found[0] not in self._under.STATES:
            raise GuestError(
                f"vagrant status says nothing that is known of {name}: {', '.join(found)[:200] or 'nothing'}"
            )
        return found[0]

    def _is_there(self) -> bool:
        return (self.machine.folder / ".vagrant/machines" / self.machine.name / self._under.NAME / "id").exists()

    def running(self) -> tuple[bool, bool]:
        """Whether there is a guest that runs, and whether it stands still."""
        if not self._is_there():  # Vagrant has made none: it need not be asked
            return False, False
        return self._under.STATES[self._status()]

    # ---- making and starting

    def prepare(self, box: Box, image: Image) -> None:
        under = hypervisor.here()
        _library(under)
        boxes.ensure(image, box, under, _for_all(under))

    def create(self, folder: Path, box: Box, image: Image) -> None:
        name = boxes.name_of(box, image)
        (folder / hypervisor.FILE).write_text(f"{hypervisor.here().NAME}\n")
        (folder / "box").write_text(f"{name}\n")
        (folder / self.machine.vagrantfile.name).write_text(self._vagrantfile(box, name, {}), encoding="utf-8")

    def _vagrantfile(self, box: Box, vagrant_box: str, host_ports: dict[int, int]) -> str:
        one = VagrantMachine(box, vagrant_box, host_ports=host_ports)
        return render_vagrantfile([one], key=self.machine.key.name, prefix=hypervisor.prefix())

    def _box(self) -> str:
        return read_bounded(self.machine.folder / "box", limit_bytes=1024).decode().strip()

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        once = choice.mode if choice.once else None
        saved = mode if choice.once else choice.mode or mode
        (self.machine.folder / "boot").write_text(f"{saved} {once or ''}\n")

    def start(self, launch: Launch) -> Record:
        machine, record, box = self.machine, launch.record, launch.box
        if launch.resume:
            self._call("resume", lambda v: v.resume())
            return self._reached(record)
        is_new = record.ended is Ended.NEW or not self._is_there()
        if is_new:
            self._remove()  # a domain without a network is no machine
            boxes.drop_image(self._box(), self._under, machine)
            machine.known_hosts.unlink(missing_ok=True)  # a new disk has a new key
            forget(machine)
        record = attrs.evolve(allot_ports(machine, record, box), ended=record.ended)
        if box:
            write_atomic(machine.vagrantfile, self._vagrantfile(box, self._box(), record.forwards))
        with log.step(f"starting {machine.name} with Vagrant"):
            self._call("up", lambda v: v.up(provider=self._under.NAME, provision=False))
            record = self._reached(record)
            if self._needs_reboot(record, is_new=is_new):
                self._call("reload", lambda v: v.reload(provision=False))
                record = self._reached(record)
                (machine.folder / "boot").unlink()  # not before: an interrupted start must know what was wanted
        return record

    def _remove(self) -> None:
        """Has Vagrant destroy the machine, and removes what it leaves, after a first `up` that was cut short say."""
        machine, under = self.machine, self._under
        made = under.networks(machine.folder, machine.name)  # Vagrant forgets them where the domain is gone
        if self._is_there():
            self._call("destroy", lambda v: v.destroy())
        under.sweep(machine.name, made)

    def _needs_reboot(self, record: Record, *, is_new: bool) -> bool:
        """Sets in the guest what later boots are; True if this one is another than was asked for.

        libvirt's disks are not the user's to write to, so that only the guest can. A new box has a new snapshot anyway.
        """
        file = self.machine.folder / "boot"
        saved, once = file.read_text().rstrip("\n").split(" ") if file.exists() else ("", "")
        if not saved:
            return False
        script = (
            "systemctl start boot.mount && read -r mode </run/kimbox/mode; printf '%s\\n' \"$mode\"; "
            f"grub-editenv /boot/grub/grubenv set saved_entry={saved}"
        )
        booted = self._sudo(record, script).strip()
        wanted = once or saved
        if booted == wanted or (is_new and wanted == BootMode.RESNAP):
            file.unlink()
            return False
        self._sudo(record, f"grub-editenv /boot/grub/grubenv set next_entry={wanted}; sync")
        return True

    def _sudo(self, record: Record, script: str) -> str:
        """Runs a shell script of ours as root in the guest."""
        with Guest(self.endpoint(record)) as guest:
            answer = guest.run(f"sudo -n sh -c {shlex.quote(script)}", timeout_s=60)
        if answer.code != 0:
            raise GuestError(f"{self.machine.name} cannot be told which root to boot: {answer.stderr.strip()[:500]}")
        return answer.stdout

    def _reached(self, record: Record) -> Record:
        """The record with the address that Vagrant gives; the host key is pinned, and what the guest told is here."""
        config = str(self._call("ssh-config", lambda v: v._run_vagrant_command(["ssh-config", self.machine.name])))
        host = _HOST_NAME.search(config)
        port = _PORT.search(config)
        if not host or not port:
            raise GuestError(f"vagrant ssh-config gives no address for {self.machine.name}: {config[:200]!r}")
        record = attrs.evolve(record, ssh_host=host[1], ssh_port=int(port[1]))
        self.machine.write_record(record)
        if not self.machine.known_hosts.exists():
            scanned = run.run(["ssh-keyscan", "-T", "30", "-t", "ed25519", "-p", port[1], host[1]], check=False)
            key = _HOST_KEY.search(scanned.stdout)
            if not key:
                raise GuestError(f"{self.machine.name} does not tell its host key: {scanned.stderr.strip()[:300]}")
            keys.pin_host_key(self.machine, key[1])
        self._fetch_until_told(record)
        return record

    def _fetch_until_told(self, record: Record) -> None:
        deadline = time.monotonic() + ANSWER_S
        while not self._fetch(record):
            if time.monotonic() > deadline:
                raise GuestError(f"{self.machine.name} does not answer at {record.ssh_host} port {record.ssh_port}")
            time.sleep(LISTEN_S)

    # ---- ending

    def unpause(self) -> None:
        self._call("resume", lambda v: v.resume())

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        if before is State.PAUSED:
            self.unpause()
        with contextlib.suppress(KimboxError):  # its last words
            self._fetch(self.machine.record())
        self._call("halt", lambda v: v.halt(force=force))
        if self.running()[0]:
            raise GuestError(f"{self.machine.name} is still running after vagrant halt", hint="`kimbox halt --force`")

    def suspend(self, written: Callable[[], None]) -> None:
        written()  # Vagrant saves and ends in one: if it fails, the guest runs, which is what counts then
        self._call("suspend", lambda v: v.suspend())
        if self.running()[0]:  # it ends with 0 even then
            said = _words("", read_end(self.machine.vagrant_log, 2048))
            raise GuestError(f"vagrant suspend did not suspend {self.machine.name}:\n{said}")

    def forget_suspended(self) -> None:
        """libvirt has done so."""

    def drop_suspended(self) -> None:
        self._call("resume", lambda v: v.resume())
        self._call("halt", lambda v: v.halt(force=True))

    def tidy(self) -> None:
        """Nothing of a run is left here, but of a first one that was cut short."""
        if self.machine.record().ended is Ended.NEW:
            self._remove()

    def destroy(self) -> None:
        machine, under = self.machine, self._under
        box = self._box() if (machine.folder / "box").exists() else None
        self._remove()
        machine.record_file.unlink(missing_ok=True)
        machine.vagrantfile.unlink(missing_ok=True)
        remove_tree(machine.folder)
        if box:
            boxes.drop(box, under, _for_all(under))

    # ---- looking

    def readable_disk(self, image: Image, work: Path) -> Path:
        return self._under.copy_disk(self.machine.name, image, work)

    def endpoint(self, record: Record) -> Endpoint:
        return self.machine.endpoint(record)

    def facts(self, record: Record) -> Facts:
        # One that should run, and answers with the box's own host key, does run: Vagrant takes a second to say as much.
        running, paused = True, False
        if record.ended is Ended.NEW:  # its first `up` was cut short, or is under way: the next begins anew
            running = False
        elif record.ended is not None or not self._is_there() or not self._answers(record):
            running, paused = self.running()
            if running and not paused and record.ended is not None:
                self._answers(record)
        return Facts(
            exists=True,
            running=running,
            paused=paused,
            suspended=record.ended is Ended.SUSPENDED,
            events=self.machine.boot_events(),
            ended_by_us=True,  # Vagrant's users halt by hand, and Vagrant does not tell that from a crash
        )

    def _answers(self, record: Record) -> bool:
        """Brings in what the guest has told, if it answers; one that does not has told what it has told."""
        with contextlib.suppress(KimboxError):
            return self._fetch(record)
        return False

    def _fetch(self, record: Record) -> bool:
        """Brings in what the guest has told; True if it answered."""
        if self._fetcher is None:
            self._fetcher = Fetcher(self.machine, self.endpoint(record))
        return self._fetcher.fetch()

    def listen(self) -> bool:
        now = time.monotonic()
        if now - self._heard < LISTEN_S:
            return True
        self._heard = now
        return self._fetch(self.machine.record()) or self.running()[0]

    # ---- snapshots

    def save_snapshot(self, name: str) -> None:
        self._call("snapshot save", lambda v: v.snapshot_save(name))

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        self._call("snapshot restore", lambda v: v.snapshot_restore(name))
        if not self.running()[0]:
            return launch.record
        self._fetcher = None
        return self._reached(launch.record)

    def delete_snapshot(self, name: str) -> None:
        self._call("snapshot delete", lambda v: v.snapshot_delete(name))


def _library(under: Hypervisor) -> Any:
    """python-vagrant. Raises MissingToolError if there is no Vagrant for it, or no hypervisor."""
    run.require("vagrant", "it runs the box")
    under.needed()
    try:
        import vagrant
    except ImportError as error:
        raise MissingToolError(f"python-vagrant is missing: {error}", hint="install kimbox anew") from None
    return vagrant


def plugins() -> list[str]:
    """Names of the plugins that Vagrant has for kimbox's boxes. Raises GuestError if it does not say."""
    folder = paths.vagrant_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [plugin.name for plugin in _for_all(hypervisor.here())("plugin list", lambda v: v.plugin_list())]


def _environment(under: Hypervisor) -> dict[str, str]:
    """What Vagrant runs with: boxes of kimbox's own, no calls home, and the driver that works on this host."""
    driver = "kvm" if accelerator.find().name == "kvm" else "qemu"
    return run.environment(
        {
            "VAGRANT_HOME": str(paths.vagrant_dir()),
            "VAGRANT_DEFAULT_PROVIDER": under.NAME,
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
            "KIMBOX_LIBVIRT_DRIVER": driver,
        }
    )


def _for_all(under: Hypervisor) -> boxes.Call:
    """`Vagrant._call` where there is no machine yet, or none any more."""
    folder = paths.vagrant_dir()
    return lambda what, act: _act(under, folder, folder / "vagrant.log", what, act)


def _act(under: Hypervisor, folder: Path, said: Path, what: str, act: Callable[[Any], Any], of: str = "") -> Any:
    """Has python-vagrant act in a folder; both streams go to `said`. Raises GuestError with its words if it fails."""
    library = _library(under)
    start = said.stat().st_size if said.exists() else 0

    @contextlib.contextmanager
    def kept() -> Iterator[IO[bytes]]:
        with said.open("ab") as file:
            yield file

    vagrant = library.Vagrant(str(folder), env=_environment(under), out_cm=kept, err_cm=kept)
    command = vagrant._make_vagrant_command
    if run.which("setpriv"):  # it would outlive a kimbox that is killed, and hold the machine against the next
        vagrant._make_vagrant_command = lambda words: [*run.dying_with_us(), *command(words)]
    try:
        return act(vagrant)
    except library.subprocess.CalledProcessError as error:
        printed = (error.output or b"").decode("utf-8", "replace")
        words = _words(printed, read_end(said, min(SAID_BYTES, max(0, said.stat().st_size - start))))
        raise GuestError(
            f"vagrant {what} {run.describe_status(error.returncode)}{f' for {of}' if of else ''}:\n{words}".rstrip(),
            hint=f"all that Vagrant said is in {said}",
        ) from None


def _words(printed: str, logged: bytes) -> str:
    """What Vagrant said of a failure: its error in machine-readable form, or the end of its output."""
    error = _ERROR.search(printed)
    if error:
        text = error[2].replace("%!(VAGRANT_COMMA)", ",").replace("\\n", "\n").replace("\\r", "")
    else:
        text = f"{logged.decode('utf-8', 'replace')}\n{printed}"
    lines = [line for line in text.splitlines() if line.strip() and "Progress: " not in line]
    return "\n".join(f"    {printable(line)[:400]}" for line in lines[-SAID_LINES:])
