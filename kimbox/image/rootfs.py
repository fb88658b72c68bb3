"""From packages to a root file system in a folder, by mmdebstrap, in a namespace of its own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import IO

from kimbox import run
from kimbox.files import write_atomic
from kimbox.image import apt, namespace, provisioners
from kimbox.image.recipe import EPOCH_S, Recipe

#: What no box needs: translations and documents (licences stay).
EXCLUDED = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)

#: Runs the build scripts inside the new root, then removes them.
BUILD_HOOK = (
    'for script in "$1"/usr/lib/kimbox/build.d/*; do '
    'chroot "$1" "/usr/lib/kimbox/build.d/${script##*/}" || exit 1; done; '
    'chroot "$1" xargs -a /usr/lib/kimbox/enabled-units systemctl --quiet enable && '
    'rm -r "$1/usr/lib/kimbox/build.d" "$1/usr/lib/kimbox/enabled-units"'
)


def environment() -> dict[str, str]:
    """What a build adds to the environment: a fixed time and time zone."""
    return {"SOURCE_DATE_EPOCH": str(EPOCH_S), "TZ": "UTC", "DEBIAN_FRONTEND": "noninteractive"}


def build(recipe: Recipe, work: Path, *, on_line: Callable[[str], None], log: IO[str]) -> Path:
    """Makes the root file system of a recipe in `work`/root and returns that folder.

    Raises CommandError if mmdebstrap fails, ImageError if there is nowhere to take the packages from.
    """
    run.require("mmdebstrap", "it installs the packages of an image")
    overlay = work / "overlay.tar"
    provisioners.write_tar(list(recipe.files), overlay, EPOCH_S)
    sources = work / "sources.list"
    lines = [source.line() for source in apt.sources(recipe.distribution, recipe.suite, recipe.mirror)]
    write_atomic(sources, "\n".join(lines) + "\n", mode=0o600)
    root = work / "root"
    options = ['Acquire::Languages "none";', 'APT::Install-Recommends "false";', *apt.access_options()]
    apt_conf = work / "apt.conf"  # a proxy's password is no word of a command line, which every user can read
    write_atomic(apt_conf, "\n".join(options) + "\n", mode=0o600)
    command = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(recipe.packages)}",
        f"--aptopt={apt_conf}",
        "--skip=cleanup/apt",  # build scripts do that: this apt would follow the guest's settings out of the new root
        *(f"--dpkgopt={option}" for option in (*EXCLUDED, "force-unsafe-io", "force-confold")),
        f"--essential-hook=tar-in {shlex.quote(os.fspath(overlay))} /",
        f"--customize-hook={BUILD_HOOK}",
        recipe.suite,
        os.fspath(root),
        os.fspath(sources),
    ]
    namespace.stream(command, on_line=on_line, log=log, env=environment(), cwd=work)
    return root
