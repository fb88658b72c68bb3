"""The command line of QEMU."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import attrs
import invocations
from invocations import TCG, invoked, options, values
from refused import refused

from kimbox.drivers.accelerator import KVM_WORKS
from kimbox.drivers.base import AWAITED, JobStart, Reach
from kimbox.drivers.qemu.command import MAX_JOB_BYTES, command, credentials, fixed
from kimbox.errors import GuestError
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.machine.folder import Machine
from kimbox.spec.model import Display, Mount, Network, Scratch

machine = invocations.machine  # a fixture


def test_paths_reach_qemu_unchanged(machine: Machine) -> None:
    """With any name of the folder, QEMU opens the files in it and no others."""
    arguments = command(invoked(machine))
    drive = options(values(arguments, "-drive")[0])
    assert str(machine.disk) == drive["file"]
    assert ("qcow2", "unmap", "none") == (drive["format"], drive["discard"], drive["if"])
    ports = {c["id"]: (c[""], c["path"], c.get("append")) for c in map(options, values(arguments, "-chardev"))}
    assert {
        "serial0": ("file", str(machine.serial_log), "on"),
        "events": ("file", str(machine.events_file), "on"),
        "log": ("file", str(machine.provision_log), "on"),
        "audit": ("file", str(machine.audit_log), "on"),
        "qmp": ("socket", "qmp.sock", None),
    } == ports
    assert ["chardev=qmp,mode=control"] == values(arguments, "-mon")
    assert [str(machine.pid_file)] == values(arguments, "-pidfile")


def test_the_disk_that_cloud_init_reads(machine: Machine) -> None:
    """It is read-only and has a fixed address, also for a guest that resumes. Others have none."""
    assert "seed0" not in "\n".join(command(invoked(machine)))
    machine.write_record(attrs.evolve(machine.record(), seed="kimbox-1"))
    for resume in (False, True):
        arguments = command(invoked(machine, resume=resume))
        drive = options(values(arguments, "-drive")[-1])
        assert (str(machine.seed), "raw", "on") == (drive["file"], drive["format"], drive["read-only"])
        device = options(values(arguments, "-device")[-1])
        assert ("kimbox-seed", "0x1c", "seed0") == (device["serial"], device["addr"], device["drive"])


def test_the_disk_with_a_delivery(machine: Machine) -> None:
    """It is read-only, has a serial number and a fixed address, and is described. Resumed, an empty one replaces it."""
    plain = command(invoked(machine))
    assert "delivery0" not in "\n".join(plain)
    offered = DeliveryDisk("a" * 64, 10240, "b" * 64, "c" * 32)
    machine.write_record(attrs.evolve(machine.record(), delivery_disk=True))
    machine.delivery.write_bytes(bytes(10240))
    arguments = command(attrs.evolve(invoked(machine), delivery=offered))
    drive = options(values(arguments, "-drive")[-1])
    assert (str(machine.delivery), "raw", "on") == (drive["file"], drive["format"], drive["read-only"])
    device = options(values(arguments, "-device")[-1])
    assert ("kimbox-delivery", "0x1e", "delivery0") == (device["serial"], device["addr"], device["drive"])
    given = f"type=11,value=io.systemd.credential:kimbox.delivery={'a' * 64} 10240 {'b' * 64} {'c' * 32}"
    assert given in values(arguments, "-smbios")
    machine.delivery.unlink()
    resumed = command(invoked(machine, resume=True))
    assert "null-co" == options(values(resumed, "-drive")[-1])["driver"]
    assert "kimbox.delivery" not in "\n".join(resumed)


def test_the_cards_of_networks(machine: Machine) -> None:
    """Each has a fixed address on the bus, a MAC address from its own, and a socket. The guest learns all names."""
    assert "dgram" not in "\n".join(command(invoked(machine)))
    lan = Network("lan", "10.57.0.0/24", (("tiny", "10.57.0.1"), ("other", "10.57.0.2")))
    data = Network("data", "192.168.7.0/28", (("tiny", "192.168.7.1"),))
    machine.write_record(attrs.evolve(machine.record(), networks=(lan, data)))
    for resume in (False, True):
        invocation = attrs.evolve(invoked(machine, resume=resume), network_sockets=(7, 9))
        arguments = command(invocation)
        found = [options(value) for value in values(arguments, "-netdev")[1:]]
        assert [("network-lan", "7"), ("network-data", "9")] == [(one["id"], one["local.str"]) for one in found]
        cards = [options(value) for value in values(arguments, "-device") if "netdev=network-" in value]
        assert [("0x18", "02:6b:0a:39:00:01"), ("0x19", "02:6b:c0:a8:07:01")] == [(c["addr"], c["mac"]) for c in cards]
    told = credentials(invocation)["networks"]
    assert told == (
        "02:6b:0a:39:00:01 10.57.0.1/24 10.57.0.1=tiny 10.57.0.2=other "
        "02:6b:c0:a8:07:01 192.168.7.1/28 192.168.7.1=tiny"
    )


def test_the_screen(machine: Machine) -> None:
    """It is at a socket in the machine's folder, and at no port of the host. A saved state has its devices, too."""
    plain = command(invoked(machine))
    assert not {"-vnc", "-spice"} & set(plain)
    for display, option, expected in (
        (Display.VNC, "-vnc", "unix:display.sock"),
        (Display.SPICE, "-spice", "unix=on,addr=display.sock"),
    ):
        machine.write_record(attrs.evolve(machine.record(), display=display))
        for resume in (False, True):
            arguments = command(invoked(machine, resume=resume))
            assert values(arguments, option)[0].startswith(expected)
            added = [value for value in values(arguments, "-device") if value not in plain]
            assert ["VGA,addr=0x17", "virtio-tablet-pci,addr=0x16"] == added


