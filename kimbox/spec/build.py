"""One merged tree -> a Box. Checks what a schema cannot say, and notes every fault at its place."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from kimbox import paths
from kimbox.spec import rules, sealing, signing, units, urls
from kimbox.spec.layers import find_beside
from kimbox.spec.layout import EXTENT_BYTES, dm_name, round_up, shares
from kimbox.spec.model import (
    SETUP,
    SETUP_TIMEOUT_S,
    BootMode,
    Box,
    BoxImage,
    Disk,
    Forward,
    Mode,
    PackageImage,
    Probe,
    RemoteImage,
    Repository,
    Run,
    Scratch,
    Step,
    Volume,
)
from kimbox.spec.nodes import Fault, Node, Problems, shown
from kimbox.spec.uses import used_repository

T = TypeVar("T")

#: Releases that kimbox can build, the default first.
SUITES = {"debian": ("trixie", "bookworm"), "ubuntu": ("noble", "jammy")}

#: What a branch-less repository is locked to: the default branch of the remote.
DEFAULT_REF = "HEAD"

#: Where repositories are checked out unless the spec says otherwise.
CHECKOUTS = "/usr/local/src"

#: Smallest sizes that can work at all.
MIN_MEMORY_BYTES = 256 * units.MIB
MIN_BOOT_BYTES = 64 * units.MIB
MIN_ROOT_BYTES = 256 * units.MIB
MIN_SCRATCH_BYTES = 16 * units.MIB

#: The volumes of a disk, in the order in which they lie on it.
VOLUMES = ("root", "persistent", "swap", "root_snap")


def build(tree: Node, spec: Path, layers: tuple[Path, ...], problems: Problems, faulty: set[int]) -> Box:
    """The Box of a complete tree. If `problems` grew, the result is not to be used."""
    return _Builder(tree, spec, layers, problems, faulty).box()


def digest(tree: Node) -> str:
    """sha256 of the merged spec in canonical form: its comments, order, layers and place do not matter."""
    value = {key: child for key, child in tree.plain().items() if key != "base"}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Builder:
    def __init__(self, tree: Node, spec: Path, layers: tuple[Path, ...], problems: Problems, faulty: set[int]) -> None:
        self.tree = tree
        self.spec = spec
        self.layers = layers
        self.problems = problems
        self.faulty = set(faulty)

    def fault(self, node: Node, message: str, hint: str | None = None) -> None:
        """Notes a fault at a node."""
        self.faulty.add(id(node))
        self.problems.add(node.mark, message, hint)

    def text(self, node: Node | None, rule: Callable[[str], T], otherwise: T) -> T:
        """The value of a text by a rule; `otherwise` where it is faulty (which is noted) or missing."""
        if node is None or id(node) in self.faulty or not isinstance(node.value, str):
            return otherwise
        try:
            return rule(node.value)
        except Fault as fault:
            self.fault(node, fault.message, fault.hint)
            return otherwise

    def number(self, node: Node | None) -> int:
        """The value of a whole number."""
        sound = node is not None and id(node) not in self.faulty and type(node.value) is int
        return node.value if sound and node else 0  # type: ignore[return-value]

    def box(self) -> Box:
        """The whole Box."""
        tree = self.tree
        repositories, image = self.repositories(), self.image()
        return Box(
            name=self.text(tree.get("name"), rules.box_name, ""),
            description=self.text(tree.get("description"), str, ""),
            source=Path(os.path.abspath(self.spec)),  # noqa: PTH100 - not through links
            layers=self.layers,
            digest=digest(tree),
            image=image,
            disk=self.disk(),
            boot=self.text(tree.get("boot"), BootMode, BootMode.KEEP),
            cpus=self.number(tree.get("cpus")),
            memory_bytes=self.text(
                tree.get("memory"), functools.partial(units.size, unit=units.MIB, least=MIN_MEMORY_BYTES), 0
            ),
            forwards=self.forwards(),
            repositories=repositories,
            provision=self.provision(),
            probes=self.probes(),
            scratch=self.scratch(repositories),
            secure=sealing.secure(self, tree.get("secure"), image),
        )

    def image(self) -> PackageImage | RemoteImage | BoxImage:
        """The image, in one of its forms."""
        get = functools.partial(self.tree.get, "image")
        if name := get("box"):
            return BoxImage(self.text(name, rules.vagrant_box, ""))
        if location := get("location"):
            where = self.text(location, urls.image, "")
            if where and not urls.is_url(where):
                folder = Path(location.mark.file).parent
                where = os.path.abspath(folder / where)  # noqa: PTH100 - not through links
            return RemoteImage(where, self.text(get("digest"), rules.digest, ""))
        distribution = self.text(get("distribution"), str, "debian")
        suites = SUITES.get(distribution, ())
        suite = get("suite")
        release = self.text(suite, str, suites[0] if suites else "")
        if suite and suites and id(suite) not in self.faulty and release not in suites:
            self.fault(suite, f"{distribution} has no suite {shown(release)}", f"there are: {', '.join(suites)}")
        packages = get("packages")
        names = [(item, self.text(item, rules.package, "")) for item in (packages.items if packages else [])]
        self.twice(names, "the package")
        return PackageImage(
            distribution, release, tuple(name for _, name in names if name), self.text(get("mirror"), urls.mirror, None)
        )

    def twice(self, named: list[tuple[Node, str]], what: str) -> None:
        """Notes every name that is there again."""
        seen: dict[str, Node] = {}
        for node, name in named:
            if not name or id(node) in self.faulty:
                continue
            if first := seen.get(name):
                place = f"line {first.mark.line}" + (
                    "" if first.mark.file == node.mark.file else f" of {first.mark.file}"
                )
                self.fault(node, f"{what} {shown(name)} is here for the second time", f"first in {place}")
            seen.setdefault(name, node)

    def disk(self) -> Disk:
        """The disk; its volumes must fit on it."""
        get = functools.partial(self.tree.get, "disk")
        group = self.text(get("volume_group"), rules.volume_group, "")
        size = self.text(get("size"), units.size, 0)
        boot = self.text(get("boot"), functools.partial(units.size, least=MIN_BOOT_BYTES), 0)
        root = self.text(get("volumes", "root"), functools.partial(units.size, least=MIN_ROOT_BYTES), 0)
        persistent = self.text(get("volumes", "persistent"), units.size, 0)
        swap = self.text(get("volumes", "swap"), units.size, 0)
        snapshot = self.text(get("volumes", "root_snap"), units.snapshot_size, None)
        names = [(node, self.text(node, rules.volume_name, "")) for key in VOLUMES if (node := get("names", key))]
        own = get("names")
        self.twice(
            sorted(names, key=lambda n: own is None or n[0].mark != own.mark), "the volume name"
        )  # defaults first
        for node, name in names:
            if len(dm_name(group, name)) > rules.MAX_DM_NAME and id(node) not in self.faulty:
                self.fault(node, f"{shown(group)} and {shown(name)} are together too long for device-mapper")
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
        sound = [get("size"), get("boot"), *(get("volumes", key) for key in volumes)]
        if all(node and id(node) not in self.faulty for node in (*sound, get(), get("volumes"))):
            self.must_fit(disk)
        return disk

    def must_fit(self, disk: Disk) -> None:
        """Notes it if boot partition, volumes and overhead are more than the disk."""
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
            )

    def forwards(self) -> tuple[Forward, ...]:
        """The forwarded ports: each port of guest and host once."""
        forwards: list[Forward] = []
        guests: list[tuple[Node, str]] = []
        hosts: list[tuple[Node, str]] = []
        for item in self.tree.get("forwards").items if self.tree.get("forwards") else []:  # type: ignore[union-attr]
            guest, host = item.get("guest"), item.get("host")
            port: int | None = None
            if guest and self.number(guest):
                guests.append((guest, str(guest.value)))
            if host and isinstance(host.value, str) and host.value != "auto" and id(host) not in self.faulty:
                self.fault(host, f"{shown(host.value)} is not a port: write auto, or a number from 1024 to 65535")
            elif host and self.number(host):
                port = self.number(host)
                hosts.append((host, str(port)))
            forwards.append(Forward(self.number(guest), port))
        self.twice(guests, "the guest port")
        self.twice(hosts, "the host port")
        return tuple(forwards)

    def repositories(self) -> tuple[Repository, ...]:
        """The repositories, in the order of the spec; no checkout lies in another."""
        found: list[Repository] = []
        node = self.tree.get("repositories")
        for name, item in node.mapping.items() if node else ():
            try:
                rules.repository_name(name)
            except Fault as fault:
                assert node is not None  # noqa: S101 - it was just walked
                self.problems.add(node.keys[name], fault.message, fault.hint)
                continue
            found.append(self.repository(name, item))
        self.apart(found)
        return tuple(found)

    def repository(self, name: str, item: Node) -> Repository:
        """One repository."""
        url, ref, path, timeout = (item.get(key) for key in ("url", "ref", "path", "timeout"))
        if timeout and name != SETUP:
            self.fault(timeout, f"nothing of the repository {name} is run", f"only {SETUP} has a timeout")
        where = self.text(url, urls.repository, "")
        folder = bool(where) and urls.is_folder(where)
        if url and folder:
            where = str(self.text(url, functools.partial(self.folder, Path(url.mark.file).parent), Path()))
            if ref:
                self.fault(ref, "a folder has no ref", "leave it out: the lock pins what the folder holds")
        return Repository(
            name=name,
            url=where,
            is_folder=folder,
            ref=DEFAULT_REF if folder else self.text(ref, rules.ref, DEFAULT_REF),
            path=self.text(path, rules.guest_path, f"{CHECKOUTS}/{name}"),
            timeout_s=self.text(timeout, units.duration, SETUP_TIMEOUT_S),
            keys=self.verified_by(item.get("verify", "keys"), folder),
            follow=self.follow(name, item),
        )

    def follow(self, name: str, item: Node) -> bool:
        """Whether the guest follows the branch of a repository: it has neither credentials nor keys to verify with."""
        node = item.get("follow")
        if node is None or node.value is not True:
            return False
        url, ref = (str(part.value) if (part := item.get(key)) else "" for key in ("url", "ref"))
        if why := urls.why_not_followed(name, url, ref, is_verified=item.get("verify", "keys") is not None):
            self.fault(node, why, "leave `follow` out: then the lock pins a commit")
        return True

    def verified_by(self, node: Node | None, folder: bool) -> tuple[str, ...]:
        """The keys that a repository is verified with."""
        if node is None:
            return ()
        if folder:
            self.fault(node, "a folder bears no signature", "leave `verify` out, or give the URL of a git repository")
        elif not node.items:
            self.fault(
                node, "without a key there is nothing to verify with", "name a public key, or leave `verify` out"
            )
        return self.keys(node)

    def keys(self, node: Node | None) -> tuple[str, ...]:
        """Public keys, each once: those of a list, and of the files that it names."""
        found: dict[str, None] = {}
        nothing: tuple[str, ...] = ()
        for item in node.items if node else ():
            rule = functools.partial(signing.keys, beside=Path(item.mark.file).parent, root=self.spec.parent)
            found |= dict.fromkeys(self.text(item, rule, nothing))
        return tuple(found)

    def folder(self, beside: Path, text: str) -> Path:
        """The folder that a repository's url names."""
        found = find_beside(text, beside, (self.spec.parent, paths.boxes_dir()), "folder")
        if not found.is_dir():
            raise Fault(f"{shown(text)} is not a folder", "name a folder, or a git URL such as https://...")
        return Path(os.path.abspath(found))  # noqa: PTH100 - not through links

    def apart(self, repositories: list[Repository]) -> None:
        """Notes two repositories on the same path, or one inside another."""
        owners: dict[str, Repository] = {}
        above: dict[str, Repository] = {}
        for later in repositories:
            parents = [str(parent) for parent in PurePosixPath(later.path).parents]
            around = next((owners[p] for p in (later.path, *parents) if p in owners), above.get(later.path))
            node = self.tree.get("repositories", later.name)
            node = (node and node.get("path")) or node
            if around and node and id(node) not in self.faulty:
                same = around.path == later.path
                how = "is also the path of" if same else f"is nested with {shown(around.path)}, the path of"
                self.fault(node, f"{shown(later.path)} {how} the repository {shown(around.name)}", "give each its own")
            owners.setdefault(later.path, later)
            above.update(dict.fromkeys(parents, later))

    def scratch(self, repositories: tuple[Repository, ...]) -> Scratch | None:
        """The scratch space, if there is one; it hides no checkout, and no checkout is lost with it."""
        node = self.tree.get("scratch")
        if node is None or not node.mapping:
            return None
        size, mount = node.get("size"), node.get("mount") or node
        where = self.text(mount, rules.mount_point, "")
        for repository in repositories if where else ():
            ours, theirs = PurePosixPath(where), PurePosixPath(repository.path)
            if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
                name = f"{shown(repository.path)}, the path of the repository {shown(repository.name)}"
                self.fault(mount, f"{shown(where)} overlaps with {name}", "give each its own")
                break
        return Scratch(self.text(size, functools.partial(units.size, least=MIN_SCRATCH_BYTES), 0), where)

    def provision(self) -> tuple[Step, ...]:
        """The provision steps; each name once."""
        steps: list[Step] = []
        names: list[tuple[Node, str]] = []
        node = self.tree.get("provision")
        for item in node.items if node else []:
            name = self.text(item.get("name"), rules.step_name, "")
            if place := item.get("name"):
                names.append((place, name))
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
        self.twice(names, "the step")
        return tuple(steps)

    def uses(self, node: Node | None) -> tuple[str, ...] | None:
        """The repositories that a step uses, each once and each of this spec; None where it does not say."""
        if node is None:
            return None
        there = self.tree.get("repositories")
        rule = functools.partial(used_repository, known=tuple(there.mapping) if there else ())
        named = [(item, self.text(item, rule, "")) for item in node.items if not self.problems.full]
        self.twice(named, "the repository")
        return tuple(name for _, name in named if name)

    def probes(self) -> tuple[Probe, ...]:
        """The probes; each description once."""
        probes: list[Probe] = []
        names: list[tuple[Node, str]] = []
        node = self.tree.get("probes")
        for item in node.items if node else []:
            description = self.text(item.get("description"), _one_line, "")
            if place := item.get("description"):
                names.append((place, description))
            probes.append(
                Probe(
                    description=description,
                    script=self.text(item.get("script"), _script, ""),
                    hint=self.text(item.get("hint"), str, None),
                    timeout_s=self.text(item.get("timeout"), units.duration, 0),
                )
            )
        self.twice(names, "the probe")
        return tuple(probes)


def _script(text: str) -> str:
    if not text.strip():
        raise Fault("a script cannot be empty")
    return text


def _one_line(text: str) -> str:
    if not text.strip() or "\n" in text or len(text) > 200:
        raise Fault("a description of a probe is one line of at most 200 characters")
    return text
