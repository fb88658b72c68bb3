"""Keys and identities: no image and no package contains them. Each box makes its own at the first boot."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Kimbox

from kimbox.image.disk import rawdisk
from kimbox.image.disk.ext4.directories import find
from kimbox.image.sanitize import secrets
from kimbox.image.sanitize.key_formats import Kind

pytestmark = [pytest.mark.guest, pytest.mark.soak]

#: Small packages whose installation makes a key or an identity.
PACKAGES = "ssl-cert, munge, open-iscsi, nvme-cli, postfix, bind9, nsd, pacemaker"

#: The files that they make, with owner, group and mode as stat(1) prints them.
MADE = {
    "/etc/ssl/private/ssl-cert-snakeoil.key": "root ssl-cert 640",
    "/etc/ssl/certs/ssl-cert-snakeoil.pem": "root root 644",
    "/etc/munge/munge.key": "munge munge 400",
    "/etc/iscsi/initiatorname.iscsi": "root root 600",
    "/etc/nvme/hostnqn": "root root 644",
    "/etc/nvme/hostid": "root root 644",
    "/etc/aliases.db": "root root 644",
    "/etc/bind/rndc.key": "bind bind 640",
    "/etc/nsd/nsd_control.key": "root root 600",
    "/etc/nsd/nsd_server.key": "root root 600",
    "/etc/pacemaker/authkey": "root haclient 640",
}


def scan(disk: Path) -> secrets.Findings:
    """Finds keys and identities on a raw disk."""
    with rawdisk.opened(disk) as view:
        return secrets.scan(view)


def image_of(kimbox: Kimbox) -> Path:
    """Builds the image of the spec in this folder and returns its disk."""
    return kimbox.home / "images" / str(kimbox.json("build")["key"]) / "disk.raw"


def test_small_packages(kimbox: Kimbox, tmp_path: Path) -> None:
    """Two builds are equal and contain none of the files. The ready box has all of them. Its package has none."""
    kimbox.spec("makers", f"image: {{packages: [{PACKAGES}]}}\n")
    image = image_of(kimbox)
    assert kimbox.json("verify")["same"]
    with rawdisk.opened(image) as disk:
        assert [] == [path for path in MADE if find(disk.root.file_system, path.encode())]
    kimbox("up")
    listed = kimbox.sh("makers", f"sudo stat -c '%n %U %G %a' {' '.join(MADE)}")
    assert {f"{path} {owner}" for path, owner in MADE.items()} == set(listed.splitlines())
    works = "munge -n 2>/dev/null | unmunge 2>/dev/null"
    waited = kimbox.sh("makers", f"timeout 300 sh -c 'until {works}; do sleep 1; done'")
    assert "Success (0)" in waited
    # The key and its certificate were made together: the public key of both is the same.
    key = kimbox.sh("makers", "sudo openssl pkey -in /etc/ssl/private/ssl-cert-snakeoil.key -pubout")
    assert key == kimbox.sh("makers", "openssl x509 -in /etc/ssl/certs/ssl-cert-snakeoil.pem -noout -pubkey")
    digests = "sudo sha256sum /etc/munge/munge.key /etc/nvme/hostid /etc/iscsi/initiatorname.iscsi"
    assert "postmaster: root" in kimbox.sh("makers", "sudo postalias -s hash:/etc/aliases | tr '\\t' ' ' | tr -s ' '")
    first = kimbox.sh("makers", digests)
    kimbox("reload")
    assert first == kimbox.sh("makers", digests)
    kimbox("reload", "--boot", "resnap")
    assert set() == set(first.splitlines()) & set(kimbox.sh("makers", digests).splitlines())
    kimbox("halt")
    kimbox("package", "--format", "raw", "--output", str(tmp_path / "out"))
    findings = scan(tmp_path / "out/makers.raw")
    assert () == findings.forbidden
    with rawdisk.opened(tmp_path / "out/makers.raw") as disk:
        assert [] == [path for path in MADE if find(disk.root.file_system, path.encode())]
    kimbox("destroy", "-y")


@pytest.mark.parametrize(
    ("packages", "check"),
    [
        ("[postgresql]", "sudo -u postgres psql -tAc 'select 1'"),
        ("[mariadb-server]", "sudo mariadb -NBe 'select 1'"),
    ],
)
def test_databases(kimbox: Kimbox, packages: str, check: str) -> None:
    """Two builds are equal and contain no database. The box has one, and it answers."""
    kimbox.spec("data", f"image: {{packages: {packages}}}\ndisk: {{size: 8GiB, volumes: {{root: 3GiB}}}}\n")
    image = image_of(kimbox)
    assert kimbox.json("verify")["same"]
    assert () == scan(image).forbidden
    kimbox("up")
    waiting = f"timeout 300 sh -c 'until {check}; do sleep 1; done' 2>/dev/null"
    assert "1\n" == kimbox.sh("data", waiting.replace("'select 1'", '"select 1"'))
    kimbox("destroy", "-y")


def test_java(kimbox: Kimbox) -> None:
    """Java's certificate store is equal in both builds. The scan lists it as kept, and Java reads it."""
    kimbox.spec("java", "image: {packages: [openjdk-21-jre-headless]}\ndisk: {size: 8GiB, volumes: {root: 3GiB}}\n")
    image = image_of(kimbox)
    assert kimbox.json("verify")["same"]
    kept = {finding.path: finding.kind for finding in scan(image).kept}
    assert Kind.CERTIFICATES == kept["/etc/ssl/certs/java/cacerts"]
    kimbox("up")
    listed = kimbox.sh("java", "keytool -list -cacerts -storepass changeit | grep -c trustedCertEntry")
    assert int(listed) > 100
    kimbox("destroy", "-y")


def test_kernel_modules(kimbox: Kimbox) -> None:
    """DKMS builds equal modules, without the key that it would generate to sign them."""
    packages = "[linux-headers-cloud-amd64, v4l2loopback-dkms]"
    kimbox.spec("modules", f"image: {{packages: {packages}}}\ndisk: {{size: 8GiB, volumes: {{root: 3GiB}}}}\n")
    image = image_of(kimbox)
    assert kimbox.json("verify")["same"]
    assert () == scan(image).forbidden
