"""Extracts the files of a job's disk into a new folder.

`kimbox.jobs.disk.contents` has checked the disk. Files are written into a private folder beside the target, which is
renamed when it is complete. Symbolic links are created after all files, so that no path leads through one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.files import need_space, size_words, sync_folder
from kimbox.image.disk.ext4.directories import shown
from kimbox.jobs.disk.contents import Contents, File
from kimbox.newfiles import making

#: Size of one read, in bytes.
COPY_BYTES = 4 << 20

#: Default limit of the sum of the sizes of all files, with their holes: this factor times the size of the disk, and at
#: least MIN_LIMIT_BYTES.
LIMIT_FACTOR, MIN_LIMIT_BYTES = 10, 1 << 30

#: Maximum number of files that an error lists.
MAX_LISTED = 10

#: A name in a pattern that matches any number of folders.
ANY_FOLDERS = b"**"

#: Maximum length of a pattern of `--only`, in characters.
MAX_PATTERN = 1000


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was extracted. `skipped`: files that were left out, with the reason."""

    path: Path
    files: int
    size_bytes: int
    skipped: tuple[File, ...]


def selector(patterns: Sequence[str], option: str = "--only") -> Callable[[bytes], bool]:
    """Returns a function that says whether a path matches one of the patterns; everything without a pattern.

    `*` and `?` match within a name, and a name `**` matches any number of folders. A folder that matches includes what
    is below it. The time is bounded by the product of the lengths, whatever names the guest has chosen. Raises
    UsageError.
    """
    if not patterns:
        return lambda path: True
    for pattern in patterns:
        if not pattern.strip("/") or len(pattern) > MAX_PATTERN:
            raise UsageError(f"{option}: {pattern[:40]!r} is not a pattern", code="usage", fields={"option": option})
    all_names = [os.fsencode(pattern.strip("/")).split(b"/") for pattern in patterns]
    return lambda path: any(_is_below(names, path.split(b"/")) for names in all_names)


def _is_below(names: Sequence[bytes], path: Sequence[bytes]) -> bool:
    """Whether a path, or a folder above it, matches the names of a pattern."""
    states = {0}  # numbers of names that match the folders so far
    for part in [*path, None]:
        for state in range(len(names)):
            if state in states and names[state] == ANY_FOLDERS:
                states.add(state + 1)
        if len(names) in states:
            return True
        if part is None:
            break
        found = {state for state in states if names[state] == ANY_FOLDERS}
        states = found | {state + 1 for state in states - found if _matches(names[state], part)}
    return False


def _matches(pattern: bytes, name: bytes) -> bool:
    """Whether a name matches a pattern with `*` and `?`.

    If a text after a star does not match, only the last star takes more: what the stars before it took need not change.
    """
    at = place = 0
    star = resumed = -1
    while place < len(name):
        if pattern[at : at + 1] == b"*":
            star, resumed = at, place
            at += 1
        elif at < len(pattern) and pattern[at : at + 1] in (b"?", name[place : place + 1]):
            at, place = at + 1, place + 1
        elif star >= 0:
            resumed += 1
            at, place = star + 1, resumed
        else:
            return False
    return not pattern[at:].strip(b"*")


def refuse_unsafe(unsafe: Sequence[File]) -> None:
    """Raises KimboxError (`unsafe-files`) if there are files that must not be created on the host."""
    if not unsafe:
        return
    listed = [f"{shown(file.path)}: {file.unsafe}" for file in unsafe[:MAX_LISTED]]
    more = [f"and {len(unsafe) - MAX_LISTED} more"] if len(unsafe) > MAX_LISTED else []
    raise KimboxError(
        "\n".join(["the disk has files that are not created on this host", *listed, *more]),
        code="unsafe-files",
        hint="--skip-unsafe extracts everything else",
        fields={"count": str(len(unsafe)), "path": shown(unsafe[0].path)},
    )


