"""A cloud of dictionaries behind the interface of the driver `openstack`. Any of its methods can fail."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import makemachine

from kimbox.drivers.openstack.cloud import (
    Action,
    Address,
    CloudImage,
    Flavor,
    Limit,
    Server,
    ServerOrder,
    Status,
)
from kimbox.image.formats import glance

FLAVOR = Flavor("f1", "small", 2, 4096, 20, 30)

CONSOLE = f"boot\n-----BEGIN SSH HOST KEY KEYS-----\n{makemachine.HOST_KEY} kimbox\n-----END SSH HOST KEY KEYS-----\n"

#: Methods that only read.
READING = frozenset({"images", "flavors", "networks", "limits", "keys", "servers", "console", "addresses"})

#: The state to which an action leads.
LEADS_TO = {
    Action.START: Status.ACTIVE,
    Action.STOP: Status.SHUTOFF,
    Action.SUSPEND: Status.SUSPENDED,
    Action.RESUME: Status.ACTIVE,
    Action.UNPAUSE: Status.ACTIVE,
}


class FakeCloud:
    """A project. `before` and `after` are called with the name of each method that is called."""

    def __init__(self) -> None:
        self.ids = (f"id-{number}" for number in itertools.count())
        self.disks: dict[str, tuple[CloudImage, tuple[str, ...]]] = {}
        self.pairs: dict[str, str] = {}
        self.instances: dict[str, tuple[Server, ServerOrder]] = {}
        self.floating: dict[str, Address] = {}
        self.nets = {"private": "n1", "public": "n2"}
        self.kinds = [FLAVOR]
        self.quotas: dict[str, Limit] = {}
        self.text = CONSOLE
        self.next_status: str = Status.ACTIVE
        self.fault = ""
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self.after: Callable[[str], None] = lambda _: None
        #: What Glance receives of a disk.
        self.received: Callable[[bytes], bytes] = lambda data: data

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in _METHODS:

            def called(*words: Any, **more: Any) -> Any:
                self.calls.append(name)
                self.before(name)
                answer = value(*words, **more)
                self.after(name)
                return answer

            return called
        return value

    def everything(self) -> list[str]:
        """Everything that machines have left, but not the images of boxes."""
        snapshots = [image.name for image, tags in self.disks.values() if not tags]
        own = [address.ip for address in self.floating.values() if address.description]
        return [*self.pairs, *self.instances, *own, *snapshots]

    @property
    def changes(self) -> list[str]:
        """The calls that do not only read."""
        return [name for name in self.calls if name not in READING]

    # ---- the interface

    def images(self, *, tag: str = "", name: str = "") -> list[CloudImage]:
        return [image for image, tags in self.disks.values() if (tag and tag in tags) or (name and name == image.name)]

    def create_image(self, request: Mapping[str, Any]) -> str:
        made = CloudImage(next(self.ids), request["name"], Status.QUEUED, "", request[glance.DIGEST])
        self.disks[made.id] = made, tuple(request["tags"])
        return made.id

    def upload(self, image: str, disk: Path) -> None:
        old, tags = self.disks[image]
        digest = hashlib.sha512(self.received(disk.read_bytes())).hexdigest()
        self.disks[image] = CloudImage(image, old.name, Status.ACTIVE, digest, old.announced), tags

    def delete_image(self, image: str) -> None:
        self.disks.pop(image, None)

    def flavors(self) -> list[Flavor]:
        return self.kinds

    def networks(self) -> dict[str, str]:
        return self.nets

    def limits(self) -> dict[str, Limit]:
        return self.quotas

    def keys(self) -> list[str]:
        return list(self.pairs)

    def import_key(self, name: str, public_key: str) -> None:
        self.pairs[name] = public_key

    def delete_key(self, name: str) -> None:
        self.pairs.pop(name, None)

    def servers(self, name: str) -> list[Server]:
        return [server for server, order in self.instances.values() if order.name == name]

    def create_server(self, order: ServerOrder) -> None:
        made = Server(next(self.ids), self.next_status, self.fault, ("10.0.0.7",))
        self.instances[made.id] = made, order

    def act(self, server: str, action: Action) -> None:
        assert not self.instances[server][0].is_busy
        self.set_status(server, LEADS_TO[action])

    def set_status(self, server: str, status: str, *, is_busy: bool = False) -> None:
        old, order = self.instances[server]
        self.instances[server] = Server(old.id, status, old.fault, old.addresses, is_busy), order

    def console(self, server: str) -> bytes:
        return self.text.encode()

    def snapshot(self, server: str, name: str) -> None:
        assert not self.instances[server][0].is_busy
        made = next(self.ids)
        self.disks[made] = CloudImage(made, name, Status.ACTIVE), ()

    def rebuild(self, server: str, image: str) -> None:
        assert image in self.disks
        assert not self.instances[server][0].is_busy

    def delete_server(self, server: str) -> None:
        self.instances.pop(server, None)
        for address in self.floating.values():
            if self.attached.get(address.id) == server:
                self._free(address, True)

    def addresses(self, network: str) -> list[Address]:
        assert network == "n2"
        return list(self.floating.values())

    def allocate(self, network: str, description: str) -> Address:
        made = next(self.ids)
        self.floating[made] = Address(made, f"192.0.2.{len(self.floating) + 1}", True, description)
        return self.floating[made]

    def attach(self, address: str, server: str) -> None:
        self._free(self.floating[address], False)
        self.attached[address] = server

    def _free(self, address: Address, is_free: bool) -> None:
        self.floating[address.id] = Address(address.id, address.ip, is_free, address.description)

    def release(self, address: str) -> None:
        self.floating.pop(address, None)

    @property
    def attached(self) -> dict[str, str]:
        """Floating address -> instance."""
        return self.__dict__.setdefault("_attached", {})


_METHODS = frozenset({
    *READING, "create_image", "upload", "delete_image", "import_key", "delete_key", "create_server", "act", "snapshot",
    "rebuild", "delete_server", "allocate", "attach", "release",
})  # fmt: skip
