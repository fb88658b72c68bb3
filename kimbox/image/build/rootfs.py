"""Creates a root file system in a folder from locked packages, with mmdebstrap in a namespace, without the network."""

from __future__ import annotations

import os
import re
import shlex
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import IO

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image import namespace
from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import GuestFile
from kimbox.image.inputs.recipe import EPOCH_S, Recipe
from kimbox.lock.apt import cache
from kimbox.lock.apt.archive import ARCHITECTURE

#: Runs the build scripts in the new root, enables units, removes these scripts, and moves apt's files into place.
BUILD_HOOK = (
    'for script in "$1"/usr/lib/kimbox/build.d/*; do '
    'chroot "$1" "/usr/lib/kimbox/build.d/${script##*/}" || exit 1; done; '
    'chroot "$1" xargs -a /usr/lib/kimbox/enabled-units systemctl --quiet enable && '
    'rm -r "$1/usr/lib/kimbox/build.d" "$1/usr/lib/kimbox/enabled-units" && '
    'mv "$1/usr/lib/kimbox/sources.list" "$1/etc/apt/sources.list" && '
    'mv "$1/usr/lib/kimbox/extended_states" "$1/var/lib/apt/extended_states"'
)

#: Options of apt for the installation: it takes packages from the cache only, and does not verify them again.
APT_OPTIONS = (
    'Acquire::Languages "none"', 'APT::Install-Recommends "false"', 'APT::Sandbox::User "root"',
    'Acquire::AllowInsecureRepositories "true"',
)  # fmt: skip

_BASE = re.compile(r"^(Essential: yes|Priority: required)$", re.MULTILINE)


def environment() -> dict[str, str]:
    """Environment variables of every program of a build: a fixed time and time zone, and no prompts of debconf."""
    return {"SOURCE_DATE_EPOCH": str(EPOCH_S), "TZ": "UTC", "DEBIAN_FRONTEND": "noninteractive"}


def build(recipe: Recipe, work: Path, *, on_line: Callable[[str], None], log: IO[str]) -> Path:
    """Creates the root file system of a recipe in `work`/root and returns that folder.

    All packages must be in the cache. `on_line` is called with each line of output; `log` gets the complete output.
    Raises CommandError if mmdebstrap fails, and ImageError (`image-failed`) if the installed packages are not those of
    the recipe.
    """
    run.require("mmdebstrap", "it installs the packages of an image")
    overlay, repository, root = work / "overlay.tar", work / "repository", work / "root"
    states = GuestFile("usr/lib/kimbox/extended_states", extended_states(recipe).encode())
    provisioners.write_tar([*recipe.files, states], overlay, EPOCH_S)
    cache.repository(recipe.locked.versions, recipe.suite, repository)
    command = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(sorted(recipe.locked.versions))}",
        *(f"--aptopt={option}" for option in APT_OPTIONS),
        # Build scripts do this cleanup: with the guest's settings, this apt would delete files outside the new root.
        "--skip=cleanup/apt",
        *(f"--dpkgopt={option}" for option in ("force-unsafe-io", "force-confold")),
        f"--essential-hook=tar-in {shlex.quote(os.fspath(overlay))} /",
        f"--customize-hook={BUILD_HOOK}",
        recipe.suite,
        os.fspath(root),
        f"deb [trusted=yes] copy:{urllib.parse.quote(os.fsencode(repository))} ./",
    ]
    # For files that mmdebstrap cannot remove if it is killed. It unsets TMPDIR for the programs in the new root.
    temporary = work / "tmp"
    temporary.mkdir()
    env = environment() | {"TMPDIR": os.fspath(temporary)}
    namespace.stream(command, on_line=on_line, log=log, env=env, cwd=work)
    _check(recipe, root)
    return root


def _check(recipe: Recipe, root: Path) -> None:
    """Raises ImageError (`image-failed`) unless exactly the packages of the recipe are installed."""
    query = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version} ${Architecture}\\n"]
    installed = set(namespace.call(query).stdout.splitlines())
    expected = {f"{name} {package.version} {package.architecture}" for name, package in recipe.locked.versions.items()}
    if installed != expected:
        difference = ", ".join(sorted(installed ^ expected)[:5])
        raise ImageError(
            f"the installed packages are not those of the lock: {difference}",
            code="image-failed",
            fields={"packages": difference},
        )


def extended_states(recipe: Recipe) -> str:
    """The content of /var/lib/apt/extended_states: the packages that apt may remove if no other package needs them.

    These are the packages that the recipe does not request by name and that are not part of the base system.
    """
    blocks = []
    for name, package in sorted(recipe.locked.versions.items()):
        control = cache.control_of(package)
        is_base = name == "apt" or _BASE.search(control)
        if name not in recipe.packages and not is_base:
            blocks.append(f"Package: {name}\nArchitecture: {ARCHITECTURE}\nAuto-Installed: 1\n\n")
    return "".join(blocks)
