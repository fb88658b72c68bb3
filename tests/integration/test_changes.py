"""Differences between two disks: packages by dpkg's database, files by name and content."""

from __future__ import annotations

import shutil
from pathlib import Path

import madedisk
import pytest
from madedisk import PLACES

from kimbox import run
from kimbox.image.disk import dpkg, rawdisk

ROOT, BOOT = PLACES["root"], PLACES["boot"]

STATUS = """Package: {name}
Status: {status}
Architecture: amd64
Version: {version}
Description: one
 Version: of a trick

"""


def status(**versions: str) -> str:
    """Returns dpkg's status file, with one more package that is removed and not purged."""
    installed = [STATUS.format(name=n, version=v, status="install ok installed") for n, v in versions.items()]
    return "".join([*installed, STATUS.format(name="left", version="9", status="deinstall ok config-files")])


def fill(disk: Path, folder: Path, place: object, files: dict[str, str]) -> None:
    """Writes files into a file system. Existing files are replaced."""
    created = set()
    requests = []
    for number, (path, text) in enumerate(files.items()):
        (folder / f"f{number}").write_text(text)
        for parent in reversed(Path(path).parents):
            if str(parent) != "/" and parent not in created:
                created.add(parent)
                requests.append(f"mkdir {parent}")
        requests += [f"rm {path}", f"write {folder}/f{number} {path}"]
    for request in requests:
        run.run(["debugfs", "-w", "-R", request, madedisk.device(disk, place)])  # type: ignore[arg-type]


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """An image with three packages."""
    disk = tmp_path / "former.raw"
    madedisk.make(disk)
    files = {
        "/etc/same": "same\n",
        "/etc/conf": "old\n",
        "/etc/gone": "gone\n",
        "/usr/bin/tool": "tool 1\n",
        "/usr/bin/other": "other\n",
        "/var/lib/dpkg/status": status(tool="1", other="1", going="1:2"),
        "/var/lib/dpkg/info/tool.list": "/.\n/bin\n/bin/tool\n",
    }
    fill(disk, tmp_path, ROOT, files)
    return disk


def test_files_of_packages_are_counted_and_other_files_listed(former: Path, tmp_path: Path) -> None:
    """A file belongs to a package by either name of a merged /usr."""
    disk = Path(shutil.copy(former, tmp_path / "new.raw"))
    files = {
        "/etc/conf": "new\n",
        "/etc/same": "same\n",
        "/etc/new name": "new\n",
        "/usr/bin/tool": "tool 2\n",
        "/var/lib/dpkg/status": status(tool="2", other="1", coming="3"),
        "/var/lib/dpkg/info/coming.list": "/.\n/usr\n/usr/bin/come\n",
        "/usr/bin/come": "come\n",
    }
    fill(disk, tmp_path, ROOT, {path: text for path, text in files.items() if " " not in path})
    (tmp_path / "named").write_text("new\n")
    run.run(["debugfs", "-w", "-R", f'write {tmp_path}/named "/etc/new name"', madedisk.device(disk, ROOT)])
    run.run(["debugfs", "-w", "-R", "set_inode_field /usr/bin/other mode 0104755", madedisk.device(disk, ROOT)])
    for image in (former, disk):  # equal times prove nothing: a program that changes a file can reset its time
        run.run(["debugfs", "-w", "-R", "set_inode_field /usr/bin/tool mtime 20260101", madedisk.device(image, ROOT)])
    madedisk.remove(disk, ROOT, "/etc/gone")
    fill(disk, tmp_path, BOOT, {"/initrd.img-6": "initrd\n"})
    changes = madedisk.differences(former, disk)
    assert {"coming": ("", "3"), "going": ("1:2", ""), "tool": ("1", "2")} == changes.packages
    assert ("/boot/initrd.img-6", "/etc/new name") == changes.added
    assert ("/etc/gone",) == changes.removed
    assert ("/etc/conf", "/usr/bin/other") == changes.changed
    assert 2 == changes.package_files
    assert "+ /etc/new name" in changes.lines()
    assert [{"name": "coming", "old": "", "new": "3"}] == changes.as_json()["packages"][:1]


def test_the_packages_of_a_disk(former: Path) -> None:
    """All installed packages, each with version and architecture."""
    expected = {"tool": ("1", "amd64"), "other": ("1", "amd64"), "going": ("1:2", "amd64")}
    with rawdisk.opened(former) as disk:
        assert expected == dpkg.installed(disk.root.file_system)


def test_equal_disks_have_no_differences(former: Path) -> None:
    """The output says so."""
    assert ["no differences"] == madedisk.differences(former, former).lines()
