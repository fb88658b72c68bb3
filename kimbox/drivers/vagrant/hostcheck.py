"""What this host has and lacks for the driver `vagrant`."""

from __future__ import annotations

from kimbox import paths, run
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.vagrant import command, hypervisor, libvirt

#: Programs that only this driver calls.
PROGRAMS = ("vagrant", "ssh-keyscan")

#: The plugin that runs Vagrant's machines under libvirt.
PLUGIN = "vagrant-libvirt"


def check() -> HostCheck:
    """What `kimbox up --provider vagrant` lacks. Nothing else needs Vagrant, so that no result is BAD."""
    is_libvirt = hypervisor.here().NAME == libvirt.NAME
    needed = [*PROGRAMS, *(["virsh"] if is_libvirt else [])]
    if lacking := [name for name in needed if not run.which(name)]:
        mend = f"sudo apt-get install {' '.join(run.PACKAGE_OF[name] for name in lacking)} libvirt-daemon-system"
        return _slow(f"--provider vagrant lacks {', '.join(lacking)}", mend)
    if not is_libvirt:
        return _good("boxes can be run by Vagrant under VirtualBox, which kimbox was not tried with")
    if PLUGIN not in command.plugins():
        mend = f"VAGRANT_HOME={paths.vagrant_dir()} vagrant plugin install {PLUGIN}"
        return _slow(f"--provider vagrant lacks Vagrant's plugin {PLUGIN}", mend)
    answer = libvirt.virsh("version", check=False)
    if not answer.ok:
        lines = answer.stderr.strip().splitlines() or ["no reason given"]
        mend = "sudo systemctl start libvirtd && sudo usermod --append --groups libvirt $USER  # then log in anew"
        return _slow(f"--provider vagrant: libvirt does not answer: {lines[-1]}", mend)
    return _good("boxes can be run by Vagrant under libvirt")


def _good(found: str) -> HostCheck:
    return HostCheck("vagrant", Outcome.GOOD, found)


def _slow(found: str, mend: str) -> HostCheck:
    return HostCheck("vagrant", Outcome.SLOW, found, mend)