def test_the_port_that_shuts_the_guest_down(machine: Machine) -> None:
    """It is the last port, and a saved state without it resumes without it: QEMU refuses a state with other devices."""
    assert "org.kimbox.halt" not in "\n".join(command(invoked(machine)))
    machine.write_record(attrs.evolve(machine.record(), halt_port=True))
    arguments = command(invoked(machine))
    assert ("pipe", str(machine.halt_pipe)) == tuple(
        options(values(arguments, "-chardev")[-1])[key] for key in ("", "path")
    )
    assert "virtserialport,chardev=halt,name=org.kimbox.halt" == values(arguments, "-device")[-1]


def test_the_watchdog(machine: Machine) -> None:
    """It has a fixed address, resets the machine, and the guest knows its timeout. A resumed machine has it, too."""
    plain = command(invoked(machine))
    assert "i6300esb" not in "\n".join(plain)
    machine.write_record(attrs.evolve(machine.record(), watchdog_s=120))
    for resume in (False, True):
        arguments = command(invoked(machine, resume=resume))
        assert "i6300esb,addr=0x1d" == values(arguments, "-device")[-1]
        assert "watchdog=reset" in values(arguments, "-action")
    assert "type=11,value=io.systemd.credential:kimbox.watchdog=120" in values(command(invoked(machine)), "-smbios")


def test_the_disk_of_a_job(machine: Machine) -> None:
    """It has a serial number and is described, its output has a port, and the guest reaches nothing unless it may."""
    assert "kimbox-job" not in "\n".join(command(invoked(machine)))
    job = JobStart("0123456789ab", 60)
    arguments = command(attrs.evolve(invoked(machine), job=job))
    drive = options(values(arguments, "-drive")[-1])
    assert (str(machine.job_disk), "raw") == (drive["file"], drive["format"])
    assert "kimbox-job" == options(values(arguments, "-device")[-2])["serial"]
    assert "org.kimbox.job" == options(values(arguments, "-device")[-1])["name"]
    assert "type=11,value=io.systemd.credential:kimbox.job=0123456789ab 60" in values(arguments, "-smbios")
    assert "restrict=on" in values(arguments, "-netdev")[0].split(",")
    open_job = command(attrs.evolve(invoked(machine), job=JobStart("0123456789ab", has_network=True)))
    assert "restrict=on" not in values(open_job, "-netdev")[0].split(",")
    assert "type=11,value=io.systemd.credential:kimbox.job=0123456789ab infinity" in values(open_job, "-smbios")


