"""Builds a Box from a merged tree. Checks what a schema cannot express, and reports every fault at its place."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

from kimbox.spec import mounts, networks, notify, rules, sealing, units, urls, users
from kimbox.spec.environment import read_variables
from kimbox.spec.layout import EXTENT_BYTES, dm_name, kept_name, round_up, shares
from kimbox.spec.model import (
    BootMode,
    Box,
    BoxImage,
    Disk,
    Display,
    Forward,
    Instance,
    Mode,
    PackageImage,
    Probe,
    RemoteImage,
    Repository,
    ResnapKeep,
    Run,
    Scratch,
    Step,
    Volume,
)
from kimbox.spec.nodes import Fault, Node, Problems, shown
from kimbox.spec.reader import Reader
from kimbox.spec.repositories import read_repositories, refuse_overlap
from kimbox.spec.uses import used_repository

#: Distribution -> the suites that kimbox can build, the default first.
SUITES = {"debian": ("trixie", "bookworm"), "ubuntu": ("noble", "jammy")}

#: Minimum sizes: a box with less cannot work.
MIN_MEMORY_BYTES = 256 * units.MIB
MIN_BOOT_BYTES = 64 * units.MIB
MIN_ROOT_BYTES = 256 * units.MIB
#: Limits of the timeout of a watchdog, in seconds. Below, a busy host would reset a box; the device has 20 bits of ms.
MIN_WATCHDOG_S, MAX_WATCHDOG_S = 10, 600

MIN_SCRATCH_BYTES = 16 * units.MIB

#: In `forwards`: each port of the guest on which a program listens; a port of the host that kimbox chooses.
AUTO = "auto"

#: Maximum length of the description of a probe.
MAX_DESCRIPTION_CHARACTERS = 200

#: The volumes of a disk, in their order on it.
VOLUMES = ("root", "persistent", "swap", "root_snap")


def build(tree: Node, spec: Path, layers: tuple[Path, ...], problems: Problems, faulty: set[int]) -> Box:
    """Returns the Box of a complete tree. Adds faults to `problems`; if there are any, the Box has placeholder values.

    `layers` are the files that were merged. `faulty` are the ids of nodes that have a problem already.
    """
    return _Builder(tree, spec, layers, problems, faulty).box()


def digest(tree: Node) -> str:
    """Returns the sha256 of the merged spec in canonical form, without comments, order, layers and places."""
    value = {key: child for key, child in tree.plain().items() if key != "base"}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Builder(Reader):
    """Builds a Box from the values of a tree."""

    def __init__(self, tree: Node, spec: Path, layers: tuple[Path, ...], problems: Problems, faulty: set[int]) -> None:
        super().__init__(tree, spec, problems, faulty)
        self.layers = layers

    def box(self) -> Box:
        """Returns the Box."""
        tree = self.tree
        repositories, image = read_repositories(self), self.image()
        scratch = self.scratch(repositories)
        name = self.text(tree.get("name"), rules.box_name, "")
        joined = networks.joined(self, tree, name)
        return Box(
            name=name,
            description=self.text(tree.get("description"), str, ""),
            source=Path(os.path.abspath(self.spec)),  # noqa: PTH100 - not through links
            layers=self.layers,
            digest=digest(tree),
            image=image,
            disk=self.disk(is_built=isinstance(image, PackageImage)),
            boot=self.text(tree.get("boot"), BootMode, BootMode.KEEP),
            cpus=self.number(tree.get("cpus")),
            memory_bytes=self.text(
                tree.get("memory"), functools.partial(units.size, unit=units.MIB, least=MIN_MEMORY_BYTES), 0
            ),
            forwards=self.forwards(),
            display=self.text(tree.get("display"), Display, None),
            auto_forwards=any((guest := item.get("guest")) and guest.value == AUTO for item in self.forward_items()),
            repositories=repositories,
            provision=self.provision(),
            probes=self.probes(),
            scratch=scratch,
            mounts=mounts.read_mounts(self, guest_paths(repositories, scratch)),
            secure=sealing.secure(self, tree.get("secure"), image, joined),
            openstack=self.openstack(),
            timezone=self.text(tree.get("timezone"), rules.time_zone, None),
            watchdog_s=self.text(
                tree.get("watchdog"),
                functools.partial(units.duration, min_s=MIN_WATCHDOG_S, max_s=MAX_WATCHDOG_S),
                None,
            ),
            warm=self.switch(tree.get("warm")),
            cold_units=sealing.texts(self, tree.get("template", "stop"), sealing.unit_name, "unit"),
            resnap_keep=self.text(tree.get("resnap", "keep"), ResnapKeep, ResnapKeep.PROVISIONED),
            job=self.switch(tree.get("job")),
            keep=sealing.texts(self, tree.get("keep"), rules.kept_path, "path"),
            store=self.text(tree.get("store"), urls.store, None),
            lifetime_s=self.text(tree.get("lifetime"), notify.lifetime, None),
            notify=notify.read_notify(self, tree.get("notify")),
            variables=read_variables(self),
            users=users.read_users(self, tree.get("users")),
            networks=joined,
        )

    def image(self) -> PackageImage | RemoteImage | BoxImage:
        """Returns the image, in one of its three forms."""
        get = functools.partial(self.tree.get, "image")
        if name := get("box"):
            return BoxImage(self.text(name, rules.vagrant_box, ""))
        if location := get("location"):
            url = self.text(location, urls.image, "")
            if url and not urls.is_url(url):
                folder = Path(location.mark.file).parent
                url = os.path.abspath(folder / url)  # noqa: PTH100 - not through links
            return RemoteImage(url, self.text(get("digest"), rules.digest, ""))
        distribution = self.text(get("distribution"), str, "debian")
        suites = SUITES.get(distribution, ())
        suite = get("suite")
        release = self.text(suite, str, suites[0] if suites else "")
        if suite and suites and id(suite) not in self.faulty and release not in suites:
            message, hint = f"{distribution} has no suite {shown(release)}", f"there are: {', '.join(suites)}"
            self.fault(suite, message, hint, code="bad-value")
        packages = get("packages")
        names = [(item, self.text(item, rules.package, "")) for item in (packages.items if packages else [])]
        self.refuse_duplicates(names, "package")
        return PackageImage(
            distribution,
            release,
            tuple(name for _, name in names if name),
            self.text(get("mirror"), urls.mirror, None),
            docs=self.switch(get("docs")),
            recommends=self.switch(get("recommends")),
        )

    def disk(self, *, is_built: bool) -> Disk:
        """Returns the disk. Reports a fault if its volumes do not fit on it, unless another image has its own."""
        get = functools.partial(self.tree.get, "disk")
        group = self.text(get("volume_group"), rules.volume_group, "")
        size = self.text(get("size"), units.size, 0)
        boot = self.text(get("boot"), functools.partial(units.size, least=MIN_BOOT_BYTES), 0)
        root = self.text(get("volumes", "root"), functools.partial(units.size, least=MIN_ROOT_BYTES), 0)
        persistent = self.text(get("volumes", "persistent"), units.size, 0)
        swap = self.text(get("volumes", "swap"), units.size, 0)
        snapshot = self.text(get("volumes", "root_snap"), units.snapshot_size, None)
        names = [(node, self.text(node, rules.volume_name, "")) for key in VOLUMES if (node := get("names", key))]
        parent = get("names")
        # Names of the schema first: a fault must be at a name of the spec.
        in_order = sorted(names, key=lambda pair: parent is None or pair[0].mark != parent.mark)
        self.refuse_duplicates(in_order, "volume name")
        kept = kept_name(next((name for node, name in names if node is get("names", "root_snap")), ""))
        for node, name in names:
            if name == kept and self.is_sound(node):
                self.fault(node, f"{shown(name)} is the name of the volume for a kept root", code="duplicate")
        for node, name in names:
            if len(dm_name(group, name)) > rules.MAX_DM_NAME_CHARACTERS and self.is_sound(node):
                message = f"{shown(group)} and {shown(name)} together are too long for device-mapper"
                self.fault(node, message, code="bad-name")
        volumes = {"root": root, "persistent": persistent, "swap": swap, "root_snap": snapshot}
        named = dict(zip(VOLUMES, (name for _, name in names), strict=False))
        disk = Disk(
            size_bytes=size,
            boot_bytes=boot,
            volume_group=group,
            root=Volume(named.get("root", ""), root),
            persistent=Volume(named.get("persistent", ""), persistent),
            swap=Volume(named.get("swap", ""), swap) if swap else None,
            snapshot=Volume(named.get("root_snap", ""), snapshot),
        )
        sizes = [get("size"), get("boot"), *(get("volumes", key) for key in volumes)]
        if is_built and all(map(self.is_sound, (*sizes, get(), get("volumes")))):
            self.check_disk_size(disk)
        return disk

    def check_disk_size(self, disk: Disk) -> None:
        """Reports a fault if boot partition, volumes and overhead are larger than the disk."""
        parts = shares(disk)
        need = sum(parts.values())
        node = self.tree.get("disk", "size")
        if need > disk.size_bytes and node:
            total = round_up(need, EXTENT_BYTES)
            terms = " + ".join(f"{name} {units.size_text(count)}" for name, count in parts.items() if count)
            self.fault(
                node,
                f"the disk of {units.size_text(disk.size_bytes)} is too small: {terms} = {units.size_text(need)}",
                f"at least {units.size_text(total)}",
                code="disk-too-small",
            )

    def forwards(self) -> tuple[Forward, ...]:
        """Returns the forwarded ports that the spec names: each port of guest and host once."""
        forwards: list[Forward] = []
        guest_ports: list[tuple[Node, str]] = []
        host_ports: list[tuple[Node, str]] = []
        for item in self.forward_items():
            guest, host = item.get("guest"), item.get("host")
            if guest and guest.value == AUTO:
                if host and host.value != AUTO:
                    message = "each port of `guest: auto` has the same number on the host, or another that is free"
                    self.fault(host, message, "remove `host`", code="conflicting-settings")
                continue
            if guest and isinstance(guest.value, str) and self.is_sound(guest):
                message = f"{shown(guest.value)} is not a port: write auto, or a number from 1 to 65535"
                self.fault(guest, message, code="bad-value")
            host_port: int | None = None
            if guest and self.number(guest):
                guest_ports.append((guest, str(guest.value)))
            if host and isinstance(host.value, str) and host.value != AUTO and self.is_sound(host):
                message = f"{shown(host.value)} is not a port: write auto, or a number from 1024 to 65535"
                self.fault(host, message, code="bad-value")
            elif host and self.number(host):
                host_port = self.number(host)
                host_ports.append((host, str(host_port)))
            forwards.append(Forward(self.number(guest), host_port))
        self.refuse_duplicates(guest_ports, "guest port")
        self.refuse_duplicates(host_ports, "host port")
        return tuple(forwards)

    def forward_items(self) -> list[Node]:
        """Returns the items of `forwards`."""
        node = self.tree.get("forwards")
        return node.items if node else []

    def scratch(self, repositories: tuple[Repository, ...]) -> Scratch | None:
        """Returns the scratch space; None if there is none. Its mount point may not overlap with a checkout."""
        node = self.tree.get("scratch")
        if node is None or not node.mapping:
            return None
        size, mount_node = node.get("size"), node.get("mount") or node
        mount = self.text(mount_node, rules.mount_point, "")
        if mount:
            refuse_overlap(self, mount_node, mount, guest_paths(repositories, None))
        return Scratch(self.text(size, functools.partial(units.size, least=MIN_SCRATCH_BYTES), 0), mount)

    def openstack(self) -> Instance | None:
        """Returns the instance in a cloud; None if the box is not for one."""
        node = self.tree.get("openstack")
        if node is None or not node.mapping:
            return None
        return Instance(
            flavor=self.text(node.get("flavor"), str, ""),
            network=self.text(node.get("network"), str, ""),
            address=self.text(node.get("address"), str, None),
            cloud=self.text(node.get("cloud"), str, None),
            timeout_s=self.text(node.get("timeout"), units.duration, Instance("", "").timeout_s),
        )

    def provision(self) -> tuple[Step, ...]:
        """Returns the provision steps; each name once."""
        steps: list[Step] = []
        names: list[tuple[Node, str]] = []
        node = self.tree.get("provision")
        for item in node.items if node else []:
            name = self.text(item.get("name"), rules.step_name, "")
            if name_node := item.get("name"):
                names.append((name_node, name))
            steps.append(
                Step(
                    name=name,
                    script=self.text(item.get("script"), _script, ""),
                    mode=self.text(item.get("mode"), Mode, Mode.SYSTEM),
                    run=self.text(item.get("run"), Run, Run.ONCE),
                    timeout_s=self.text(item.get("timeout"), units.duration, 0),
                    uses=self.uses(item.get("uses")),
                )
            )
        self.refuse_duplicates(names, "step")
        return tuple(steps)

    def uses(self, node: Node | None) -> tuple[str, ...] | None:
        """Returns the repositories that a step uses, each once and each of this spec; None if it has no `uses`."""
        if node is None:
            return None
        repositories = self.tree.get("repositories")
        rule = functools.partial(used_repository, known=tuple(repositories.mapping) if repositories else ())
        named = [(item, self.text(item, rule, "")) for item in node.items if not self.problems.full]
        self.refuse_duplicates(named, "repository")
        return tuple(name for _, name in named if name)

    def probes(self) -> tuple[Probe, ...]:
        """Returns the probes; each description once."""
        probes: list[Probe] = []
        descriptions: list[tuple[Node, str]] = []
        node = self.tree.get("probes")
        for item in node.items if node else []:
            description = self.text(item.get("description"), _one_line, "")
            if description_node := item.get("description"):
                descriptions.append((description_node, description))
            probes.append(
                Probe(
                    description=description,
                    script=self.text(item.get("script"), _script, ""),
                    hint=self.text(item.get("hint"), str, None),
                    timeout_s=self.text(item.get("timeout"), units.duration, 0),
                )
            )
        self.refuse_duplicates(descriptions, "probe")
        return tuple(probes)


def guest_paths(repositories: tuple[Repository, ...], scratch: Scratch | None) -> dict[str, str]:
    """Returns the paths in the guest that the spec uses already, each with what is there."""
    paths = {repository.path: f"the path of the repository {shown(repository.name)}" for repository in repositories}
    return paths | ({scratch.mount: "the scratch space"} if scratch else {})


def _script(text: str) -> str:
    if not text.strip():
        raise Fault("a script cannot be empty", code="empty-value")
    return text


def _one_line(text: str) -> str:
    if not text.strip() or "\n" in text or len(text) > MAX_DESCRIPTION_CHARACTERS:
        message = f"the description of a probe is one line of at most {MAX_DESCRIPTION_CHARACTERS} characters"
        raise Fault(message, code="bad-value")
    return text
