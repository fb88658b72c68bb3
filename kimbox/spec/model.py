"""The typed, frozen form of a box spec: what every other part of kimbox works from.

Sizes are bytes, durations seconds. Paths of the host are absolute; paths of the guest are text.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import attrs

#: LV size that means: as large as the origin, with the room a snapshot needs to hold a change of every chunk.
FULL_ORIGIN = "100%ORIGIN"

#: Name of the repository whose scripts `setup` and `secure` are run.
SETUP = "setup"

#: What its `setup` may take in seconds, and its `secure`, unless the spec says otherwise.
SETUP_TIMEOUT_S = 3600


class BootMode(StrEnum):
    """Which root the next boot gets."""

    RESNAP = "resnap"  #: a new snapshot of root: every change is gone
    KEEP = "keep"  #: the snapshot as it was left
    MAINTAIN = "maintain"  #: root itself, for its maintainer


class Run(StrEnum):
    """How often a provision step runs."""

    ONCE = "once"  #: once for each new root, and again when its script or what it uses changes
    BOOT = "boot"  #: at every boot
    ALWAYS = "always"  #: every time the box is provisioned


class Mode(StrEnum):
    """Who a provision step runs as."""

    SYSTEM = "system"  #: root
    USER = "user"  #: the account `vagrant`


@attrs.frozen
class PackageImage:
    """An image built here from the packages of a distribution."""

    distribution: str
    suite: str
    packages: tuple[str, ...]
    #: URL of the package mirror; None: the machine's own apt configuration.
    mirror: str | None = None


@attrs.frozen
class RemoteImage:
    """A disk image made elsewhere: a path, or an http(s) URL. `digest` is `sha256:` and 64 hex digits."""

    location: str
    digest: str


@attrs.frozen
class BoxImage:
    """The disk of a box that `kimbox box add` brought, by its name."""

    name: str


@attrs.frozen
class Volume:
    """A logical volume. `size_bytes` None stands for FULL_ORIGIN (only for the snapshot)."""

    name: str
    size_bytes: int | None


@attrs.frozen
class Disk:
    """The disk: an MBR partition for /boot, and one PV with the volume group in the rest."""

    size_bytes: int
    boot_bytes: int
    volume_group: str
    root: Volume
    persistent: Volume
    swap: Volume | None
    snapshot: Volume


@attrs.frozen
class Scratch:
    """Scratch space: a disk that is empty at every start, mounted at `mount` in the guest."""

    size_bytes: int
    mount: str


@attrs.frozen
class Forward:
    """A TCP port of the guest, reachable on 127.0.0.1 of the host. `host` None: one is chosen."""

    guest: int
    host: int | None


@attrs.frozen
class Repository:
    """A git repository that the box holds at a pinned commit.

    `url` is what git understands, or the absolute path of a folder where `is_folder` (no git repository: kimbox
    commits it into a mirror of its own). `path` is where the guest checks it out.
    """

    name: str
    url: str
    is_folder: bool
    ref: str
    path: str
    #: For the repository SETUP: what each of its scripts may take.
    timeout_s: int = SETUP_TIMEOUT_S
    #: For the repository SETUP: whether the guest takes the newest commit of the branch `ref` at each boot.
    follow: bool = False
    #: Public keys of which one must have signed the commit or its tag (see `signing`); none: nothing need be signed.
    keys: tuple[str, ...] = ()


@attrs.frozen
class Step:
    """A provision step: a shell script of the spec."""

    name: str
    script: str
    mode: Mode
    run: Run
    timeout_s: int
    #: Names of the repositories that it uses; None: not said, and those whose path its script names count.
    uses: tuple[str, ...] | None = None


@attrs.frozen
class Probe:
    """What must hold before the box is ready: a script that exits with 0 in the guest."""

    description: str
    script: str
    hint: str | None
    timeout_s: int


@attrs.frozen
class Gateway:
    """The ssh server of a site that hands out credentials; `host_keys` are those of which it must have one."""

    host: str
    port: int
    host_keys: tuple[str, ...]


@attrs.frozen
class Outbound:
    """Whom a sealed box may reach: a name or an address, a port, and `tcp` or `udp`."""

    host: str
    port: int
    protocol: str = "tcp"


@attrs.frozen
class Role:
    """What a box becomes when it is secured, and what may then come in and go out."""

    name: str
    #: None: nobody is asked for credentials; the box keeps user name and password hash itself.
    gateway: Gateway | None
    #: TCP ports.
    inbound: tuple[int, ...]
    #: The gateway is not among them.
    outbound: tuple[Outbound, ...]
    #: Accounts and systemd services that the setup repository's `secure` makes: what the audit lets pass.
    accounts: tuple[str, ...]
    services: tuple[str, ...]


@attrs.frozen
class Secure:
    """How a box is sealed."""

    #: The name that `kimbox secure` proposes.
    site: str | None
    roles: tuple[Role, ...]
    #: ssh public keys that may log in as the operator.
    keys: tuple[str, ...]
    #: Whether the name servers may be asked.
    dns: bool
    #: Packages that each new root loses, units that are stopped.
    remove: tuple[str, ...]
    disable: tuple[str, ...]
    updates: bool

    def role(self, name: str) -> Role | None:
        """The role of that name, if there is one."""
        return next((role for role in self.roles if role.name == name), None)


@attrs.frozen
class Box:
    """A whole box spec, checked, with defaults and layers applied."""

    name: str
    description: str
    #: The spec's own file (absolute); relative paths in it start from its folder.
    source: Path
    #: Every layer that went in, the spec itself last.
    layers: tuple[Path, ...]
    #: sha256 hex digest of the merged spec in canonical form: what the lock and status refer to.
    digest: str
    image: PackageImage | RemoteImage | BoxImage
    disk: Disk
    boot: BootMode
    cpus: int
    memory_bytes: int
    forwards: tuple[Forward, ...]
    repositories: tuple[Repository, ...]
    provision: tuple[Step, ...]
    probes: tuple[Probe, ...]
    scratch: Scratch | None = None
    secure: Secure | None = None

    def repository(self, name: str) -> Repository | None:
        """The repository of that name, if the box has it."""
        return next((r for r in self.repositories if r.name == name), None)
