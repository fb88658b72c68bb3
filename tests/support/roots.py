"""Folders with packages of Debian, whose programs run on this host with their own libraries."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from kimbox import run
from kimbox.lock.apt import archive, sources

#: The oldest release with HTCondor that Debian has now.
RELEASE = "trixie"


def privileged() -> list[str] | None:
    """Returns the prefix of a command that runs as root, or None if the user cannot run it without a password."""
    if os.geteuid() == 0:
        return []
    if run.which("sudo") and run.run(["sudo", "-n", "true"], check=False).ok:
        return ["sudo", "-n"]
    return None


def extracted(folder: Path, packages: Sequence[str], *options: str, release: str = RELEASE) -> Path:
    """Builds a root below a folder with mmdebstrap, unless it is there. Returns it."""
    root = folder / "root"
    if (folder / "built").exists():
        return root
    sudo = privileged()
    assert sudo is not None, "root, or sudo without a password, is required"
    folder.mkdir(parents=True, exist_ok=True)
    keys = folder / "keys"
    keys.mkdir()
    for name, key in archive.accepted_keys("debian").items():
        shutil.copy(key, keys / name)
    lines = [source.line() for source in sources.sources("debian", release, None)]
    argv = [*sudo, "unshare", "--mount", "mmdebstrap", "--quiet", "--mode=root", *options]
    argv += [f"--include={','.join(packages)}", f"--keyring={keys}", '--aptopt=APT::Install-Recommends "false"']
    argv += [f"--aptopt={line}" for line in sources.access_options()]
    run.run([*argv, release, root, *lines], timeout_s=1800)
    (folder / "built").touch()
    return root


def write_program(folder: Path, root: Path, name: str, *options: str) -> None:
    """Writes a program to a folder: that of a root, with the libraries of the root, on this host.

    `options`: arguments before those of its caller.
    """
    libraries = f"{root / 'usr/lib/x86_64-linux-gnu'}:{root / 'usr/lib'}"
    words = [root / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, root / "usr/bin" / name, *options]
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    program.chmod(0o755)