def extract(
    contents: Contents,
    folder: Path,
    *,
    only: Sequence[str] = (),
    skip_unsafe: bool = False,
    limit_bytes: int | None = None,
) -> Extracted:
    """Extracts the files that match `only` (default: all) into the new folder `folder`.

    `limit_bytes`: maximum of the sum of the sizes of these files, with their holes. Raises StateError (`file-exists`),
    KimboxError (`unsafe-files`, unless `skip_unsafe`; `job-output-too-large`, `no-space`), and StateError
    (`file-not-found`) if no file matches. Then `folder` does not exist.
    """
    if os.path.lexists(folder):
        raise StateError(
            f"{folder} already exists", code="file-exists", hint="name a new folder", fields={"path": str(folder)}
        )
    is_selected = selector(only)
    selected = [file for file in contents.files if is_selected(file.path)]
    if only and not selected:
        raise StateError(
            "no file on the disk matches --only",
            code="file-not-found",
            hint="`kimbox job extract IMAGE --list` shows the files",
        )
    unsafe = tuple(file for file in selected if file.unsafe)
    if not skip_unsafe:
        refuse_unsafe(unsafe)
    wanted = [file for file in _with_folders(contents, selected) if not file.unsafe]
    _check_limit(contents, wanted, limit_bytes)
    unit = contents.system.block_bytes
    with making(folder) as work:
        data_bytes = sum(count for file in wanted for _, count, _ in file.runs) * unit
        need_space(folder.parent, data_bytes, f"the content of the disk in {folder.name}")
        root = work / folder.name
        root.mkdir(mode=0o700)
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write(contents, wanted, handle)
        finally:
            os.close(handle)
        sync_folder(root)
        root.chmod(0o755)
    files = [file for file in wanted if not file.inode.is_folder]
    return Extracted(folder, len(files), sum(file.inode.size_bytes for file in files if file.inode.is_file), unsafe)


def _check_limit(contents: Contents, wanted: Iterable[File], limit_bytes: int | None) -> None:
    """Raises KimboxError (`job-output-too-large`) if the files have more bytes than the limit."""
    if limit_bytes is None:
        limit_bytes = max(LIMIT_FACTOR * contents.size_bytes, MIN_LIMIT_BYTES)
    sizes = {file.inode.number: file.inode.size_bytes for file in wanted if file.inode.is_file}
    total_bytes = sum(sizes.values())
    if total_bytes > limit_bytes:
        raise KimboxError(
            f"the files on the disk have {size_words(total_bytes)} with their holes, and the limit is "
            f"{size_words(limit_bytes)}",
            code="job-output-too-large",
            hint=f"raise the limit with --limit {-(-total_bytes // (1 << 30))}G, or extract less with --only",
            fields={"size_bytes": str(total_bytes), "limit_bytes": str(limit_bytes)},
        )


def _with_folders(contents: Contents, selected: Iterable[File]) -> list[File]:
    """Returns the selected files with the folders above them, each folder before its files."""
    paths: set[bytes] = set()
    for file in selected:
        path = file.path
        while path and path not in paths:
            paths.add(path)
            path = path.rpartition(b"/")[0]
    return [file for file in contents.files if file.path in paths]


def _write(contents: Contents, wanted: Sequence[File], root: int) -> None:
    """Creates folders and files, then links, then sets permissions and times of folders, the deepest first.

    The user of this host may read everything, and remove it, whatever the guest has set.
    """
    first_paths: dict[int, bytes] = {}
    runs = {file.inode.number: file.runs for file in contents.files if file.runs}
    for file in wanted:
        if file.inode.is_folder:
            os.mkdir(file.path, 0o700, dir_fd=root)
        elif file.inode.is_file and file.inode.number in first_paths:
            os.link(first_paths[file.inode.number], file.path, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
        elif file.inode.is_file:
            first_paths[file.inode.number] = file.path
            _write_file(contents, replace(file, runs=runs.get(file.inode.number, ())), root)
    for file in wanted:
        if file.inode.is_link:
            os.symlink(file.target, file.path, dir_fd=root)
            _set_time(file, file.path, root)
    for file in reversed(wanted):
        if file.inode.is_folder:
            os.chmod(file.path, file.mode | stat.S_IRWXU, dir_fd=root)
            _set_time(file, file.path, root)


def _write_file(contents: Contents, file: File, root: int) -> None:
    """Writes a new file, with its holes."""
    unit, read = contents.system.block_bytes, contents.system.read
    handle = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
    try:
        for first, count, start in file.runs:
            for done in range(0, count * unit, COPY_BYTES):
                at = first * unit + done
                size_bytes = min(COPY_BYTES, count * unit - done, file.inode.size_bytes - at)
                if size_bytes > 0:
                    _put(handle, read(start * unit + done, size_bytes), at)
        os.ftruncate(handle, file.inode.size_bytes)
        os.fchmod(handle, file.mode | stat.S_IRUSR)
        os.utime(handle, ns=(file.modified_ns, file.modified_ns))
    finally:
        os.close(handle)


def _put(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, offset)
        offset, view = offset + done, view[done:]


def _set_time(file: File, path: bytes, root: int) -> None:
    os.utime(path, ns=(file.modified_ns, file.modified_ns), dir_fd=root, follow_symlinks=False)


def listing(contents: Contents) -> list[str]:
    """Returns a line for each file: permissions, size in bytes, path, and the target of a link."""
    lines = []
    for file in contents.files:
        target = f" -> {shown(file.target)}" if file.inode.is_link else ""
        unsafe = f" ({file.unsafe})" if file.unsafe else ""
        lines.append(f"{stat.filemode(file.inode.mode)} {file.inode.size_bytes:>12} {shown(file.path)}{target}{unsafe}")
    return lines
