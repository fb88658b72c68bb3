"""The shape of a machine: processors, memory, ports, disks, folders, networks. A change of it requires a new start."""

from __future__ import annotations

import attrs

from kimbox.files import size_words
from kimbox.machine.record import Purpose, Record
from kimbox.spec.model import Box, Mount, Network, Scratch


@attrs.frozen
class ShapeChange:
    """A setting that differs between the last start of a machine and its spec, as texts. None: the side lacks it."""

    name: str
    old: str | None
    new: str | None

    @property
    def text(self) -> str:
        """The change as words."""
        return f"{self.name} {self.old or 'none'} -> {self.new or 'none'}"


def shape_changes(record: Record, box: Box) -> list[ShapeChange]:
    """Returns the settings of the spec that a machine gets at its next start. Empty before its first start."""
    if record.cpus is None or record.memory_bytes is None:
        return []
    pairs: list[tuple[str, str | None, str | None]] = [
        ("cpus", str(record.cpus), str(box.cpus)),
        ("memory", size_words(record.memory_bytes), size_words(box.memory_bytes)),
    ]
    hosts = {forward.guest: forward.host for forward in box.forwards}
    for guest in sorted({*record.forwards, *hosts}):
        old = record.forwards.get(guest)
        requested = hosts.get(guest, 0)
        new = old if requested is None and old else requested  # a port that kimbox has chosen stays
        pairs.append((f"forward of port {guest}", _address(old or 0), _address(new)))
    if box.disk_bytes and box.disk_bytes != record.disk_bytes:
        pairs.append(("disk", size_words(record.disk_bytes or box.disk.size_bytes), size_words(box.disk_bytes)))
    pairs.append(("scratch space", _scratch(record.scratch), _scratch(box.scratch)))
    pairs.append(("watchdog", _seconds(record.watchdog_s), _seconds(box.watchdog_s)))
    # A clone has neither the folders nor the networks of its box.
    mounts, networks = (box.mounts, box.networks) if record.purpose is Purpose.BOX else ((), ())
    before = {mount.mount_point: mount for mount in record.mounts}
    after = {mount.mount_point: mount for mount in mounts}
    for point in sorted({*before, *after}):
        pairs.append((f"mount at {point}", _mount(before.get(point)), _mount(after.get(point))))
    pairs.append(("networks", _networks(record.networks), _networks(networks)))
    pairs.append(("display", record.display, None if record.sealed else box.display))
    pairs.append(("automatic forwards", _switch(record.auto_forwards), _switch(box.auto_forwards)))
    return [ShapeChange(name, old, new) for name, old, new in pairs if old != new]


def _address(port: int | None) -> str | None:
    """Returns a port of the host as text. 0: there is no forward. None: kimbox chooses the port."""
    return "auto" if port is None else f"127.0.0.1:{port}" if port else None


def _networks(networks: tuple[Network, ...]) -> str | None:
    addresses = [f"{network.name} ({', '.join(map('='.join, network.addresses))})" for network in networks]
    return "; ".join(addresses) or None


def _switch(value: bool) -> str | None:
    return "on" if value else None


def _scratch(scratch: Scratch | None) -> str | None:
    return f"{size_words(scratch.size_bytes)} at {scratch.mount}" if scratch else None


def _seconds(duration_s: int | None) -> str | None:
    return f"{duration_s} s" if duration_s else None


def _mount(mount: Mount | None) -> str | None:
    return f"{mount.location}{'' if mount.writable else ' (read-only)'}" if mount else None
