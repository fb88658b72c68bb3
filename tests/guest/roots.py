"""Folders with packages of Debian, whose programs run on this host with their own libraries."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from freshroot import privileged

from kimbox import run
from kimbox.lock.apt import archive, sources

#: The oldest release with HTCondor that Debian has now.
RELEASE = "trixie"


def extracted(folder: Path, packages: Sequence[str], *options: str) -> Path:
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
    lines = [source.line() for source in sources.sources("debian", RELEASE, None)]
    argv = [*sudo, "unshare", "--mount", "mmdebstrap", "--quiet", "--mode=root", *options]
    argv += [f"--include={','.join(packages)}", f"--keyring={keys}", '--aptopt=APT::Install-Recommends "false"']
    argv += [f"--aptopt={line}" for line in sources.access_options()]
    run.run([*argv, RELEASE, root, *lines], timeout_s=600)
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
