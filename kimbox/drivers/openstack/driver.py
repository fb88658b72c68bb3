"""The driver `openstack`: a machine that is an instance in an OpenStack cloud.

The image of the box is published once, and instances are made from it. The guest takes its settings from the cloud
(provisioners/base, `cloud`). It has no port to the host: drivers/fetch.py copies its events over ssh, and the console
of the instance shows its ssh host key.

A first start that fails removes what it has created in the cloud. If kimbox is killed, the next run does so by the
journal.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kimbox.drivers import guestboot, hostcheck
from kimbox.drivers.base import Features, Launch
from kimbox.drivers.fetch import EventCopies, remove_fetched
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.openstack import instance as instances
from kimbox.drivers.openstack import publishing, sdk
from kimbox.drivers.openstack.check import check, instance_of
from kimbox.drivers.openstack.cloud import RUNNING, Cloud, Server, Status
from kimbox.drivers.openstack.instance import Waits
from kimbox.drivers.openstack.journal import SNAPSHOT, Journal
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import remove_tree, write_atomic
from kimbox.guest import cloudinit
from kimbox.guest.endpoint import Endpoint
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import foreign, keys
from kimbox.machine.folder import Machine
from kimbox.machine.record import CLOUD_FILE, Ended, Record
from kimbox.machine.state import Observation, State
from kimbox.spec.model import INSTANCE_TIMEOUT_S, SSH_PORT, BootMode, Box

if TYPE_CHECKING:
    from kimbox.machine.bootmode import Choice

#: Interval between two copies of the guest's events during a boot, in seconds.
LISTEN_S = 1.0


@attrs.define
class OpenStack:
    """The driver `openstack` of one machine."""

    machine: Machine
    _cloud: Cloud | None = None
    _copies: EventCopies = attrs.field(init=False)
    name = "openstack"
    features = Features(suspend=True, delivery_disk=True, secrets_by_ssh=True, publishing=True)

    def __attrs_post_init__(self) -> None:
        self._copies = EventCopies(self.machine, LISTEN_S)

    @staticmethod
    def check_host() -> list[HostCheck]:
        """A host that has neither the library nor a cloud in its environment is not checked."""
        is_used = sdk.is_installed() or any(name in os.environ for name in ("OS_CLOUD", "OS_AUTH_URL"))
        return [hostcheck.attempt("openstack", _check_host)] if is_used else []

    @staticmethod
    def remains() -> dict[Path, str]:
        return {}

    @staticmethod
    def remove_remains(path: Path) -> bool:
        return False

    def _connect(self, name: str | None) -> Cloud:
        """Returns the connection to a cloud, which is opened once."""
        if self._cloud is None:
            log.now("logging into the cloud")
            self._cloud = sdk.connect(name)
        return self._cloud

    def _journal(self) -> Journal:
        return Journal.read(self.machine)

    def _open(self) -> tuple[Cloud, Journal]:
        """Returns the cloud of the machine and its journal."""
        journal = self._journal()
        return self._connect(journal.cloud), journal

    def _server(self) -> Server | None:
        """Returns the instance; None if there is none."""
        cloud, journal = self._open()
        return instances.find(cloud, journal)

    def _waits(self) -> Waits:
        """The limits on waits of verbs that have no spec: a short limit of the last start is not for them."""
        return Waits(self.machine.name, max(self._journal().timeout_s, INSTANCE_TIMEOUT_S))

    # ---- publishing

    def publish(self, box: Box, image: Image) -> tuple[str, bool]:
        found, is_new = publishing.publish(self._connect(_cloud_of(box)), image, box)
        return found.id, is_new

    def unpublish(self, box: Box, key: str) -> int:
        return publishing.unpublish(self._connect(_cloud_of(box)), key)

    # ---- creating and starting

    def prepare(self, box: Box, image: Image) -> None:
        cloud = self._connect(instance_of(box).cloud)
        if image.format == "qcow2" and foreign.instance(box, image.disk) is not None:
            foreign.refuse(box.name, "make an instance of")
        check(cloud, box, image.virtual_bytes)
        publishing.publish(cloud, image, box)

    def create(self, folder: Path, box: Box, image: Image) -> None:
        Journal.new(folder / CLOUD_FILE, self.machine.name, instance_of(box).cloud)

    def choose_boot(self, mode: BootMode, choice: Choice) -> None:
        guestboot.choose(self.machine, mode, choice)

    def grow(self, size_bytes: int) -> None:
        """Does nothing: without the feature `own_disk` no disk of this driver is grown."""

    def disk_size(self) -> int:
        return 0

    def put_back(self, record: Record) -> tuple[str, ...]:
        """Does nothing: without the feature `sealing` no box of this driver is sealed."""
        return ()

    def start(self, launch: Launch) -> Record:
        record, waits = launch.record, self._waits()
        if launch.box and launch.box.openstack:
            self._journal().limited_to(launch.box.openstack.timeout_s)
            waits = Waits(self.machine.name, launch.box.openstack.timeout_s)
        cloud, journal = self._open()
        server = instances.find(cloud, journal) if record.ended is not Ended.NEW else None
        if server is None and launch.box is not None:
            return self._start_new(launch, launch.box, waits)
        with log.step(f"starting the instance {journal.name}"):
            instances.bring_to(cloud, journal, Status.ACTIVE, waits)
            record = self._reached(record, waits)
            return self._in_its_mode(record, waits, is_new=False)

    def _start_new(self, launch: Launch, box: Box, waits: Waits) -> Record:
        """Creates the instance and starts it. If that fails, nothing of it is left in the cloud."""
        machine = self.machine
        machine.known_hosts.unlink(missing_ok=True)  # a new instance has a new key
        remove_fetched(machine)
        self._clear()
        try:
            with log.step(f"starting an instance for {machine.name}"):
                record = self._create_instance(launch, box, waits)
                return self._in_its_mode(record, waits, is_new=True)
        except BaseException:
            try:
                self._clear()
            except KimboxError as error:  # the first error is the one to report
                log.warn(f"not everything of {machine.name} could be removed from the cloud: {error}")
            raise

    def _create_instance(self, launch: Launch, box: Box, waits: Waits) -> Record:
        machine, (cloud, journal) = self.machine, self._open()
        image = images.find(launch.record.image)
        published = publishing.find(cloud, launch.record.image)
        place = check(cloud, box, image.virtual_bytes if image else 0)
        if published is None and image is not None:
            published, _ = publishing.publish(cloud, image, box)
        if published is None:
            raise StateError(
                f"neither this host nor the cloud has the image of {machine.name}",
                code="image-not-found",
                hint=f"`kimbox publish` publishes it; or `kimbox destroy {machine.name}` and `kimbox up`",
                fields={"name": machine.name, "image": launch.record.image},
            )
        order = instances.order(machine, journal, launch, place, published.id)
        instances.create(cloud, journal, order, keys.public_key(machine), place, waits)
        return self._reached(attrs.evolve(launch.record, forwards={}), waits)

    def _in_its_mode(self, record: Record, waits: Waits, *, is_new: bool) -> Record:
        """Restarts a guest that runs in another boot mode than the chosen one. Returns the record."""
        if not guestboot.needs_reboot(self.machine, self.endpoint(record), is_new=is_new):
            return record
        cloud, journal = self._open()
        instances.bring_to(cloud, journal, Status.SHUTOFF, waits)
        instances.bring_to(cloud, journal, Status.ACTIVE, waits)
        record = self._reached(record, waits)
        guestboot.rebooted(self.machine)
        return record

    def _reached(self, record: Record, waits: Waits) -> Record:
        """Waits until the guest answers. Returns the record with its address, and pins the host key of the console."""
        cloud, journal = self._open()
        self._copies.forget()
        record = attrs.evolve(record, ssh_host=instances.address(cloud, journal), ssh_port=SSH_PORT)
        self.machine.write_record(record)
        if not self.machine.known_hosts.exists():
            waits.until("its ssh host key on the console", self._pin_host_key)
        waits.until(f"an answer at {record.ssh_host} port {SSH_PORT}", lambda: self._copies.fetch(record))
        return record

    def _pin_host_key(self) -> bool:
        """Copies the console to this host, and pins the host key in it. False if there is none yet."""
        key = cloudinit.host_key(self._copy_console())
        if key is not None:
            keys.pin_host_key(self.machine, key)
        return key is not None

    def _copy_console(self) -> bytes:
        cloud, journal = self._open()
        server = instances.find(cloud, journal)
        text = cloud.console(server.id) if server else b""
        if text:
            write_atomic(self.machine.serial_log, text, mode=0o600)
        return text

    def _clear(self, *, snapshots: bool = False) -> None:
        """Removes what was created for the machine in the cloud, with its snapshots if requested."""
        journal = self._journal()
        if journal.made:
            instances.remove(self._connect(journal.cloud), journal, self._waits(), snapshots=snapshots)

    # ---- stopping

    def unpause(self) -> None:
        self._bring_to(Status.ACTIVE)

    def _bring_to(self, status: Status) -> None:
        cloud, journal = self._open()
        instances.bring_to(cloud, journal, status, self._waits())

    def stop(self, before: State, *, force: bool, timeout_s: float) -> None:
        """Nova presses the power button, and powers the instance off after a time of its own."""
        self._copies.answers(self.machine.record())  # the last events: a guest that is off cannot send them
        self._bring_to(Status.SHUTOFF)

    def suspend(self, written: Callable[[], None]) -> None:
        # First, because Nova saves and ends the guest in one step. If it fails, the guest runs, and the record is
        # corrected.
        written()
        self._bring_to(Status.SUSPENDED)

    def forget_suspended(self) -> None:
        """Does nothing: Nova removes the saved state when it resumes the instance."""

    def drop_suspended(self) -> None:
        self._bring_to(Status.ACTIVE)
        self._bring_to(Status.SHUTOFF)

    def tidy(self) -> None:
        """Removes what an interrupted first start left in the cloud: other runs leave nothing."""
        if self.machine.record().ended is Ended.NEW:
            self._clear()

    def destroy(self) -> None:
        machine = self.machine
        if (machine.folder / CLOUD_FILE).exists():
            self._clear(snapshots=True)
        machine.record_file.unlink(missing_ok=True)
        remove_tree(machine.folder)

    def wait_until_gone(self, timeout_s: float) -> bool:
        try:
            Waits(self.machine.name, timeout_s).until("its end", lambda: not self._runs())
        except GuestError:
            return False
        return True

    # ---- observing

    def _runs(self) -> bool:
        server = self._server()
        return server is not None and server.status in RUNNING

    def readable_disk(self, image: Image, work: Path) -> Path:
        raise StateError(
            f"the disk of {self.machine.name} is in the cloud, and kimbox does not read it there",
            code="unsupported-by-driver",
            hint="`kimbox package --image` packages the image of the box",
            fields={"verb": "read the disk of", "name": self.machine.name, "driver": self.name},
        )

    def endpoint(self, record: Record) -> Endpoint:
        return self.machine.endpoint(record)

    def observe(self, record: Record) -> Observation:
        # A machine that answers with its own host key runs. This saves the requests to the cloud.
        status: str = Status.ACTIVE
        if record.ended is Ended.NEW:  # the first `up` was interrupted or still runs; the next one starts again
            status = Status.SHUTOFF
        elif record.ended is not None or not self._copies.answers(record):
            server = self._server()
            status = server.status if server else Status.SHUTOFF
            if status in RUNNING and record.ended is not None:
                self._copies.answers(record)
        return Observation(
            exists=True,
            running=status in RUNNING,
            paused=status == Status.PAUSED,
            suspended=status == Status.SUSPENDED,
            events=self.machine.boot_events(),
            ended_by_us=status != Status.ERROR,  # users may stop an instance in the cloud; that is no crash
        )

    def listen(self) -> bool:
        return self._copies.listen(self._runs)

    def stopped_by(self) -> str:
        return ""

    def pid(self) -> int | None:
        """None: the process is in the cloud."""
        return None

    # ---- snapshots

    def save_snapshot(self, name: str) -> None:
        cloud, journal = self._open()
        instances.save(cloud, journal.adding(f"{SNAPSHOT}{name}"), name, self._waits())

    def restore_snapshot(self, launch: Launch, name: str) -> Record:
        """The instance keeps its id, its addresses and so its identity. It is halted afterwards."""
        cloud, journal = self._open()
        instances.restore(cloud, journal, name, self._waits())
        self._bring_to(Status.SHUTOFF)
        return launch.record

    def delete_snapshot(self, name: str) -> None:
        cloud, journal = self._open()
        instances.delete_snapshot(cloud, journal, name)

    def disk_snapshots(self) -> list[str]:
        return []


def _cloud_of(box: Box) -> str | None:
    return box.openstack.cloud if box.openstack else None


def _check_host() -> HostCheck:
    """Whether this host has the library. Nothing else requires it, so no result is BAD."""
    if sdk.is_installed():
        return HostCheck("openstack", Outcome.GOOD, "openstacksdk is installed; a login is tried by `kimbox publish`")
    return HostCheck(
        "openstack", Outcome.SLOW, "--provider openstack lacks openstacksdk", "pip install 'kimbox[openstack]'"
    )
