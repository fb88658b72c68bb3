"""Other images: an older suite, an image that kimbox did not build, and the box with the published results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import makevagrant
import pytest
from conftest import Kimbox

from kimbox import run

pytestmark = pytest.mark.guest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
def test_openkim_dev_reproduces_aluminium(kimbox: Kimbox) -> None:
    """The shipped box computes the published values: a = 4.0321 A and E = -3.3600 eV per atom, within 1e-3."""
    assert kimbox.json("up", "openkim-dev")["state"] == "ready"
    printed = kimbox("exec", "openkim-dev", "--", "kimbox-al").stdout
    a = re.search(r"^a = ([0-9.]+) A$", printed, re.MULTILINE)
    e = re.search(r"^E = (-[0-9.]+) eV/atom$", printed, re.MULTILINE)
    assert a is not None
    assert e is not None
    assert float(a[1]) == pytest.approx(4.0321, abs=1e-3)
    assert float(e[1]) == pytest.approx(-3.3600, abs=1e-3)
    tools = "gcc --version && gfortran --version && ipython3 --version && python3 -c 'import numpy, scipy, ase'"
    kimbox.sh("openkim-dev", tools)
    kimbox("destroy", "-y", "openkim-dev")


@pytest.mark.soak
def test_the_example_aluminium(kimbox: Kimbox) -> None:
    """It has the image of openkim-dev. Three models give known lattice constants, and two runs give equal files."""
    kimbox("job", "init", "al", "--example", "aluminium")
    al = Kimbox(kimbox.home, kimbox.folder / "al")
    al("job", "run", "job")
    output = al.folder / "job.out/output"
    assert {"energies.csv", "energies.png", "fit.json"} == {path.name for path in output.iterdir()}
    assert (output / "energies.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    fits = json.loads((output / "fit.json").read_text())
    constants = {model.split("_")[2]: fit["a_angstrom"] for model, fit in fits.items()}
    expected = {"ErcolessiAdams": 4.032, "MishinFarkasMehl": 4.05, "LiuErcolessiAdams": 4.032}
    assert pytest.approx(expected, abs=3e-3) == constants
    found = al.json("job", "rerun", "job.out/job.json")
    assert (True, []) == (found["same"], found["differences"])


#: Runs a program with another folder, time zone, language, umask and number of processors than those of the tests.
ELSEWHERE = """
cd /
umask 077
export TZ=Pacific/Auckland LANG=tr_TR.UTF-8 LC_ALL=tr_TR.UTF-8 TMPDIR="$1"
shift
exec taskset --cpu-list 0 "$@"
"""


@pytest.fixture(scope="module")
def built(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk of the image of the shipped box `minimal`, which other tests boot."""
    key = Kimbox(home, tmp_path_factory.mktemp("built")).json("build", "minimal")["key"]
    return home / "images" / str(key) / "disk.raw"


