"""What the driver needs of a cloud: a narrow interface (`Cloud`), and the records that it returns.

sdk.py implements it with openstacksdk; a test can implement it with a few dictionaries. A method that deletes something
succeeds if it does not exist. Each method raises KimboxError: `cloud-login`, `cloud-quota`, `cloud-not-found` or
`cloud-failed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import attrs


class Status(StrEnum):
    """States of images and instances that the driver uses. A cloud has more."""

    #: Of an image and of an instance.
    ACTIVE = "ACTIVE"
    #: Of an image whose disk is not complete.
    QUEUED = "QUEUED"
    SAVING = "SAVING"
    #: Of an instance.
    ERROR = "ERROR"
    PAUSED = "PAUSED"
    SHUTOFF = "SHUTOFF"
    SUSPENDED = "SUSPENDED"


#: States of an instance whose guest runs.
RUNNING = frozenset({Status.ACTIVE, Status.PAUSED, "REBOOT", "HARD_REBOOT", "REBUILD", "PASSWORD", "RESIZE"})


class Action(StrEnum):
    """Actions on an instance, as Nova names them."""

    START = "os-start"
    STOP = "os-stop"
    SUSPEND = "suspend"
    RESUME = "resume"
    UNPAUSE = "unpause"


@attrs.frozen
class CloudImage:
    """An image in Glance. `sha512`: hex digest of its disk; empty until the disk is complete."""

    id: str
    name: str
    status: str
    sha512: str = ""
    #: Digest that the publisher has announced before the upload.
    announced: str = ""


@attrs.frozen
class Flavor:
    """A kind of instance."""

    id: str
    name: str
    cpus: int
    ram_mib: int
    disk_gib: int
    ephemeral_gib: int


@attrs.frozen
class Limit:
    """A quota of the project. `limit` is negative if there is none."""

    used: int
    limit: int


@attrs.frozen
class Server:
    """An instance. `fault`: the reason for the state ERROR. `addresses`: its IPv4 addresses in its networks.

    `is_busy`: the cloud works on it, for example stops it or copies its disk. It refuses actions until that has ended.
    """

    id: str
    status: str
    fault: str = ""
    addresses: tuple[str, ...] = ()
    is_busy: bool = False


@attrs.frozen
class Address:
    """A floating IPv4 address of the project."""

    id: str
    ip: str
    is_free: bool
    description: str = ""


@attrs.frozen
class ServerOrder:
    """What an instance is made of. `user_data`: what the guest gets with it."""

    name: str
    image: str
    flavor: str
    network: str
    key: str
    metadata: Mapping[str, str]
    user_data: bytes = b""


class Cloud(Protocol):
    """One project of a cloud."""

    def images(self, *, tag: str = "", name: str = "") -> list[CloudImage]:
        """Returns the images of the project with this tag, or of this name, in order of their creation."""

    def create_image(self, request: Mapping[str, Any]) -> str:
        """Creates an image without a disk. Returns its id. `request`: as `formats.glance.request` returns it."""

    def upload(self, image: str, disk: Path) -> None:
        """Uploads the disk of an image. Also raises KimboxError (`image-refused`)."""

    def delete_image(self, image: str) -> None: ...

    def flavors(self) -> list[Flavor]: ...

    def networks(self) -> dict[str, str]:
        """Returns name -> id, without names that several have, and also id -> id."""

    def limits(self) -> dict[str, Limit]:
        """Returns the quotas that the cloud reports: names of check.py -> quota."""

    def keys(self) -> list[str]:
        """Returns the names of the key pairs of the user."""

    def import_key(self, name: str, public_key: str) -> None: ...

    def delete_key(self, name: str) -> None: ...

    def servers(self, name: str) -> list[Server]:
        """Returns the instances of exactly this name."""

    def create_server(self, order: ServerOrder) -> None: ...

    def act(self, server: str, action: Action) -> None: ...

    def console(self, server: str) -> bytes:
        """Returns the end of the output of an instance on its serial console; empty before there is any."""

    def snapshot(self, server: str, name: str) -> None:
        """Makes an image of an instance."""

    def rebuild(self, server: str, image: str) -> None:
        """Replaces the disk of an instance by an image."""

    def delete_server(self, server: str) -> None: ...

    def addresses(self, network: str) -> list[Address]:
        """Returns the floating addresses of the project in an external network, given by its id."""

    def allocate(self, network: str, description: str) -> Address:
        """Gets a new floating address. Also raises KimboxError (`no-address`)."""

    def attach(self, address: str, server: str) -> None:
        """Makes a floating address lead to an instance, which has a port."""

    def release(self, address: str) -> None: ...