def test_a_job_that_reaches_servers(machine: Machine) -> None:
    """Each has an address, and a program for its connections: only then QEMU may start one. Nothing else is reached."""
    job = JobStart("0123456789ab", reach=(Reach("web", "192.0.2.7", 443), Reach("web", "192.0.2.7", 80)))
    arguments = command(attrs.evolve(invoked(machine), job=job))
    network, *reached = values(arguments, "-netdev")[0].split(",guestfwd=")
    assert "restrict=on" in network.split(",")
    first, second = [text.partition(",hostfwd=")[0].partition("-cmd:") for text in reached]
    assert ("tcp:10.0.2.100:443", "tcp:10.0.2.100:80") == (first[0], second[0])
    words = shlex.split(first[2].replace(",,", ","))
    assert ["192.0.2.7", "443", str(machine.folder / "relay.lock"), "64"] == words[-4:]
    assert "spawn=allow" in values(arguments, "-sandbox")[0]
    closed = command(attrs.evolve(invoked(machine), job=JobStart("0123456789ab")))
    assert "spawn=deny" in values(closed, "-sandbox")[0]
    assert "guestfwd" not in values(closed, "-netdev")[0]


def test_the_disk_of_a_template_for_jobs(machine: Machine) -> None:
    """A clone has the same devices, in the same order, and in the place of an empty disk that of its job."""
    template = attrs.evolve(invoked(machine), job=AWAITED)
    drive = options(values(command(template), "-drive")[-1])
    assert ("null-co", str(MAX_JOB_BYTES)) == (drive["driver"], drive["size"])
    assert not any("kimbox.job" in value for value in values(command(template), "-smbios"))
    assert "-no-reboot" not in command(template)
    clone = attrs.evolve(template, job=JobStart("0123456789ab"), template_ram=3)
    assert fixed(clone) == fixed(attrs.evolve(template, template_ram=3))
    assert str(machine.job_disk) == options(values(command(clone), "-drive")[-1])["file"]
    assert "restrict=on" in values(command(clone), "-netdev")[0].split(",")
    assert "-no-reboot" in command(clone)
    assert "panic=shutdown" in values(command(clone), "-action")


def test_it_holds_no_secret(machine: Machine) -> None:
    """All users of the host can read command lines, so the private key's path and content are not in it."""
    text = "\n".join(command(invoked(machine)))
    assert "b3BlbnNzaC1r" not in text
    assert "PRIVATE" not in text
    assert not re.search(re.escape(str(machine.key)) + r"(?!\.pub)", text)
    assert "ssh-ed25519 AAAA kimbox-tiny" in text


def test_forwards_listen_on_this_host_alone(machine: Machine) -> None:
    """Each is bound to 127.0.0.1; ssh is one of them."""
    network = values(command(invoked(machine)), "-netdev")[0]
    assert {"hostfwd=tcp:127.0.0.1:20022-:22", "hostfwd=tcp:127.0.0.1:20023-:8888"} == {
        word for word in network.split(",") if word.startswith("hostfwd")
    }


def test_the_sandbox_is_on(machine: Machine) -> None:
    """A guest that breaks out of the emulation cannot start programs or gain rights."""
    sandbox = options(values(command(invoked(machine)), "-sandbox")[0])
    assert {"": "on", "obsolete": "deny", "elevateprivileges": "deny", "spawn": "deny", "resourcecontrol": "deny"} == (
        sandbox
    )


