"""The scan of a whole disk: real file systems, files that a package ships, and files of no package."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import madedisk
import pytest
from madedisk import PLACES

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk import rawdisk
from kimbox.image.sanitize import secrets
from kimbox.image.sanitize.key_formats import Kind
from kimbox.image.sanitize.secrets import Finding, Findings

KEY = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEYlA2K1gPQPzV0nRXFUmqw1xQDlVBQQ0cRyXXyUbHpB\n"

Put = Callable[..., None]


def scan(disk: Path) -> Findings:
    """The findings on a raw disk."""
    with rawdisk.opened(disk) as view:
        return secrets.scan(view)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with folders."""
    made = tmp_path / "disk.raw"
    madedisk.make(made)
    return made


@pytest.fixture
def put(disk: Path, tmp_path: Path) -> Put:
    """Writes a file with its folders into a file system of the disk, the root by default."""
    made: set[tuple[str, str]] = set()

    def write(path: str, data: bytes, place: str = "root") -> None:
        file = tmp_path / "file"
        file.write_bytes(data)
        lines = []
        for parent in [str(p) for p in reversed(Path(path).parents)][1:]:
            if (place, parent) not in made:
                lines.append(f'mkdir "{parent}"')
                made.add((place, parent))
        name = Path(path).name
        lines += [f'cd "{Path(path).parent}"', f'write {file} "{name}"']
        device = madedisk.device(disk, PLACES[place])
        result = run.run(["debugfs", "-w", "-f", "-", device], input="".join(f"{line}\n" for line in lines))
        assert "rror" not in result.stderr, result.stderr

    return write


def package(put: Put, name: str, files: dict[str, bytes], conffiles: dict[str, bytes] | None = None) -> None:
    """Writes dpkg's records of an installed package."""
    sums = {path: hashlib.md5(data, usedforsecurity=False).hexdigest() for path, data in files.items()}
    put(f"/var/lib/dpkg/info/{name}.md5sums", "".join(f"{s}  {p[1:]}\n" for p, s in sums.items()).encode())
    lines = [f"Package: {name}", "Status: install ok installed", "Conffiles:"]
    for path, data in (conffiles or {}).items():
        lines.append(f" {path} {hashlib.md5(data, usedforsecurity=False).hexdigest()}")
    put("/var/lib/dpkg/status", "\n".join([*lines, ""]).encode())


