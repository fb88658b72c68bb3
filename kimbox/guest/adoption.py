"""Installs the programs of kimbox in a guest whose image kimbox did not build, over ssh.

Afterwards the guest reports to the host at each start and takes a manifest as every other guest does. The driver of the
guest does not matter: without a port for events, they are in the file that a driver fetches.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs

from kimbox.errors import GuestError
from kimbox.files import remove_tree
from kimbox.guest.delivery import SUDO
from kimbox.guest.events import printable
from kimbox.guest.ssh import Guest
from kimbox.image.inputs import provisioners
from kimbox.image.inputs.provisioners import ADOPTED, GuestFile
from kimbox.image.inputs.recipe import EPOCH_S
from kimbox.run import tail

#: The program in the guest that completes the installation. With the argument `git` it also installs git.
ADOPT = "/usr/lib/kimbox/adopt"

#: A file of other programs, to which ADOPT appends: a file of the guest is never replaced.
_APPENDED = "etc/gitconfig"

#: Prefix of the temporary folder with the archive.
TEMPORARY = "adopt-"

#: Timeout of the installation, in seconds. It may have to download git.
TIMEOUT_S = 600.0


def files() -> list[GuestFile]:
    """Returns the files of the guest: what provisions a box, and what takes the place of the rest of an image."""
    provision, adopted = provisioners.load("provision"), provisioners.load(ADOPTED)
    persistent = [attrs.evolve(file, path=f"persistent/{file.path}") for file in provision.persistent]
    return [*(file for file in provision.files if file.path != _APPENDED), *adopted.files, *persistent]


def install(guest: Guest, name: str, workdir: Path, *, needs_git: bool) -> None:
    """Installs the programs, and starts them. A second call does it again.

    `needs_git`: the box has repositories. The caller holds the lock of the machine `name`: archives in `workdir` were
    left by a process that was killed. Raises GuestError (`install-failed`) with the guest's own words.
    """
    for left in workdir.glob(f"{TEMPORARY}*"):
        remove_tree(left)
    sudo = "" if guest.endpoint.user == "root" else SUDO
    script = f"tar -x -f - -C / --no-same-owner && exec {ADOPT}{' git' if needs_git else ''}"
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=workdir) as folder:
        archive = Path(folder) / "programs.tar"
        provisioners.write_tar(files(), archive, EPOCH_S)
        answer = guest.run(f"{sudo}sh -c '{script}'", timeout_s=TIMEOUT_S, stdin=archive)
    if answer.code != 0:
        raise GuestError(
            f"kimbox could not install its programs in {name} (exit status {answer.code}):\n"
            f"{printable(tail(answer.stderr))}",
            code="install-failed",
            hint=f"`kimbox ssh {name}` opens a shell in it; `kimbox up {name}` tries again",
            fields={"name": name, "exit_status": str(answer.code)},
        )
