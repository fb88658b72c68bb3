"""The typed, frozen form of a box spec, which every other part of kimbox uses.

Sizes are in bytes, durations in seconds. Paths of the host are absolute; paths of the guest are text.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import attrs

from kimbox.spec.occasions import Notify

#: Size of a snapshot that can hold a change of every chunk of its origin.
FULL_ORIGIN = "100%ORIGIN"

#: Name of the repository whose scripts `setup` and `secure` run in the guest.
SETUP = "setup"

#: Default timeout of each of these scripts, in seconds.
SETUP_TIMEOUT_S = 3600

#: Default limit on each wait for a cloud, in seconds.
INSTANCE_TIMEOUT_S = 900


class BootMode(StrEnum):
    """The root of the next boot."""

    RESNAP = "resnap"  #: a new snapshot of root: every change is discarded
    KEEP = "keep"  #: the snapshot of the last boot, with its changes
    MAINTAIN = "maintain"  #: root itself, for maintenance


class ResnapKeep(StrEnum):
    """What a box keeps for the next resnap boots."""

    PROVISIONED = "provisioned"  #: a new root, when it is ready for the first time
    NOTHING = "nothing"  #: nothing: every resnap boot provisions an empty snapshot


class Run(StrEnum):
    """When a provision step runs."""

    ONCE = "once"  #: once on each new root, and after its script or a repository that it uses has changed
    BOOT = "boot"  #: at every boot
    ALWAYS = "always"  #: every time the box is provisioned


class Mode(StrEnum):
    """The user that a provision step runs as."""

    SYSTEM = "system"  #: root
    USER = "user"  #: the account `vagrant`


class Display(StrEnum):
    """The protocol in which the screen of a box is shown."""

    VNC = "vnc"
    SPICE = "spice"


@attrs.frozen
class PackageImage:
    """An image built here from the packages of a distribution."""

    distribution: str
    suite: str
    packages: tuple[str, ...]
    #: URL of the package mirror; None: the apt configuration of the host.
    mirror: str | None = None
    #: The image keeps manual pages, translations and documents.
    docs: bool = False
    #: Recommended packages are installed too.
    recommends: bool = False


@attrs.frozen
class RemoteImage:
    """A disk image that kimbox did not build: a path, or an http(s) URL. `digest` is `sha256:` and 64 hex digits."""

    location: str
    digest: str

    @property
    def key(self) -> str:
        """Key of the image in the store: the hex digest of its file."""
        return self.digest.removeprefix("sha256:")


@attrs.frozen
class SavedImage:
    """The disk of a saved box, as an image of the store. No spec has it: a verb puts it in place of the image below."""

    #: Keys of the image in the store, and of the image that the saved disk was made from.
    key: str
    below: str
    #: The image of the spec.
    of_spec: PackageImage | RemoteImage | BoxImage | SavedImage


@attrs.frozen
class BoxImage:
    """The disk of a box that `kimbox box add` added, by its name."""

    name: str


@attrs.frozen
class Volume:
    """A logical volume. `size_bytes` None means FULL_ORIGIN (only for the snapshot)."""

    name: str
    size_bytes: int | None


@attrs.frozen
class Disk:
    """The disk: an MBR partition for /boot, and a PV with the volume group in the second partition."""

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
class Mount:
    """A folder of the host, `location`, that the guest has at `mount_point`."""

    location: Path
    mount_point: str
    #: Whether the guest may change it.
    writable: bool = False


@attrs.frozen
class Forward:
    """A TCP port of the guest, forwarded from a port on 127.0.0.1 of the host. `host` None: kimbox chooses the port."""

    guest: int
    host: int | None


@attrs.frozen
class Network:
    """A network between boxes of one spec. `subnet` has the length of its prefix, as 10.57.0.0/24."""

    name: str
    subnet: str
    #: Name and IPv4 address of each box in it.
    addresses: tuple[tuple[str, str], ...]

    def address(self, box: str) -> str | None:
        """Returns the address of a box; None if the box is not in the network."""
        return dict(self.addresses).get(box)


@attrs.frozen
class Repository:
    """A git repository that the box holds at a pinned commit.

    `url` is a URL for git or, if `is_folder`, the absolute path of a folder (not a git repository: kimbox commits its
    content into a mirror). `path` is the checkout in the guest.
    """

    name: str
    url: str
    is_folder: bool
    ref: str
    path: str
    #: For the repository SETUP: timeout of each of its scripts.
    timeout_s: int = SETUP_TIMEOUT_S
    #: For the repository SETUP: whether the guest fetches the newest commit of the branch `ref` at each boot.
    follow: bool = False
    #: Public keys, one of which must have signed the commit or its tag (see `signing`). Empty: no signature is needed.
    keys: tuple[str, ...] = ()


@attrs.frozen
class Step:
    """A provision step: a shell script in the spec."""

    name: str
    script: str
    mode: Mode
    run: Run
    timeout_s: int
    #: Names of the repositories that it uses; None: those whose path is in its script.
    uses: tuple[str, ...] | None = None


@attrs.frozen
class Variable:
    """A variable of provisioning and sessions. `value` None: it is secret, and `file` is the path of its value."""

    name: str
    value: str | None
    file: Path | None


@attrs.frozen
class Probe:
    """A check that must pass before the box is ready: a script that exits with 0 in the guest."""

    description: str
    script: str
    hint: str | None
    timeout_s: int


#: Address of this host for a guest of QEMU's user network.
HOST_ADDRESS = "10.0.2.2"

#: The guest's port for ssh, and the first port on which every user of a host may listen.
SSH_PORT, FIRST_ORDINARY_PORT = 22, 1024


@attrs.frozen
class User:
    """An account of a person in the guest."""

    name: str
    #: ssh public keys. Empty: the key that kimbox logs in with.
    keys: tuple[str, ...] = ()
    #: Whether it may do everything with sudo, without a password.
    sudo: bool = False
    #: Groups of the guest, besides its own.
    groups: tuple[str, ...] = ()


@attrs.frozen
class Instance:
    """The instance that the box is in an OpenStack cloud: names of a flavor and of networks of the cloud."""

    flavor: str
    network: str
    #: The external network of its floating address; None: it has none.
    address: str | None = None
    #: Name in clouds.yaml; None: the cloud of the variables OS_*.
    cloud: str | None = None
    #: Limit on each wait for the cloud.
    timeout_s: int = INSTANCE_TIMEOUT_S


@attrs.frozen
class Gateway:
    """The ssh server of a site that issues credentials. It must have one of the `host_keys`.

    `box`: it is the box of that name on this host. Until that box has reported its host key, there are no `host_keys`.
    """

    host: str
    port: int
    host_keys: tuple[str, ...]
    box: str | None = None

    @property
    def is_on_network(self) -> bool:
        """Whether it is a box that is reached by a network of the spec, and not by a port of this host."""
        return self.box is not None and self.host != HOST_ADDRESS


@attrs.frozen
class Outbound:
    """A host that a sealed box may connect to: a name or an address, a port, and `tcp` or `udp`."""

    host: str
    port: int
    protocol: str = "tcp"


@attrs.frozen
class Role:
    """A role that a box may get when it is secured, with the connections that it then allows."""

    name: str
    #: None: there is no server for credentials; the box keeps user name and password hash itself.
    gateway: Gateway | None
    #: TCP ports that accept connections.
    inbound: tuple[int, ...]
    #: Without the gateway.
    outbound: tuple[Outbound, ...]
    #: Accounts and systemd services that the setup repository's `secure` creates, and that the audit allows.
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
    #: Whether the box may connect to name servers.
    dns: bool
    #: Packages that are removed from each new root, and units that are stopped.
    remove: tuple[str, ...]
    disable: tuple[str, ...]
    updates: bool
    #: Servers from which the box sets its clock: names or addresses.
    time: tuple[str, ...] = ()
    #: Whether the sealed box may boot keep.
    keep: bool = False

    def role(self, name: str) -> Role | None:
        """Returns the role of that name; None if there is none."""
        return next((role for role in self.roles if role.name == name), None)


@attrs.frozen
class Box:
    """A box spec that was checked, with defaults and layers applied."""

    name: str
    description: str
    #: Absolute path of the spec; relative paths in it start at its folder.
    source: Path
    #: Every file that was merged, the spec itself last.
    layers: tuple[Path, ...]
    #: sha256 hex digest of the merged spec in canonical form. Lock and status refer to it.
    digest: str
    image: PackageImage | RemoteImage | BoxImage | SavedImage
    disk: Disk
    boot: BootMode
    cpus: int
    memory_bytes: int
    forwards: tuple[Forward, ...]
    repositories: tuple[Repository, ...]
    provision: tuple[Step, ...]
    probes: tuple[Probe, ...]
    scratch: Scratch | None = None
    #: Folders of the host. A start without them is that of a clone, a job or a maintenance.
    mounts: tuple[Mount, ...] = ()
    secure: Secure | None = None
    #: None: the box is not for a cloud.
    openstack: Instance | None = None
    #: Name in the IANA time zone database; None: the zone of the image, which is UTC in images that kimbox builds.
    timezone: str | None = None
    #: A new machine of the box continues the template of the box.
    warm: bool = False
    #: systemd units that do not run in the template: they are stopped before, and started in each clone.
    cold_units: tuple[str, ...] = ()
    #: A box that hangs for this time is reset, in seconds; None: it is not.
    watchdog_s: int | None = None
    #: What the box keeps for the next resnap boots.
    resnap_keep: ResnapKeep = ResnapKeep.PROVISIONED
    #: Whether the image runs the job on a second disk without being asked by kimbox.
    job: bool = False
    #: Whether the spec has the key `boot`. If not, `boot` has the default of a box that is not sealed.
    has_boot_key: bool = True
    #: Paths of the root that a new root of the box gets from the former one (`kimbox up --rebuild`).
    keep: tuple[str, ...] = ()
    #: URL of the store of its saves; `{name}` in it stands for the name of the machine. None: there is none.
    store: str | None = None
    #: Time from the first start to the end, at which the box is shut down and saved, in seconds. None: it has no end.
    lifetime_s: int | None = None
    notify: tuple[Notify, ...] = ()
    #: The environment of provisioning and sessions.
    variables: tuple[Variable, ...] = ()
    #: The values that a command line has changed, as KEY=VALUE (`kimbox.spec.settings`).
    settings: tuple[str, ...] = ()
    #: Size of the disk of the machine, in bytes, if a command line has set it. None: that of the image.
    disk_bytes: int | None = None
    #: Accounts of people.
    users: tuple[User, ...] = ()
    #: The name of the box in a spec with several (`kimbox.spec.members`); None: the spec has one box.
    member: str | None = None
    #: The networks that the box is in.
    networks: tuple[Network, ...] = ()
    #: Whether each port on which a program of the guest listens is forwarded, besides `forwards`.
    auto_forwards: bool = False
    #: None: the box has no screen.
    display: Display | None = None

    def boot_mode(self, *, is_sealed: bool) -> BootMode:
        """Returns the boot mode of the spec. A sealed box boots resnap, unless its spec says something else."""
        may_keep = self.secure is not None and self.secure.keep
        return BootMode.RESNAP if is_sealed and not self.has_boot_key and not may_keep else self.boot

    def repository(self, name: str) -> Repository | None:
        """Returns the repository of that name; None if there is none."""
        return next((r for r in self.repositories if r.name == name), None)
