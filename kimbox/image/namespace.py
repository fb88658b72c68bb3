"""Runs programs in new mount and pid namespaces, and in a user namespace unless the user is root.

In the user namespace the user is root, so that the files of a new system get their owners without privileges on the
host. An ordinary user needs a range of subordinate ids (subuid(5)) for that. When kimbox exits, also after SIGKILL,
the kernel kills all programs in the namespaces.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from kimbox import run
from kimbox.errors import KimboxError, MissingToolError

#: Number of subordinate ids that a build or a shared folder needs: a Debian system uses ids up to 65534, and id 0 is
#: the user.
NEEDED_IDS = 65535

#: The tables of subordinate ids.
SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")

#: Timeout of the attempt to make the namespaces, in seconds.
_PROBE_TIMEOUT_S = 60

#: Linux, include/uapi/linux/capability.h.
_CAP_SYS_ADMIN = 21

#: Settings of the kernel that forbid user namespaces: name -> the value that forbids them, a value that allows them.
_USER_NAMESPACES = {
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user.max_user_namespaces": ("0", "10000"),
}


def subordinate_range(table: Path, user: str, uid: int) -> tuple[int, int]:
    """The largest range that `table` (/etc/subuid or /etc/subgid) grants to a user: its first id and its size.

    The size is 0 without a range.
    """
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return 0, 0
    fields = [line.split(":") for line in lines]
    own = (f for f in fields if len(f) == 3 and f[0] in (user, str(uid)) and f[1].isdigit() and f[2].isdigit())
    return max(((int(f[1]), int(f[2])) for f in own), key=lambda ids: ids[1], default=(0, 0))


def first_subordinate_ids() -> tuple[int, int]:
    """The first subordinate user id and group id of this user, who is not root. Raises MissingToolError."""
    _check_ids()
    user, uid = pwd.getpwuid(os.getuid()).pw_name, os.getuid()
    return subordinate_range(SUBUID, user, uid)[0], subordinate_range(SUBGID, user, uid)[0]


def check() -> None:
    """Raises an error if this user cannot build images on this host. The hint has what helps.

    It is MissingToolError (`missing-tool`, `missing-subordinate-ids`), or KimboxError (`namespaces-not-allowed`) if
    the kernel, or the container around this process, does not allow the namespaces or a mount in them.
    """
    run.require("unshare", "images are built in namespaces")
    if os.geteuid() != 0:
        _check_ids()
    # A mount: some containers allow the namespaces and forbid every mount in them.
    mount = command(["mount", "-t", "tmpfs", "kimbox", "/tmp"])  # noqa: S108 - nothing is written there
    done = run.run(mount, check=False, timeout_s=_PROBE_TIMEOUT_S)
    if not done.ok:
        raise _not_allowed(done.stderr)


def _not_allowed(stderr: str) -> KimboxError:
    """The error for namespaces that could not be made. `stderr` is that of unshare or mount."""
    reason = (stderr.strip().splitlines() or ["no reason was given"])[-1].removeprefix("unshare: ")
    if os.geteuid() == 0:
        cause = "" if _has_capability(_CAP_SYS_ADMIN) else ": this process has no CAP_SYS_ADMIN, as in a container"
        hint = (
            "in a container, start it with `--privileged`, or with `--cap-add SYS_ADMIN --cap-add MKNOD --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined`; or build on another host"
        )
    elif forbidding := [name for name, values in _USER_NAMESPACES.items() if _setting(name) == values[0]]:
        forbids, allows = _USER_NAMESPACES[forbidding[0]]
        cause = f": the kernel's setting {forbidding[0]} is {forbids}"
        hint = f"sudo sysctl -w {forbidding[0]}={allows}"
    else:
        cause, hint = "", "in a container, start it with `--privileged`; or build on another host"
    return KimboxError(
        f"this host does not allow the namespaces in which images are built{cause} ({reason})",
        code="namespaces-not-allowed",
        hint=hint,
        fields={"reason": reason},
    )


def _has_capability(number: int) -> bool:
    """Whether this process has a capability in effect (capabilities(7)). True if that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return True


def _setting(name: str) -> str | None:
    """The value of a kernel setting (sysctl(8)); None if this kernel does not have it."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def _check_ids() -> None:
    """Raises MissingToolError if an ordinary user lacks newuidmap or subordinate ids (`missing-subordinate-ids`)."""
    run.require("newuidmap", "an ordinary user builds images and shares folders in a user namespace")
    user = pwd.getpwuid(os.getuid()).pw_name
    for table in (SUBUID, SUBGID):
        if subordinate_range(table, user, os.getuid())[1] < NEEDED_IDS:
            raise MissingToolError(
                f"{table} grants {user} fewer than {NEEDED_IDS} subordinate ids",
                code="missing-subordinate-ids",
                hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
                fields={"path": str(table), "user": user},
            )


def command(argv: Sequence[str | Path]) -> list[str | Path]:
    """The command that runs `argv` in the namespaces."""
    flags = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        flags += ["--user", "--map-root-user", "--map-auto"]
    return ["unshare", *flags, "--", *argv]


@contextlib.contextmanager
def _named(argv: Sequence[str | Path]) -> Iterator[None]:
    """Replaces a CommandError of `unshare` by an error that names the program in the namespaces."""
    try:
        yield
    except run.CommandError as error:
        raise run.CommandError([str(a) for a in argv], error.status, error.tail, code=error.code) from None


def call(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str | None = None,
) -> run.Completed:
    """`run.run` in the namespaces."""
    with _named(argv):
        return run.run(command(argv), env=env, cwd=cwd, input=input)


def stream(
    argv: Sequence[str | Path],
    *,
    on_line: Callable[[str], None],
    log: IO[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """`run.stream` in the namespaces."""
    with _named(argv):
        run.stream(command(argv), on_line=on_line, log=log, env=env, cwd=cwd)


def remove(folder: Path) -> None:
    """Removes a folder with all files, also those of subordinate ids; a file or symbolic link; or nothing."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
        return
    delete: list[str | Path] = ["rm", "-rf", "--one-file-system", "--", folder]
    if folder.exists():
        run.run(delete, check=False)
    if folder.exists():  # only root in the namespace can remove files of subordinate ids
        call(delete)
