"""Runs virtiofsd(1) on one folder of the host, in a user and a mount namespace of its own.

    confine.py UID GID UIDS GIDS ACCESS FOLDER PROGRAM ARGUMENTS...

In the namespace, the account of the box (ACCOUNT) is the user UID and group GID of this host, and all other accounts
of the guest are subordinate ids from UIDS and GIDS on. So root of a guest is no user of the host, and the kernel, not
virtiofsd, refuses device files and other users' files. ACCESS is `ro` or `rw`: the kernel mounts the folder so, without
set-user-ID programs and devices. FOLDER is a real path, without links. `{folder}` in ARGUMENTS stands for the folder in
the namespace.

The program ends with this process, and this process ends with the connection to QEMU. This file is run by itself, so
that it starts fast, and imports nothing of kimbox.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import sys
from pathlib import Path

#: User and group id of the account `vagrant` in a guest.
ACCOUNT = 1000

#: Number of ids of a guest (a Debian system uses ids up to 65534, and id 65535 is not valid everywhere).
IDS = 65535

#: Maximum number of open files that root allows a guest, in place of a lower hard limit.
MOST_FILES = 1 << 20

#: The folder in the mount namespace.
PLACE = "/mnt"

#: Lines of a map of ids (user_namespaces(7)): first id in the namespace, first id on the host, number of ids.
Lines = list[tuple[int, int, int]]

#: linux/sched.h and linux/mount.h.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18


def mapping(own: int, subordinate: int) -> Lines:
    """Returns the map in which ACCOUNT is the id `own` of the host, and the others are from `subordinate` on."""
    before = (0, subordinate, ACCOUNT)
    after = (ACCOUNT + 1, subordinate + ACCOUNT, IDS - ACCOUNT - 1)
    return [before, (ACCOUNT, own, 1), after]


def write_map(process: int, kind: str, lines: Lines) -> None:
    """Sets the map of a process in a new user namespace. `kind`: `uid` or `gid`. Raises OSError."""
    if os.geteuid() == 0:
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in lines)
        Path(f"/proc/{process}/{kind}_map").write_text(text)
        return
    program = shutil.which(f"new{kind}map") or f"/usr/bin/new{kind}map"
    words = [program, str(process), *(str(number) for line in lines for number in line)]
    status = os.spawnv(os.P_WAIT, program, words)  # noqa: S606 - nothing of kimbox is imported here
    if status != 0:
        raise OSError(f"{program} failed with status {status}")


def raise_file_limit() -> None:
    """Raises the limit of open files of this process: virtiofsd has each file open that the guest has in its cache.

    The limit is the hard limit, and for root the limit of the kernel up to MOST_FILES, if the host allows that: each
    open file takes memory of the kernel, and the guest decides how many there are.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError, ValueError):  # an ordinary user, or root of a container
        most = min(MOST_FILES, int(Path("/proc/sys/fs/nr_open").read_text()))
        if most > hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def most_open_files() -> int:
    """Returns the limit that `raise_file_limit` reaches."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_file_limit()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    return most


def main(words: list[str]) -> None:
    """Becomes the program, in the namespaces. Raises OSError if the host does not allow them."""
    uid, gid, uids, gids = map(int, words[:4])
    access, folder, program, *arguments = words[4:]
    libc = ctypes.CDLL(None, use_errno=True)
    raise_file_limit()
    if os.geteuid() == 0:  # root enters every folder, but not in the user namespace
        _checked(libc.unshare(_CLONE_NEWNS))
        _mount(libc, folder, access)
        _enter_users(libc, _CLONE_NEWUSER, mapping(uid, uids), mapping(gid, gids))
    else:
        _enter_users(libc, _CLONE_NEWUSER | _CLONE_NEWNS, mapping(uid, uids), mapping(gid, gids))
        _mount(libc, folder, access)
    os.setgroups([])
    os.setgid(0)
    os.setuid(0)
    words = [program, *(word.replace("{folder}", PLACE) for word in arguments)]
    os.execv(program, words)  # noqa: S606 - the namespaces are those of this process


def _mount(libc: ctypes.CDLL, folder: str, access: str) -> None:
    """Mounts the folder at PLACE of this namespace."""
    place = PLACE.encode()
    _checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    source = f"/proc/self/fd/{handle}"
    if str(Path(source).readlink()) != folder:  # a guest has put a link into its path
        raise OSError(f"{folder} is not the real path of a folder")
    _checked(libc.mount(source.encode(), place, None, _MS_BIND, None))
    os.close(handle)
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if access == "ro" else 0)
    _checked(libc.mount(b"none", place, None, _MS_REMOUNT | _MS_BIND | flags, None))


def _enter_users(libc: ctypes.CDLL, flags: int, uids: Lines, gids: Lines) -> None:
    """Enters new namespaces. A child process sets the maps, which is possible only from outside."""
    parent, (ready, unshared), (mapped, done) = os.getpid(), os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(unshared)
        if os.read(ready, 1):  # not the end of a parent that failed
            write_map(parent, "uid", uids)
            write_map(parent, "gid", gids)
            os.write(done, b"y")
        os._exit(0)
    os.close(done)
    _checked(libc.unshare(flags))
    os.write(unshared, b"y")
    os.waitpid(helper, 0)
    if not os.read(mapped, 1):
        raise OSError("the ids of the guest cannot be mapped")
    for handle in (ready, unshared, mapped):
        os.close(handle)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main(sys.argv[1:])