def test_every_file_system_is_scanned(disk: Path, put: Put) -> None:
    """Root, /boot and /persistent. Paths are those in the guest. The error lists path and kind of each file."""
    put("/home/user/.ssh/id", KEY)
    put("/key", KEY, "boot")
    put("/secure/key", b"x" * 3_000_000 + KEY, "persistent")
    put("/etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    put("/etc/munge/munge.key", b"\1" * 128)
    put("/var/lib/postgresql/17/main/global/pg_control", b"\1" * 100)
    put("/etc/nothing", b"x")
    findings = scan(disk)
    assert (
        Finding("/boot/key", Kind.PEM),
        Finding("/etc/machine-id", Kind.IDENTITY),
        Finding("/etc/munge/munge.key", Kind.SECRET),
        Finding("/home/user/.ssh/id", Kind.PEM),
        Finding("/persistent/secure/key", Kind.PEM),
        Finding("/var/lib/postgresql/17/main/global/pg_control", Kind.DATABASE),
    ) == findings.forbidden
    assert () == findings.kept
    with pytest.raises(ImageError, match=r"the image holds.*\n  /boot/key: private key") as caught:
        findings.check("the image")
    assert caught.value.message.count("\n") == 6
    assert ("secret-found", "the image") == (caught.value.code, caught.value.fields["name"])
    lines = caught.value.fields["files"].splitlines()
    assert (6, "/boot/key: private key (PEM)") == (len(lines), lines[0])


def test_what_a_package_ships_is_kept(disk: Path, put: Put) -> None:
    """Compared by dpkg's digest: files with either path of a merged /usr, configuration files, and compiled Python."""
    files = {"/lib/x/test.pem": KEY, "/usr/lib/x/test_keys.py": KEY, "/usr/share/x/changed.pem": KEY}
    package(put, "x", files, {"/etc/x/example.key": KEY})
    put("/usr/lib/x/test.pem", KEY)
    put("/usr/lib/x/test_keys.py", KEY)
    put("/usr/lib/x/__pycache__/test_keys.cpython-313.pyc", b"\0" * 16 + KEY)
    put("/usr/lib/x/__pycache__/other.cpython-313.pyc", b"\0" * 16 + KEY)
    put("/usr/share/x/changed.pem", KEY + b"another\n")
    put("/etc/x/example.key", KEY)
    findings = scan(disk)
    assert ["/etc/x/example.key", "/usr/lib/x/__pycache__/test_keys.cpython-313.pyc", "/usr/lib/x/test.pem",
            "/usr/lib/x/test_keys.py"] == [f.path for f in findings.kept]  # fmt: skip
    assert {"x"} == {f.package for f in findings.kept}
    forbidden = [f.path for f in findings.forbidden]
    assert ["/usr/lib/x/__pycache__/other.cpython-313.pyc", "/usr/share/x/changed.pem"] == forbidden


def test_certificates_alone_are_kept(disk: Path, put: Put) -> None:
    """A store of certificates is harmless, also if no package ships it."""
    put("/etc/ssl/certs/java/cacerts", bytes.fromhex("feedfeed0000000200000000") + bytes(20))
    findings = scan(disk)
    assert ((), (Finding("/etc/ssl/certs/java/cacerts", "certificates"),)) == (findings.forbidden, findings.kept)
    findings.check("the image")


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/etc/machine-id", b""),
        ("/etc/machine-id", b"uninitialized\n"),
        ("/etc/iscsi/initiatorname.iscsi", b"GenerateName=yes\n"),
        ("/etc/popularity-contest.conf", b'MY_HOSTID=""\n'),
        ("/etc/other/machine-id", b"0123\n"),
        ("/etc/munge/munge.key", b""),
        ("/etc/ssh/ssh_host_rsa_key.pub", b"ssh-rsa AAAA"),
    ],
)
def test_files_without_an_identity(disk: Path, put: Put, path: str, data: bytes) -> None:
    """Empty files, files that request a new identity, public keys."""
    put(path, data)
    assert Findings() == scan(disk)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc/ssh/ssh_host_rsa_key", Kind.OPENSSH),
        ("/root/.erlang.cookie", Kind.SECRET),
        ("/opt/x/private-keys-v1.d/0A.key", Kind.GNUPG),
        ("/etc/wireguard/wg0.conf", Kind.SECRET),
        ("/etc/dropbear/initramfs/dropbear_rsa_host_key", Kind.DROPBEAR),
        ("/srv/mysql/ibdata1", Kind.DATABASE),
        ("/var/lib/systemd/random-seed", Kind.SECRET),
        ("/home/user/.pki/nssdb/key4.db", Kind.NSS),
    ],
)
def test_paths_of_secrets(disk: Path, put: Put, path: str, kind: Kind) -> None:
    """A file at such a path is a finding with any content."""
    put(path, b"content")
    assert (Finding(path, kind),) == scan(disk).forbidden


def test_names_are_escaped_and_the_list_is_limited(disk: Path, put: Put) -> None:
    """The message lists ten files and the number of the others. A guest chose the names."""
    for number in range(13):
        put(f"/keys/\x1b[31m{number:02}", KEY)
    with pytest.raises(ImageError) as caught:
        scan(disk).check("the package")
    lines = caught.value.message.splitlines()
    assert (12, "  /keys/\\x1b[31m00: private key (PEM)", "  and 3 more") == (len(lines), lines[1], lines[-1])
    assert "provision" in (caught.value.hint or "")


def test_a_file_that_cannot_be_read_is_an_error_by_name(disk: Path, put: Put) -> None:
    """kimbox does not take it for a file without a key."""
    put("/etc/broken", KEY * 100)
    lines = "set_inode_field /etc/broken block[0] 0\nset_inode_field /etc/broken block[3] 0xffffff\n"
    run.run(["debugfs", "-w", "-f", "-", madedisk.device(disk, PLACES["root"])], input=lines)
    with pytest.raises(ImageError, match="/etc/broken cannot be read") as caught:
        scan(disk)
    assert "/etc/broken" == caught.value.fields["path"]


@pytest.mark.parametrize("data", [KEY, b"x" * 100])
def test_a_large_sparse_file_is_not_read_to_its_end(disk: Path, put: Put, data: bytes) -> None:
    """The scan skips holes. It computes no digest of a file of a terabyte, although dpkg lists it for a package."""
    package(put, "x", {"/etc/sparse": data})
    put("/etc/sparse", data)
    device = madedisk.device(disk, PLACES["root"])
    run.run(["debugfs", "-w", "-R", "set_inode_field /etc/sparse size 0xffffffffff", device])
    findings = scan(disk)
    paths = tuple(f.path for f in findings.forbidden)
    assert (("/etc/sparse",) if data == KEY else (), ()) == (paths, findings.kept)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    """kimbox does not take it for a disk without keys."""
    with (tmp_path / "disk").open("wb") as file:
        os.truncate(file.fileno(), 1 << 20)
    with pytest.raises(ImageError, match="layout"):
        scan(tmp_path / "disk")