def test_shape_and_accelerator(machine: Machine) -> None:
    """cpus, memory, accelerator and identity are those of the launch."""
    arguments = command(invoked(machine, TCG))
    assert (["2"], ["1024M"]) == (values(arguments, "-smp"), values(arguments, "-m"))
    assert ["tcg,thread=multi,tb-size=512"] == values(arguments, "-accel")
    assert ["max"] == values(arguments, "-cpu")
    assert [machine.record().uuid] == values(arguments, "-uuid")
    assert any(f"mac={machine.record().mac}" in device for device in values(arguments, "-device"))
    assert "-nodefaults" in arguments
    assert "-no-user-config" in arguments
    plain = command(invoked(machine))
    assert (["kvm"], ["host"]) == (values(plain, "-accel"), values(plain, "-cpu"))


def test_the_longest_name_is_not_cut(machine: Machine) -> None:
    """63 characters, as a spec may have."""
    name = "n" * 63
    long = attrs.evolve(invoked(machine), record=attrs.evolve(machine.record(), name=name))
    assert {"": f"kimbox-{name}", "process": f"kimbox-{name}"} == options(values(command(long), "-name")[0])


def test_credentials(machine: Machine) -> None:
    """Host name, network and public key reach the guest through SMBIOS unchanged."""
    sent = credentials(invoked(machine))
    assert {"hostname", "network", "authorized_key"} == set(sent)
    assert "10.0.2.15/24 10.0.2.2 10.0.2.3" == sent["network"]
    smbios = [options(value)["value"] for value in values(command(invoked(machine)), "-smbios")]
    assert {f"io.systemd.credential:kimbox.{name}={text}" for name, text in sent.items()} == set(smbios)


def test_scratch_space_is_a_disk_of_its_own(machine: Machine) -> None:
    """It has a serial number and follows the box's own disk. Without it there is one disk, and no credential."""
    plain = invoked(machine)
    arguments = command(attrs.evolve(plain, scratch=Scratch(1 << 30, "/mnt/scratch")))
    own, scratch = map(options, values(arguments, "-drive"))
    assert (str(machine.disk), str(machine.scratch)) == (own["file"], scratch["file"])
    assert ("qcow2", "unmap", "none") == (scratch["format"], scratch["discard"], scratch["if"])
    disks = [device for device in map(options, values(arguments, "-device")) if device[""] == "virtio-blk-pci"]
    assert [("disk0", None), ("scratch0", "kimbox-scratch")] == [(d["drive"], d.get("serial")) for d in disks]
    smbios = [options(value)["value"] for value in values(arguments, "-smbios")]
    assert "io.systemd.credential:kimbox.scratch=/mnt/scratch" in smbios
    assert 1 == len(values(command(plain), "-drive"))
    assert not any("scratch" in value for value in values(command(plain), "-smbios"))


def test_a_missing_key_is_an_error(machine: Machine) -> None:
    """Without its key a box cannot be reached. The hint has the commands that create a new machine."""
    file = machine.key.with_suffix(".pub")
    file.unlink()
    with refused(GuestError, "file-unreadable", name="tiny", path=str(file)) as caught:
        command(invoked(machine))
    assert "kimbox destroy tiny" in str(caught.value.hint)


def test_a_template_and_its_clone_have_the_same_devices(machine: Machine) -> None:
    """QEMU loads a saved state only with the same devices. The memory is shared with the file, or mapped privately."""
    record = attrs.evolve(machine.record(), woken=True)
    plain = attrs.evolve(invoked(machine, TCG), record=record)
    frozen, woken = attrs.evolve(plain, freezing=True), attrs.evolve(plain, template_ram=7)
    devices = {tuple(values(command(each), "-device")) for each in (plain, frozen, woken)}
    assert 1 == len(devices)
    assert any("guest_announce=off" in device for device in next(iter(devices)))
    assert not any("guest_announce" in device for device in values(command(invoked(machine, TCG)), "-device"))
    own = {"virtserialport,chardev=freeze,name=org.kimbox.freeze", "vmgenid,guid=auto,id=generation0"}
    assert own < set(devices.pop())
    backends = [options(*values(command(each), "-object")) for each in (frozen, woken)]
    assert [("on", str(machine.ram)), ("off", "/proc/self/fd/7")] == [(b["share"], b["mem-path"]) for b in backends]
    assert all("memory-backend=pc.ram" in values(command(each), "-machine")[0] for each in (frozen, woken))
    assert "memory-backend" not in values(command(plain), "-machine")[0]
    assert ([], ["defer"]) == (values(command(frozen), "-incoming"), values(command(woken), "-incoming"))
    assert ["yes", None] == [credentials(each).get("freeze") for each in (frozen, woken)]
    assert "tb-size=512" in values(command(frozen), "-accel")[0]
    assert "tb-size=96" in values(command(woken), "-accel")[0]


