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
from kimbox.errors import MissingToolError

#: Number of subordinate ids that a build needs: a Debian system uses ids up to 65534, and id 0 is the user.
NEEDED_IDS = 65535


def subordinate_ids(table: Path, user: str, uid: int) -> int:
    """The size of the largest range that `table` (/etc/subuid or /etc/subgid) grants to a user; 0 without a range."""
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return 0
    fields = [line.split(":") for line in lines]
    return max((int(f[2]) for f in fields if len(f) == 3 and f[0] in (user, str(uid)) and f[2].isdigit()), default=0)


def check() -> None:
    """Raises MissingToolError if this user cannot build images on this host. The hint has the command that helps.

    Its code is `missing-tool`, or `missing-subordinate-ids`.
    """
    run.require("unshare", "images are built in namespaces")
    if os.geteuid() == 0:
        return
    run.require("newuidmap", "an ordinary user builds images in a user namespace")
    user = pwd.getpwuid(os.getuid()).pw_name
    for table in (Path("/etc/subuid"), Path("/etc/subgid")):
        if subordinate_ids(table, user, os.getuid()) < NEEDED_IDS:
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