def test_the_same_lock_gives_the_same_image(built: Path, kimbox: Kimbox, tmp_path: Path) -> None:
    """A build in another environment, without a network, gives the digest of the image that other tests boot."""
    offline = ["unshare", "--net", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
    verified = verify_elsewhere(kimbox, ["minimal"], tmp_path, offline if os.geteuid() == 0 else [])
    assert {verified["sha256"]["stored"], verified["sha256"]["built"]} == {sha256(built)}


def verify_elsewhere(kimbox: Kimbox, box: list[str], tmp_path: Path, within: Sequence[str] = ()) -> dict[str, Any]:
    """Runs `kimbox verify` in another environment and returns its result. Fails if there is a difference."""
    (tmp_path / "tmp").mkdir()
    path = os.pathsep.join([str(ROOT), *sys.path])
    verify = ["sh", "-c", ELSEWHERE, "sh", tmp_path / "tmp", sys.executable, "-m", "kimbox", "--json", "verify"]
    env = {"KIMBOX_HOME": str(kimbox.home), "PYTHONPATH": path}
    verified: dict[str, Any] = json.loads(run.run([*within, *verify, *box], env=env, timeout_s=1800).stdout)["result"]
    assert (True, []) == (verified["same"], verified["differences"])
    return verified


@pytest.mark.soak
def test_openkim_dev_gives_the_same_image(kimbox: Kimbox, tmp_path: Path) -> None:
    """The same for the large box, with its compilers and Python packages."""
    kimbox("build", "openkim-dev")
    assert verify_elsewhere(kimbox, ["openkim-dev"], tmp_path)


@pytest.mark.soak
def test_bookworm_gives_the_same_image(kimbox: Kimbox, tmp_path: Path) -> None:
    """The same for the older suite, whose mke2fs writes the time of the build."""
    kimbox.spec("older", "image: {suite: bookworm}\n")
    kimbox("build")
    assert verify_elsewhere(kimbox, ["-f", str(kimbox.folder / "kimbox.yaml")], tmp_path)


@pytest.mark.soak
def test_bookworm_is_built_and_boots(kimbox: Kimbox) -> None:
    """Debian 12 in the guest: the same host builds it, its LVM accepts the disk, and it halts cleanly.

    Recommended packages and documents are in it on request.
    """
    kimbox.spec("older", "image: {suite: bookworm, docs: true, recommends: true}\n")
    kimbox("up")
    kimbox.sh("older", "test -s /usr/share/man/man1/ls.1.gz && dpkg -s bash-completion >/dev/null")
    assert "VERSION_CODENAME=bookworm" in kimbox.sh("older", "cat /etc/os-release")
    assert "root_snap" in kimbox.sh("older", "sudo vgck vagrant-pipeline && sudo lvs vagrant-pipeline")
    kimbox.sh("older", "timeout 120 sh -c 'until systemctl is-system-running --wait >/dev/null 2>&1; do sleep 1; done'")
    assert kimbox.sh("older", "systemctl --failed --no-legend") == ""
    assert kimbox.json("halt")["state"] == "halted"
    kimbox("destroy", "-y")


def test_an_image_by_location_boots_if_its_digest_matches(built: Path, kimbox: Kimbox) -> None:
    """`location` and `digest`: the error of a wrong digest names both digests. With the right one, the box is ready."""
    digest = sha256(built)
    image = f'  location: {built}\n  digest: "sha256:{{digest}}"\n'
    (kimbox.folder / "kimbox.yaml").write_text(
        "kimbox: 1\nname: elsewhere\ndisk: {size: 6GiB, volumes: {root: 2GiB, persistent: 512MiB, swap: 256MiB}}\n"
        f"memory: 1GiB\nimage:\n{image.format(digest='0' * 64)}"
    )
    refused = kimbox.json("up", check=False)
    assert refused["exit_code"] != 0
    assert "0" * 64 in refused["message"]
    assert digest in refused["message"]
    spec = kimbox.folder / "kimbox.yaml"
    spec.write_text(spec.read_text().replace("0" * 64, digest))
    assert kimbox.json("up")["state"] == "ready"
    assert "trixie" in kimbox.sh("elsewhere", "cat /etc/os-release")
    kimbox("destroy", "-y")


#: A boot sector that prints a line on the serial console, and waits. The BIOS loads it at 0x7c00.
FOREIGN_BOOT_SECTOR = (
    bytes.fromhex(
        "31c0 8ed8 fc"  # xor ax, ax; mov ds, ax; cld
        "baf803 be167c"  # mov dx, 0x3f8; mov si, 0x7c16
        "ac 84c0 7403 ee ebf8"  # lodsb; test al, al; jz +3; out dx, al; jmp -8
        "f4 ebfd"  # hlt; jmp -3
    )
    + b"I am a foreign box\r\n\0"
)


def test_a_box_without_kimboxs_scripts_boots_and_keeps_running(kimbox: Kimbox, tmp_path: Path) -> None:
    """Such a guest cannot report that it is ready. `up` fails at its timeout with the output of the console."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(FOREIGN_BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(8 << 20))
    box = makevagrant.archive(makevagrant.metadata(), ("box.img", makevagrant.converted(disk, "qcow2")))
    (kimbox.folder / "foreign.box").write_bytes(box)
    kimbox("box", "add", "own/foreign", "foreign.box")
    (kimbox.folder / "kimbox.yaml").write_text("kimbox: 1\nname: foreign\nimage: {box: own/foreign}\n")
    failed = kimbox.json("up", "--timeout", "10s", check=False)
    assert (4, True) == (failed["exit_code"], "I am a foreign box" in failed["message"]), failed
    assert "needs cloud-init" in failed["hint"]
    assert "booting" == kimbox.json("status")["state"]
    kimbox("halt", "--force")
    refused = kimbox.json("up", "--boot", "resnap", check=False)
    assert "unsupported-by-image" == refused["code"]
    kimbox("destroy", "-y")
    kimbox("box", "remove", "own/foreign")


def sha256(path: Path) -> str:
    """Returns the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
