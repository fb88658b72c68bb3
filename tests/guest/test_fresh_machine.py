"""On a minimal host, one command installs kimbox and starts a box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from freshroot import FreshRoot
from roots import privileged

from kimbox import run
from kimbox.image import obtain
from kimbox.image.disk.compare import sha256_disk
from kimbox.lock.lockfile import read_lock
from kimbox.paths import boxes_dir
from kimbox.spec.load import load_box

ROOT = Path(__file__).resolve().parents[2]

#: Path in the root of the repository that the user clones.
REPOSITORY = "/srv/kimbox.git"

#: Timeout of the job, in seconds. Packages, Python packages, an image and a boot under emulation take minutes.
TIMEOUT_S = 45 * 60

JOB = f"""
say() {{ printf '== %s\\n' "$*"; }}

say bare
for program in qemu-system-x86_64 qemu-img mmdebstrap newuidmap ssh pip; do
    ! command -v "$program" || exit 90
done
! python3 -c 'import ensurepip' 2>/dev/null || exit 91
! grep "^$USER:" /etc/subuid /etc/subgid 2>/dev/null || exit 92

say up
git clone --quiet {REPOSITORY} kimbox
cd kimbox
script/up minimal

say again
script/up minimal

say fix
sudo apt-get -qq remove --purge mmdebstrap git >/dev/null 2>&1
sudo sed -i "/^$USER:/d" /etc/subuid /etc/subgid
.venv/bin/kimbox doctor && exit 93
.venv/bin/kimbox doctor --fix -y

say exec
.venv/bin/kimbox exec minimal -- cat /etc/os-release

say lock
cat ~/.local/share/kimbox/locks/minimal.lock

say digest
sha256sum ~/.local/share/kimbox/images/*/disk.raw

say destroy
.venv/bin/kimbox destroy -y minimal
say end
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[FreshRoot]:
    """A fresh root. It is removed at the end."""
    sudo = privileged()
    if sudo is None:
        pytest.skip("needs root, or sudo without a password")
    root = FreshRoot(tmp_path, sudo)
    try:
        with (tmp_path / "build.log").open("w") as log:
            root.build(log)
        yield root
    finally:
        root.remove()


def part(lines: list[str], name: str) -> list[str]:
    """Returns the lines of the job's output under a heading."""
    start = lines.index(f"== {name}") + 1
    ends = [i for i, line in enumerate(lines) if line.startswith("== ") and i >= start]
    return lines[start : ends[0]]


@pytest.mark.guest
@pytest.mark.soak
def test_one_command_on_a_bare_machine(machine: FreshRoot, tmp_path: Path, home: Path) -> None:
    """An ordinary user with sudo clones the repository, runs script/up, uses the box and destroys it completely.

    The image of this user is byte for byte the same as the image that this test builds from the same lock.
    """
    copy = tmp_path / "kimbox.git"
    run.run(["git", "-c", "safe.directory=*", "clone", "--quiet", "--bare", "--no-hardlinks", ROOT, copy])
    machine.give_to_user(copy)
    with (tmp_path / "job.log").open("w") as log:
        lines = machine.run(JOB, log=log, timeout_s=TIMEOUT_S, folders={copy: REPOSITORY})
    up = "\n".join(part(lines, "up"))
    assert "  python3-venv - " in up
    assert "kimbox ssh minimal" in up
    second = part(lines, "again")
    assert [] == [line for line in second if line.startswith(("Installing", "This machine lacks"))]
    fixed = part(lines, "fix")
    # Before the commands, and not after them.
    assert ["building", "git", "mmdebstrap"] == sorted(line.split()[1][:-1] for line in fixed if line.startswith("bad"))
    assert "ran 2 commands, 0 of them failed" in fixed
    assert "ID=debian" in part(lines, "exec")
    (tmp_path / "minimal.lock").write_text("\n".join(part(lines, "lock")) + "\n")
    image = obtain.ensure(load_box(boxes_dir() / "minimal.yaml"), read_lock(tmp_path / "minimal.lock").packages)
    assert [sha256_disk(image.disk)] == [line.split()[0] for line in part(lines, "digest")]