def test_a_saved_memory_depends_on_devices_and_processor_alone(machine: Machine) -> None:
    plain = invoked(machine, TCG)
    other = attrs.evolve(plain.record, name="other", uuid="0" * 8 + "-0000-4000-8000-" + "0" * 12, ssh_port=1)
    assert fixed(plain) == fixed(attrs.evolve(plain, record=other))
    changed = [attrs.evolve(plain, cpus=1), attrs.evolve(plain, memory_bytes=2 << 30), invoked(machine, KVM_WORKS)]
    assert 4 == len({tuple(fixed(each)) for each in (plain, *changed)})
    assert not [option for option in fixed(plain) if str(machine.folder) in option]


def test_only_a_clone_has_the_port_for_its_identity(machine: Machine) -> None:
    assert not [device for device in values(command(invoked(machine)), "-device") if "freeze" in device]


def test_folders_of_the_host(machine: Machine) -> None:
    """Memory is shared, and each folder has a slot at a fixed address. A guest that resumes has the slots alone."""
    assert "pcie-root-port" not in "\n".join(command(invoked(machine)))
    mounts = (Mount(Path("/srv/a"), "/a", writable=True), Mount(Path("/srv/b"), "/b"))
    machine.write_record(attrs.evolve(machine.record(), mounts=mounts))
    assert mounts == machine.record().mounts
    assert "/a:rw /b:ro" == credentials(invoked(machine))["mounts"]
    resumed, booted = command(invoked(machine, resume=True)), command(attrs.evolve(invoked(machine), mounts=(7, 8)))
    for arguments in (resumed, booted):
        devices = [options(value) for value in values(arguments, "-device")]
        slots = [(d["id"], d["addr"]) for d in devices if d[""] == "pcie-root-port"]
        assert [("slot0", "0x15.0"), ("slot1", "0x15.1")] == slots
        memory = options(values(arguments, "-object")[0])
        assert ("memory-backend-memfd", "on") == (memory[""], memory["share"])
        assert f",memory-backend={memory['id']}" in values(arguments, "-machine")[0]
    assert "vhost-user-fs" not in "\n".join(resumed)
    tags = [(d["tag"], d["bus"]) for d in map(options, values(booted, "-device")) if d[""] == "vhost-user-fs-pci"]
    assert [("kimbox0", "slot0"), ("kimbox1", "slot1")] == tags
    assert {"7", "8"} == {c["fd"] for c in map(options, values(booted, "-chardev")) if "fd" in c}


def test_no_two_devices_have_one_fixed_address(machine: Machine) -> None:
    """Folders of the host, networks, a screen, a watchdog and the disk of cloud-init can be in one machine."""
    networks = tuple(Network(f"net{n}", f"10.57.{n}.0/24", (("tiny", f"10.57.{n}.1"),)) for n in range(4))
    mounts = tuple(Mount(Path(f"/srv/{n}"), f"/{n}") for n in range(8))
    record = attrs.evolve(
        machine.record(), networks=networks, mounts=mounts, display=Display.VNC, watchdog_s=60, seed="a",
        delivery_disk=True,
    )  # fmt: skip
    machine.write_record(record)
    arguments = command(attrs.evolve(invoked(machine, resume=True), network_sockets=(7, 8, 9, 10)))
    addresses = [device["addr"] for device in map(options, values(arguments, "-device")) if "addr" in device]
    assert 17 == len(addresses) == len({address.removesuffix(".0") for address in addresses})
