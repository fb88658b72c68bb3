"""The order of a job: what `kimbox job submit` has written for the runner, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kimbox.errors import KimboxError
from kimbox.files import read_bounded

#: Version of the content.
FORMAT = 1

#: Maximum size of the file, in bytes.
MAX_BYTES = 4 << 20

#: Names of files: the order, the folder of the job as a disk, the disk with the manifest, the image.
ORDER, BASE, DELIVERY, IMAGE = "order.json", "base.raw", "delivery.raw", "image.qcow2"

#: Name of the file that the runner writes: a disk with the results.
RESULTS = "results.raw"

#: Names of the files on it beside the results: verdict and facts, events of the guest, end of its console; and the
#: maximum size of the events, in bytes.
REPORT, EVENTS, CONSOLE, MAX_EVENT_BYTES = "report.json", "events.jsonl", "console", 1 << 20

#: The id of the job in the command line, which the runner replaces by a new one.
PLACEHOLDER = "000000000000"

#: Start of the argument of QEMU with the id.
CREDENTIAL = "type=11,value=io.systemd.credential:kimbox.job="


@dataclass(frozen=True, slots=True)
class Order:
    """A job. The command line is that of QEMU, without program and accelerator; its files are in one folder."""

    command: list[str]
    #: Arguments of the program. That of the item follows.
    arguments: list[str]
    image_sha256: str
    #: Size of the file of the image, and of the disk of the guest, in bytes.
    image_bytes: int
    disk_bytes: int
    #: Where the image comes from; empty: it is beside the order.
    image_url: str
    has_delivery: bool
    #: Permissions and time of the last change of the job's folder. The disk in BASE has those of everything in it.
    folder_mode: int
    folder_modified_ns: int
    #: Whether the folder has a folder `output`. Every disk of a job has one, also that in BASE.
    has_output: bool
    scratch_bytes: int | None = None
    #: Size of the disk of the job, or room for results: a part in percent, as a fraction, or bytes.
    size_bytes: int | None = None
    room_percent: str | None = None
    room_bytes: int | None = None
    #: Limit on the program, and on the boot with its provisioning, in seconds.
    timeout_s: int | None = None
    boot_timeout_s: float = 1800.0
    #: Maximum size of the images that a node keeps, in bytes.
    cache_bytes: int = 20 << 30

    def as_bytes(self) -> bytes:
        """The content of the file."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1).encode()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads an order. Raises KimboxError (`bad-record`)."""
        try:
            value: dict[str, Any] = json.loads(read_bounded(path, limit_bytes=MAX_BYTES))
            if value.pop("format") != FORMAT:
                raise ValueError("another version")
            return cls(**value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KimboxError(f"{path} is not an order of kimbox: {error}", code="bad-record") from None
