"""Renders the files of a guest that depend on the layout of its disk: grub.cfg and fstab. No input or output."""

from __future__ import annotations

from kimbox.spec.layout import MIB, SECTOR_BYTES, Layout, dm_name
from kimbox.spec.model import BootMode

#: Label of the file system of /boot, by which the guest finds it: it is not an LV.
BOOT_LABEL = "kimbox-boot"

#: Kernel parameters of every boot. `quiet` leaves errors on the console. Interfaces have the kernel's names (eth0). The
#: box restarts 5 s after a panic. `lsm` has the security modules of Debian's kernel without BPF, for which systemd
#: would compile a program at every start (1 s under emulation).
COMMON = (
    "quiet",
    "console=tty0",
    "console=ttyS0,115200",
    "net.ifnames=0",
    "panic=5",
    "lsm=landlock,lockdown,yama,loadpin,safesetid,integrity,apparmor",
)


def kernel_command_line(layout: Layout, mode: BootMode) -> str:
    """Returns the kernel parameters of a boot mode: the root, and the arguments of the resnap script."""
    group = layout.volume_group
    root = layout.root.name if mode is BootMode.MAINTAIN else layout.snapshot.name
    parameters = [
        f"root=/dev/mapper/{dm_name(group, root)}",
        "ro",
        f"volgroup={group}",
        f"lvroot={layout.root.name}",
        f"lvsnap={layout.snapshot.name}",
        f"lvsize={layout.snapshot.place.size_bytes // MIB}M",
        _growth(layout),
    ]
    return " ".join([*parameters, *(["resnap"] if mode is BootMode.RESNAP else []), *COMMON])


def _growth(layout: Layout) -> str:
    """Returns the parameter with which the initramfs grows the volumes of a larger disk (scripts/kimbox-grow).

    The size of the PV in sectors, then root, snapshot and `persistent` in extents: a larger PV gives each a share.
    """
    extents = (layout.root.extents, layout.snapshot.extents, layout.persistent.extents)
    numbers = (layout.pv.size_bytes // SECTOR_BYTES, *extents)
    return f"lvgrow={':'.join(map(str, numbers))}:{layout.persistent.name}"


#: Titles in GRUB's menu.
TITLES = {
    BootMode.RESNAP: "pristine: a new snapshot of root",
    BootMode.KEEP: "keep: the snapshot as it was left",
    BootMode.MAINTAIN: "maintain: root itself",
}


#: The boot mode of a box whose grubenv is damaged or has none: no data is lost by it.
DEFAULT = BootMode.KEEP


#: Path in /boot of the kernel of the real root. It fits a new snapshot, too.
ROOT_KERNEL = "/linux"

#: Path in /boot of the kernel of the snapshot in use. Without it, GRUB starts that of the real root.
KEEP_KERNEL = "/linux.keep"
KEEP_KERNEL_IF_ANY = f"  if [ -e {KEEP_KERNEL}/initrd.img ]; then set linux={KEEP_KERNEL}; fi"


def grub_cfg(layout: Layout) -> str:
    """Returns GRUB's menu: one entry for each boot mode. `saved_entry` of grubenv selects it, `next_entry` only once.

    If grubenv is damaged or has another entry, the box boots `DEFAULT`: it is the first entry, which GRUB then takes.

    linux16 starts the kernel as a BIOS boot loader does, at 1 MiB. Under emulation that is 1.5 s faster than `linux`,
    which first moves the kernel to the address to which it is unpacked.
    """
    lines = [
        "# Written by kimbox when the image was built. /usr/lib/kimbox/link-kernel changes the links in /boot.",
        "serial --unit=0 --speed=115200",
        "terminal_input console serial",
        "terminal_output console serial",
        f"set default={DEFAULT}",
        "set timeout=0",
        "load_env",
        'if [ -n "$saved_entry" ]; then set default="$saved_entry"; fi',
        'if [ -n "$next_entry" ]; then',
        '  set default="$next_entry"',
        "  set next_entry=",
        "  save_env next_entry",
        "fi",
    ]
    for mode in sorted(BootMode, key=lambda mode: mode is not DEFAULT):
        lines += [
            f'menuentry "{TITLES[mode]}" --id {mode} {{',
            f"  set linux={ROOT_KERNEL}",
            *([KEEP_KERNEL_IF_ANY] if mode is BootMode.KEEP else []),
            f"  linux16 $linux/vmlinuz {kernel_command_line(layout, mode)}",
            "  initrd16 $linux/initrd.img",
            "}",
        ]
    return "\n".join(lines) + "\n"


def fstab(layout: Layout) -> str:
    """Returns fstab. The kernel parameters select the device of root; the initramfs mounts /persistent and /boot."""
    group = layout.volume_group
    rows = [
        ("/dev/root", "/", "ext4", "noatime,errors=remount-ro", 0),
        (f"/dev/mapper/{dm_name(group, layout.persistent.name)}", "/persistent", "ext4", "noatime,noauto", 0),
        (f"LABEL={BOOT_LABEL}", "/boot", "ext4", "noatime,noauto", 0),
    ]
    if layout.swap:
        rows.append((f"/dev/mapper/{dm_name(group, layout.swap.name)}", "none", "swap", "sw,noauto", 0))
    return "".join(
        f"{device} {mount_point} {kind} {options} 0 {order}\n" for device, mount_point, kind, options, order in rows
    )
