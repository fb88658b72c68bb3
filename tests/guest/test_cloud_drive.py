"""An image of kimbox as an instance of OpenStack: QEMU with the devices and the config drive that Nova gives it."""

from __future__ import annotations

import json
from pathlib import Path

import makebox
import pytest
from conftest import Kimbox, until
from fakeguest import delivery, step
from test_virtualbox import forwarded_ports

from kimbox import run
from kimbox.drivers.accelerator import EMULATED_CPU
from kimbox.guest import cloudinit
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.guest.endpoint import Endpoint
from kimbox.guest.events import Tail
from kimbox.guest.ssh import Guest

pytestmark = pytest.mark.guest

UUID = "5c0f3bd6-7a5c-4f0c-9b2e-0d3f1d7a1c11"

#: QEMU as Nova starts it for the properties of `kimbox publish`: the config drive is a CD-ROM behind virtio-scsi.
NOVA = (
    "qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,tb-size=256", "-cpu", EMULATED_CPU, "-smp", "1",
    "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none", "-uuid", UUID,
    "-smbios", f"type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova,uuid={UUID}",
    "-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-cd,bus=scsi0.0,drive=config",
    "-device", "virtio-blk-pci,drive=disk,bootindex=1", "-device", "virtio-blk-pci,drive=ephemeral",
    "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
)  # fmt: skip

LOOK = """\
hostname
sudo cat /etc/machine-id /persistent/kimbox/instance
echo $TMPDIR
stat -c %a /mnt/scratch
df --output=source /mnt/scratch | tail -n 1
cat /etc/marked
cat /persistent/log/events.jsonl
"""


def drive(folder: Path, public_key: str, user_data: bytes) -> Path:
    """Makes a config drive as Nova does, with its program."""
    latest = folder / "content/openstack/latest"
    latest.mkdir(parents=True)
    metadata = {
        "uuid": UUID, "name": "Kim One", "hostname": "kim-one.novalocal", "public_keys": {"k": public_key},
        "meta": {"kimbox_scratch": "/mnt/scratch"}, "random_seed": "QUJD",
    }  # fmt: skip
    (latest / "meta_data.json").write_text(json.dumps(metadata))
    (latest / "user_data").write_bytes(user_data)
    image = folder / "config.iso"
    run.run(["genisoimage", "-quiet", "-o", image, "-ldots", "-allow-lowercase", "-allow-multidot", "-l", "-J", "-r",
             "-V", "config-2", folder / "content"])  # fmt: skip
    return image


def test_an_instance(kimbox: Kimbox, tmp_path: Path) -> None:
    """Key, name, id, scratch space and manifest are the cloud's, and the console has the host key of this instance."""
    disk = kimbox.home / "images" / str(kimbox.json("build", "minimal")["key"]) / "disk.raw"
    key, overlay, ephemeral = (tmp_path / name for name in ("key", "overlay", "ephemeral"))
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", key])
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay])
    run.run(["mke2fs", "-q", "-t", "ext4", "-L", "ephemeral0", ephemeral, "256M"])
    digest, archive = delivery(
        tmp_path, makebox.make_box(tmp_path, provision=(step("mark", "echo marked >/etc/marked"),))
    )
    heading = f"#kimbox-manifest {DeliveryDisk.of(digest, archive).credential()}\n".encode()
    config = drive(tmp_path, key.with_suffix(".pub").read_text(), heading + archive.read_bytes())
    console, control = tmp_path / "console", tmp_path / "qmp.sock"
    exit_code = run.detach(
        [
            *NOVA, "-drive", f"if=none,id=disk,format=qcow2,file={overlay}",
            "-drive", f"if=none,id=ephemeral,format=raw,file={ephemeral}",
            "-drive", f"if=none,id=config,format=raw,media=cdrom,read-only=on,file={config}",
            "-serial", f"file:{console}", "-pidfile", tmp_path / "pid", "-qmp", f"unix:{control},server=on,wait=off",
        ],
        log=tmp_path / "qemu.log",
    )  # fmt: skip
    try:
        ports: list[str] = []
        until("the forwarded port", lambda: bool(ports.extend(forwarded_ports(control)) or ports), limit_s=60)
        until("the host key", lambda: bool(cloudinit.host_key(console.read_bytes())), limit_s=300)
        known = tmp_path / "known"
        known.write_text(f"box {cloudinit.host_key(console.read_bytes())}\n")
        words: list[str] = []
        endpoint = Endpoint("127.0.0.1", int(ports[0]), "vagrant", key, known, "box")

        def is_ready() -> bool:
            try:
                with Guest(endpoint) as guest:
                    words[:] = guest.run(LOOK, timeout_s=60).stdout.splitlines()
            except Exception:
                return exit_code() is not None
            return any('"ready"' in line for line in words)

        until("a ready box", is_ready, limit_s=300)
        assert ["kim-one", UUID.replace("-", ""), UUID, "/mnt/scratch", "1777", "/dev/vdb", "marked"] == words[:7]
        (tmp_path / "events").write_text("".join(f"{line}\n" for line in words[7:]))
        ready = Tail(tmp_path / "events").read()[-1]
        assert ("ready", digest) == (ready.name, ready.text("manifest"))
    finally:
        run.run(["kill", "-KILL", (tmp_path / "pid").read_text().strip()], check=False)
        until("the end of QEMU", lambda: exit_code() is not None, limit_s=60)
        print(console.read_text(errors="replace")[-6000:])
