"""The check of this host for the driver `vagrant`."""

from __future__ import annotations

from kimbox import paths, run
from kimbox.drivers.hostcheck import HostCheck, Outcome
from kimbox.drivers.vagrant import command, hypervisor, libvirt

#: Programs that only this driver runs.
PROGRAMS = ("vagrant", "ssh-keyscan")

#: The plugin that runs Vagrant's machines under libvirt.
PLUGIN = "vagrant-libvirt"


def check() -> HostCheck:
    """Checks what `kimbox up --provider vagrant` requires. Nothing else requires Vagrant, so no result is BAD."""
    is_libvirt = hypervisor.default().NAME == libvirt.NAME
    programs = [*PROGRAMS, *(["virsh"] if is_libvirt else [])]
    if missing := [name for name in programs if not run.which(name)]:
        repair = f"sudo apt-get install {' '.join(run.PACKAGE_OF[name] for name in missing)} libvirt-daemon-system"
        return _slow(f"--provider vagrant lacks {', '.join(missing)}", repair)
    if not is_libvirt:
        return _good("Vagrant can run boxes with VirtualBox; kimbox was not tested with it")
    if PLUGIN not in command.plugins():
        repair = f"VAGRANT_HOME={paths.vagrant_dir()} vagrant plugin install {PLUGIN}"
        return _slow(f"--provider vagrant lacks Vagrant's plugin {PLUGIN}", repair)
    answer = libvirt.virsh("version", check=False)
    if not answer.ok:
        lines = answer.stderr.strip().splitlines() or ["without a reason"]
        repair = "sudo systemctl start libvirtd && sudo usermod --append --groups libvirt $USER  # then log in again"
        return _slow(f"--provider vagrant: libvirt does not answer: {lines[-1]}", repair)
    return _good("Vagrant can run boxes with libvirt")


def _good(result: str) -> HostCheck:
    return HostCheck("vagrant", Outcome.GOOD, result)


def _slow(result: str, repair: str) -> HostCheck:
    return HostCheck("vagrant", Outcome.SLOW, result, repair)
