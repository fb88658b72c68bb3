"""The files of a guest that depend on its spec: grub.cfg, fstab, hostname. Pure; names are quoted, never logic."""

from __future__ import annotations

from kimbox.spec.layout import MIB, Layout, dm_name
from kimbox.spec.model import BootMode

#: File system labels, by which the guest finds what is no LV.
BOOT_LABEL = "kimbox-boot"

#: Kernel words of every boot. `quiet` leaves errors on the console; plain interface names; a
#: panic restarts the box after 5 s; the security modules of
#: Debian's kernel but BPF, for which systemd would compile a program at every start (a second under emulation).
COMMON = (
    "quiet",
    "console=tty0",
    "console=ttyS0,115200",
    "net.ifnames=0",
    "panic=5",
    "lsm=landlock,lockdown,yama,loadpin,safesetid,integrity,apparmor",
)


def kernel_command_line(layout: Layout, mode: BootMode) -> str:
    """The words after the kernel for a boot mode: which root, and what the resnap script has to know."""
    group = layout.volume_group
    root = layout.root.name if mode is BootMode.MAINTAIN else layout.snapshot.name
    words = [
        f"root=/dev/mapper/{dm_name(group, root)}",
        "ro",
        f"volgroup={group}",
        f"lvroot={layout.root.name}",
        f"lvsnap={layout.snapshot.name}",
        f"lvsize={layout.snapshot.place.size_bytes // MIB}M",
    ]
    return " ".join([*words, *(["resnap"] if mode is BootMode.RESNAP else []), *COMMON])


TITLES = {
    BootMode.RESNAP: "pristine: a new snapshot of root",
    BootMode.KEEP: "keep: the snapshot as it was left",
    BootMode.MAINTAIN: "maintain: root itself",
}


#: What a box boots whose grubenv does not say: it loses nothing.
DEFAULT = BootMode.KEEP


def grub_cfg(layout: Layout) -> str:
    """GRUB's menu: one entry a boot mode. grubenv's `saved_entry` chooses, `next_entry` does so once.

    Where grubenv is damaged, or names no entry of the menu (GRUB then takes the first), the box boots `DEFAULT`.

    linux16 enters the kernel as a BIOS boot loader does, at 1 MiB: under emulation it is running a second and a half
    sooner than after `linux`, which moves it to where it is unpacked to.
    """
    lines = [
        "# Written by kimbox when the image was built; /boot/linux follows the kernel.",
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
            f"  linux16 /linux/vmlinuz {kernel_command_line(layout, mode)}",
            "  initrd16 /linux/initrd.img",
            "}",
        ]
    return "\n".join(lines) + "\n"


def fstab(layout: Layout) -> str:
    """Mounts. The root's device is the kernel's business; the initramfs mounts /persistent and /boot."""
    group = layout.volume_group
    rows = [
        ("/dev/root", "/", "ext4", "noatime,errors=remount-ro", 0),
        (f"/dev/mapper/{dm_name(group, layout.persistent.name)}", "/persistent", "ext4", "noatime,noauto", 0),
        (f"LABEL={BOOT_LABEL}", "/boot", "ext4", "noatime,noauto", 0),
    ]
    if layout.swap:
        rows.append((f"/dev/mapper/{dm_name(group, layout.swap.name)}", "none", "swap", "sw,noauto", 0))
    return "".join(f"{device} {where} {kind} {options} 0 {order}\n" for device, where, kind, options, order in rows)
