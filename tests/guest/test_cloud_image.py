"""Boxes of images that kimbox did not build: cloud-init and sshd, one as Debian makes it and one that looks like RPM.

Each image is built here of Debian's packages. Images of Ubuntu, Rocky and Fedora themselves are not tried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import makecloudimage
import pytest
import screens
from conftest import Kimbox, until

from kimbox.image import namespace

pytestmark = pytest.mark.guest

#: The timeout of the first boot: it does much more than that of an image of kimbox.
FIRST = ("--timeout", "15m")

SPEC = """\
kimbox: 1
name: {name}
image: {{location: "{location}", digest: "sha256:{digest}"}}
disk: {{size: 3GiB}}
cpus: 1
memory: 1GiB
repositories: {{data: {{url: ./data, path: /opt/data}}}}
provision:
  - {{name: greet, run: once, script: "echo {greeting} >>/etc/greeting"}}
  - {{name: who, mode: user, run: boot, script: "id -un >>/tmp/who"}}
probes: [{{description: "the data is there", script: "grep -q 42 /opt/data/answer"}}]
{more}"""


@attrs.frozen
class Cloud:
    """kimbox in a working directory with the data and a job, and the folder with the images."""

    kimbox: Kimbox
    work: Path

    def spec(self, name: str, image: Path, greeting: str = "hello", more: str = "") -> None:
        """Writes the spec of a box of an image."""
        text = SPEC.format(name=name, location=image, digest=_digest(image), greeting=greeting, more=more)
        (self.kimbox.folder / "kimbox.yaml").write_text(text)


@pytest.fixture(scope="module")
def cloud(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The image of Debian. Images and boxes are removed at the end."""
    work, folder, place = (tmp_path_factory.mktemp(name) for name in ("images", "cloud", "packages"))
    kimbox = Kimbox(home, folder)
    packages = ", ".join(makecloudimage.PACKAGES)
    makecloudimage.make(Kimbox(home, place).spec("images", f"image: {{packages: [{packages}]}}\n"), work)
    (folder / "data").mkdir()
    (folder / "data/answer").write_text("42\n")
    (folder / "job").mkdir()
    (folder / "job/run-job").write_text("#!/bin/sh\n")
    (folder / "job/run-job").chmod(0o755)
    yield Cloud(kimbox, work)
    for name in ("cloudy", "rocky"):
        kimbox("destroy", "-y", name, check=False)
    namespace.remove(work)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_an_image_of_debian(cloud: Cloud) -> None:
    """`up` makes it ready and provisions it, again after a change of the spec, and again after a restart."""
    kimbox, image = cloud.kimbox, cloud.work / "debian.qcow2"
    cloud.spec("cloudy", image, more="boot: resnap\n")
    assert "unsupported-by-image" == kimbox.json("up", check=False)["code"]  # before anything boots
    assert [] == [box["name"] for box in kimbox.json("list")["boxes"] if box["name"] == "cloudy"]
    cloud.spec("cloudy", image)
    kimbox("up", *FIRST)
    status = kimbox.json("status", "cloudy")
    assert ("ready", "cloud-init", "keep") == (status["state"], status["guest"], status["boot"])
    own_key = kimbox.sh("cloudy", "cat /etc/ssh/ssh_host_ed25519_key.pub")
    assert own_key.startswith(status["host_key"])
    assert ["cloudy", "vagrant"] == kimbox.sh("cloudy", "hostname; id -un").split()
    assert int(kimbox.sh("cloudy", "df --output=size -B1 / | tail -n 1")) > (5 << 29)  # of 3 GiB; the image has 2
    assert ["hello", "vagrant"] == kimbox.sh("cloudy", "cat /etc/greeting /tmp/who").split()
    assert "PRIVATE" not in kimbox.sh("cloudy", "sudo cat /var/lib/cloud/instance/user-data.txt")

    kimbox("up")  # changes nothing
    assert ["hello"] == kimbox.sh("cloudy", "cat /etc/greeting").split()
    for words in (["clone", "cloudy", "twin"], ["job", "run", "job", "--box", "cloudy"]):
        assert "unsupported-by-image" == kimbox.json(*words, check=False)["code"]
    cloud.spec("cloudy", image, greeting="again")
    kimbox("up")  # over ssh, into the guest that runs
    assert ["hello", "again"] == kimbox.sh("cloudy", "cat /etc/greeting").split()
    assert "step" in kimbox("logs", "cloudy").stdout

    kimbox("halt", "cloudy")
    assert "halted" == kimbox.json("status", "cloudy")["state"]
    cloud.spec("cloudy", image, greeting="later", more="display: vnc\nforwards: [{guest: auto}]\n")
    kimbox("up")
    screens.shows_its_guest(kimbox, "cloudy")
    kimbox.sh("cloudy", "sudo systemd-run -q systemd-socket-activate -l 127.0.0.1:8888 --accept --inetd echo hello")
    until("its port is forwarded", lambda: "8888" in kimbox.json("status", "cloudy")["auto_forwards"])
    assert ["hello", "again", "later", "vagrant"] == kimbox.sh("cloudy", "cat /etc/greeting /tmp/who").split()
    assert own_key == kimbox.sh("cloudy", "cat /etc/ssh/ssh_host_ed25519_key.pub")
    kimbox("destroy", "-y", "cloudy")


@pytest.mark.soak
def test_an_image_that_looks_like_rpm(cloud: Cloud) -> None:
    """git is installed with dnf, sshd.service is the ssh server, and the shell is bash."""
    kimbox = cloud.kimbox
    cloud.spec("rocky", makecloudimage.make_like_rpm(cloud.work))
    kimbox("up", *FIRST)
    assert "ready" == kimbox.json("status", "rocky")["state"]
    assert "-q -y install git-core\n" == kimbox.sh("rocky", "cat /var/log/dnf.words")
    shown = kimbox.sh("rocky", ". /etc/os-release; echo $ID; cat /etc/greeting /tmp/who")
    assert ["rocky", "hello", "vagrant"] == shown.split()
    assert "sshd.service" in kimbox.sh("rocky", "systemctl show -p FragmentPath --value ssh.service")
    assert "" == kimbox.sh("rocky", "command -v apt-get dpkg || true")
    kimbox("destroy", "-y", "rocky")
