"""How exposed the units of kimbox are, as `systemd-analyze security` measures it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox import paths
from kimbox.run import run, which

#: Largest exposure of a unit, in tenths. systemd calls up to 4.9 well protected.
MOST_EXPOSED = 40

#: Units that cannot be confined, with the reason.
UNCONFINED = {
    "kimbox-devices.service": "starts udev's work for the whole box",
    "kimbox-early.service": "sets host name, network, keys and the firewall before anything else runs",
    "kimbox-freeze.service": "stops every process, and sets clock, host name, keys and the kernel's random generator",
    "kimbox-identity.service": "runs the programs of packages that make their keys and databases",
    "kimbox-job.service": "mounts the disk of a job, starts its program as root in a unit of its own, and powers off",
    "kimbox-mounts.service": "mounts the folders of the host for all",
    "kimbox-ready.service": "starts the provisioning",
    "kimbox-scratch.service": "makes a file system and mounts it for all",
    "provisiond.service": "runs what the spec says: installs packages, makes accounts, mounts",
    "ssh.service": "is the parent of the sessions of users, and of sudo in them",
}

UNITS = sorted(
    path
    for folder, pattern in (
        (paths.provisioners_dir(), "*/root/**/systemd/system/*.service"),
        (paths.boxes_dir(), "*/setup/systemd/*.service"),
    )
    for path in folder.glob(pattern)
)


def confined() -> list[Path]:
    """Returns the units that are not among the exceptions."""
    assert set(UNCONFINED) <= {path.name for path in UNITS}
    return [path for path in UNITS if path.name not in UNCONFINED]


@pytest.mark.parametrize("unit", confined(), ids=lambda path: path.name)
def test_a_unit_is_confined(unit: Path) -> None:
    """Each unit that is no exception stays below the limit."""
    if which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    options = ["--no-pager", "--offline=true", f"--threshold={MOST_EXPOSED}"]
    done = run(["systemd-analyze", "security", *options, unit], check=False)
    if "--offline" in done.stderr:
        pytest.skip("needs systemd 250 or later")
    assert done.code == 0, done.stdout + done.stderr
