"""The guest of the probe of an accelerator: one boot sector, which does what the kernel of a real guest does first.

It changes from real mode to long mode, and there runs a loop in kernel mode (CPL 0), with an instruction of BMI2 if the
processor has it, as the kernel's decompressor does. A KVM without the support of the processor emulates kernel mode
instruction by instruction: firmware and boot loader then run, slowly, and the kernel does not.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3, 9.8.5 (IA-32e mode); QEMU's device
isa-debug-exit.
"""

from __future__ import annotations

#: Size of the disk of the probe, in bytes. SeaBIOS does not boot from a virtio disk of a single sector.
DISK_BYTES = 1 << 20

#: Size of a boot sector, in bytes, and its last two.
SECTOR_BYTES = 512
SIGNATURE = b"\x55\xaa"

#: I/O port of QEMU's device isa-debug-exit, and what the guest writes to it at its end.
EXIT_PORT = 0x501
EXIT_VALUE = 0x2A

#: The device ends QEMU with this exit status for the value written.
EXIT_STATUS = (EXIT_VALUE << 1) | 1

#: Iterations of the loop: 0.05 s with the support of a processor, 0.5 s with TCG.
ITERATIONS = 1 << 27

#: Real mode, from 0x7c00, where the firmware loads the boot sector. Writes page tables that map the first 2 MiB to
#: themselves, and changes to long mode.
_TO_LONG_MODE = bytes.fromhex(
    "fa fc 6631c0 8ed8 8ec0"  # cli; cld; xor eax, eax; mov ds, ax; mov es, ax
    "bf0010 b9000c 66f3ab"  # mov di, 0x1000; mov cx, 3 * 4096 / 4; rep stosd
    "c70600100320"  # mov word [0x1000], 0x2003: level 4
    "c70600200330"  # mov word [0x2000], 0x3003: level 3
    "c606003083"  # mov byte [0x3000], 0x83: level 2, a page of 2 MiB
    "b020 0f22e0"  # mov al, 0x20; mov cr4, eax: PAE
    "b80010 0f22d8"  # mov ax, 0x1000; mov cr3, eax
    "66b9800000c0 0f32 80cc01 0f30"  # mov ecx, 0xc0000080; rdmsr; or ah, 1; wrmsr: EFER.LME
    "0f0116 627c"  # lgdt [0x7c62]
    "0f20c0 660d01000080 0f22c0"  # mov eax, cr0; or eax, 0x80000001; mov cr0, eax: PG and PE
    "ea 687c 0800"  # jmp 8:0x7c68
    "90"
)

#: The global descriptor table, from 0x7c52: nothing, and code of 64 bits. Then the operand of `lgdt`, at 0x7c62.
_TABLE = bytes(8) + bytes.fromhex("0000 0000 009a 2000") + bytes.fromhex("0f00 527c0000")

#: Long mode, from 0x7c68. The loop, and the end of QEMU.
_LOOP = (
    bytes.fromhex("31c0 0fa2 be")  # xor eax, eax; cpuid; mov esi, ITERATIONS
    + ITERATIONS.to_bytes(4, "little")
    + bytes.fromhex(
        "83f807 7218"  # cmp eax, 7; jb plain
        "b807000000 31c9 0fa2 0fbae308 7309"  # mov eax, 7; xor ecx, ecx; cpuid; bt ebx, 8 (BMI2); jnc plain
        "c4e249f7c3 ffce 75f7"  # bmi2: shlx eax, ebx, esi; dec esi; jnz bmi2
        "ffce 7ffc"  # plain: dec esi; jg plain
        "66ba"  # mov dx, EXIT_PORT
    )
    + EXIT_PORT.to_bytes(2, "little")
    + b"\xb0"  # mov al, EXIT_VALUE
    + bytes([EXIT_VALUE])
    + bytes.fromhex("ee f4 ebfd")  # out dx, al; hlt; jmp to the hlt
)

#: The program of the guest.
PROGRAM = _TO_LONG_MODE + _TABLE + _LOOP


def disk() -> bytes:
    """Returns the content of the disk from which the guest boots."""
    sector = PROGRAM.ljust(SECTOR_BYTES - len(SIGNATURE), b"\0") + SIGNATURE
    return sector.ljust(DISK_BYTES, b"\0")
