"""kimbox cp: copies files and folders between this host and a box."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from kimbox import run
from kimbox.actions.observe import check_connection, reach
from kimbox.errors import GuestError, KimboxError, StateError, UsageError
from kimbox.guest import copying, shared
from kimbox.guest.copying import Item, Listing, Transfer
from kimbox.guest.endpoint import Endpoint, ssh_command
from kimbox.log import log
from kimbox.machine.folder import Machine

#: The progress of rsync(1): bytes, percent, rate.
_PROGRESS = re.compile(r" *([\d,]{1,20}) +(\d{1,3})% +(\S{1,20})/s ")

_VERSION = re.compile(r"rsync +version (\d{1,4})\.(\d{1,4})\.(\d{1,4})")

#: Maximum number of messages of rsync that are shown. The others are counted.
MAX_MESSAGES = 20


@attrs.frozen
class Copied:
    """What was copied."""

    items: tuple[Item, ...]
    #: The program that copied: `rsync` or `scp`.
    program: str


def copy_in(machine: Machine, sources: Sequence[str], target: str) -> Copied:
    """Copies files and folders of this host to `target` in a box: into it if it is a folder, else with that name.

    Raises StateError (`file-not-found`, `not-a-folder`, and those of `reach`), GuestError (`copy-failed`,
    `connection-lost`).
    """
    for source in sources:
        if not Path(source).exists():
            raise StateError(f"{source} does not exist", code="file-not-found", fields={"path": source})
    items = [Item.of(source, is_folder=Path(source).is_dir()) for source in sources]
    endpoint = reach(machine, "cp", shares=True)
    path = copying.guest_path(target)
    with shared.sharing(endpoint) as settings:
        listing = _list(machine, endpoint, [path], settings, patterns=False)
        is_folder = any(item.is_folder for item in listing.items[0])
        _check_target(items, f"{machine.name}:{target}", is_folder=is_folder)
        absolute = [attrs.evolve(item, path=_absolute(item.path)) for item in items]
        named = copying.transfers(absolute, path, in_folder=is_folder, to_guest=True)
        return _copy(machine, endpoint, items, named, settings, has_rsync=listing.has_rsync)


def copy_out(machine: Machine, sources: Sequence[str], target: str) -> Copied:
    """Copies files and folders of a box to `target` on this host, as `copy_in` does. Wildcards are those of the guest.

    Raises StateError (`file-not-found`, `not-a-folder`, and those of `reach`), GuestError (`copy-failed`,
    `connection-lost`).
    """
    endpoint = reach(machine, "cp", shares=True)
    paths = [copying.guest_path(source) for source in sources]
    with shared.sharing(endpoint) as settings:
        listing = _list(machine, endpoint, paths, settings, patterns=True)
        for source, found in zip(sources, listing.items, strict=True):
            if not found:
                raise StateError(
                    f"{machine.name} has no file {source}: {'; '.join(listing.messages)[:500] or 'nothing matches'}",
                    code="file-not-found",
                    hint=f"`kimbox exec {machine.name} -- ls` shows its files; the user is {endpoint.user}",
                    fields={"name": machine.name, "path": source},
                )
        items = [item for found in listing.items for item in found]
        is_folder = Path(target).is_dir()
        _check_target(items, target, is_folder=is_folder)
        named = copying.transfers(items, _absolute(target), in_folder=is_folder, to_guest=False)
        has_rsync = listing.has_rsync and _rsync_version() >= copying.SAFE_RSYNC
        return _copy(machine, endpoint, items, named, settings, has_rsync=has_rsync)


def _absolute(path: str) -> str:
    """Returns a path of this host for a program that runs in another folder. Links stay."""
    return os.path.abspath(path)  # noqa: PTH100 - not through links


def _check_target(items: Sequence[Item], target: str, *, is_folder: bool) -> None:
    """Raises StateError (`not-a-folder`) if several things would get one name, UsageError if two have the same name."""
    if not is_folder and len(items) > 1:
        raise StateError(
            f"{len(items)} files cannot be copied to {target}: it is not a folder that exists",
            code="not-a-folder",
            hint="create the folder first",
            fields={"path": target},
        )
    names = [item.name for item in items if item.name != "."]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two files would both be copied to {target}/{twice}", code="usage", fields={"path": twice})


def _rsync_version() -> tuple[int, ...]:
    """Returns the version of rsync(1) on this host; nothing if there is none."""
    if run.which("rsync") is None:
        return ()
    match = _VERSION.match(run.run(["rsync", "--version"], check=False).stdout)
    return tuple(int(number) for number in match.groups()) if match else ()


def _list(
    machine: Machine, endpoint: Endpoint, paths: list[str], settings: Mapping[str, str], *, patterns: bool
) -> Listing:
    """Returns what the guest says about paths. Raises GuestError (`connection-lost`, `copy-failed`)."""
    folder = endpoint.key_path.parent
    listing = Listing(tuple(paths))
    command = f"{copying.listing(paths, patterns=patterns)}\ntrue"
    argv = ssh_command(endpoint, command=command, settings=settings, cwd=folder)
    try:
        run.stream(argv, on_line=listing.feed, cwd=folder)
    except run.CommandError as error:
        check_connection(machine, endpoint)
        raise _failed(machine, error) from None
    if len(listing.items) != len(paths):
        raise GuestError(
            f"{machine.name} did not list its files: {'; '.join(listing.messages)[:500] or 'no output'}",
            code="copy-failed",
            fields={"name": machine.name},
        )
    return listing


def _copy(
    machine: Machine,
    endpoint: Endpoint,
    items: Sequence[Item],
    transfers: Iterable[Transfer],
    settings: Mapping[str, str],
    *,
    has_rsync: bool,
) -> Copied:
    """Copies with rsync(1) if both sides have it, else with scp(1)."""
    is_rsync = has_rsync and run.which("rsync") is not None
    command_of = copying.rsync if is_rsync else copying.scp
    messages = _Messages()
    try:
        with log.step(f"copying {len(items)} {'file or folder' if len(items) == 1 else 'files and folders'}"):
            for transfer in transfers:
                argv = command_of(endpoint, transfer, settings)
                run.stream(argv, on_line=messages.feed, cwd=endpoint.key_path.parent)
    except run.CommandError as error:
        check_connection(machine, endpoint)
        raise _failed(machine, error) from None
    messages.end()
    return Copied(tuple(items), "rsync" if is_rsync else "scp")


@attrs.define
class _Messages:
    """The output of a program that copies: progress, and warnings."""

    count: int = 0

    def feed(self, line: str) -> None:
        if match := _PROGRESS.match(line):
            log.now(f"{match[2]} %, {match[1]} bytes, {match[3]}/s")
        elif line.strip():
            self.count += 1
            if self.count <= MAX_MESSAGES:
                log.warn(line[:500])

    def end(self) -> None:
        if self.count > MAX_MESSAGES:
            log.warn(f"{self.count - MAX_MESSAGES} more messages are not shown")


def _failed(machine: Machine, error: run.CommandError) -> KimboxError:
    """The error for a program that did not copy everything."""
    reason = error.tail or error.status
    code = "no-space" if error.code == "no-space" else "copy-failed"
    return GuestError(
        f"not everything was copied: {reason}",
        code=code,
        hint="free some space, then run the same command again"
        if code == "no-space"
        else f"the same command copies what is missing; the user in {machine.name} is the one of `kimbox ssh`",
        fields={"name": machine.name},
    )
