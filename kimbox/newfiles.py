"""Writes new files and folders that appear under their name when they are complete, or never."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kimbox.errors import KimboxError, StateError
from kimbox.filelocks import flock
from kimbox.files import is_space_error, ran_out_of_space, remove_tree, space_error, sync_folder

#: A function that gets a complete file, and the path at which it appears next.
Finished = Callable[[Path, Path], None]


@contextlib.contextmanager
def making(target: Path, *, finished: Finished | None = None) -> Iterator[Path]:
    """A private folder beside `target`. At the end, the file in it with the name of `target` is moved to `target`.

    `finished` is called with that file and `target` directly before.

    Nothing is overwritten. The next run removes the folder of a process that was killed. Raises StateError if `target`
    exists, or another process writes it.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.tmp")
    work.mkdir(mode=0o700, exist_ok=True)
    handle = _open_own(work)
    try:
        try:
            flock(handle, fcntl.LOCK_EX, work)
            if os.fstat(handle).st_nlink == 0:  # the other process has just finished
                raise BlockingIOError
        except BlockingIOError:
            raise StateError(
                f"another process of kimbox is writing {target}",
                code="busy",
                hint="wait until it has finished",
                fields={"path": str(target)},
            ) from None
        for leftover in list(work.iterdir()):
            if leftover.is_dir() and not leftover.is_symlink():
                remove_tree(leftover)
            else:
                leftover.unlink()
        try:
            yield work
            if finished:
                finished(work / target.name, target)
            _publish(work / target.name, target)
        except (OSError, KimboxError) as error:
            if not ran_out_of_space(error) or is_space_error(error):
                raise
            remove_tree(work)
            raise space_error(target.parent, target.name) from None
        finally:
            remove_tree(work)
    finally:
        os.close(handle)


def _open_own(folder: Path) -> int:
    """Opens a folder that only this user can enter. Raises StateError if it is a link, or belongs to another user.

    In a folder such as /tmp, another user can create it beforehand, and could then replace the files in it.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EACCES):
            raise
        raise _not_own(folder) from None
    if os.fstat(handle).st_uid != os.geteuid():
        os.close(handle)
        raise _not_own(folder)
    os.fchmod(handle, 0o700)
    return handle


def _not_own(folder: Path) -> StateError:
    return StateError(
        f"{folder} is a symbolic link, or belongs to another user",
        code="folder-not-private",
        hint="choose a folder of your own with --output",
        fields={"path": str(folder)},
    )


def refuse_existing(target: Path) -> None:
    """Raises StateError if `target` exists."""
    if os.path.lexists(target):
        raise StateError(
            f"{target} already exists",
            code="file-exists",
            hint="remove it, or choose another folder with --output",
            fields={"path": str(target)},
        )


def _publish(finished: Path, target: Path) -> None:
    """Moves a finished file to `target`. Raises StateError if `target` exists by now."""
    try:
        os.link(finished, target)
    except FileExistsError:
        refuse_existing(target)
        raise
    except OSError:  # a file system without hard links
        refuse_existing(target)
        finished.rename(target)
    sync_folder(target.parent)
