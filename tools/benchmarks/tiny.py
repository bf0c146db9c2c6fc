"""The smallest guests: a few instructions that say one byte on the serial port.

Both are 64-bit ELF files with the note that names a 32-bit entry point (PVH), which mvm and QEMU both start.
"""

import os
import struct

from .vmms import DEBUG_EXIT_PORT

SAYS = b"!"

ENTRY = 0x100000
PAGE = 4096
HEADER_SIZE, PROGRAM_HEADER_SIZE = 64, 56
SEGMENT_LOAD, SEGMENT_NOTE = 1, 4
NOTE_PVH_ENTRY = 18

# 66: the 16-bit form of `mov dx`, in 32-bit code.
SAY = b"\x66\xba\xf8\x03\xb0" + SAYS + b"\xee"  # mov dx, 0x3f8; mov al, '!'; out dx, al
RESET = b"\xb0\xfe\xe6\x64"  # mov al, 0xfe; out 0x64, al: the keyboard controller's reset line
EXIT = b"\x66\xba" + struct.pack("<H", DEBUG_EXIT_PORT) + b"\xee"  # mov dx, PORT; out dx, al
HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt

FILLED, STEP = 1 << 30, 2 << 20
# mov edi, STEP; L: mov [edi], edi; add edi, STEP; cmp edi, FILLED; jb L: a word in each huge page but the first
FILL = b"\xbf" + struct.pack("<I", STEP) + b"\x89\x3f\x81\xc7" + struct.pack("<I", STEP)
FILL += b"\x81\xff" + struct.pack("<I", FILLED) + b"\x72\xf0"

FIRMWARE_SIZE = 64 << 10
# At the reset vector, in 16-bit code, where the prefix is not needed.
FIRMWARE = SAY[1:] + EXIT[1:] + HALT


def elf(code):
    note = struct.pack("<III", 4, 8, NOTE_PVH_ENTRY) + b"Xen\0" + struct.pack("<Q", ENTRY)
    notes_at = HEADER_SIZE + 2 * PROGRAM_HEADER_SIZE

    def segment(kind, flags, offset, address, size, align):
        return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, size, align)

    # 64 bits, little-endian, version 1; executable, x86-64.
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQI", 2, 62, 1, ENTRY, HEADER_SIZE, 0, 0)
    header += struct.pack("<HHHHHH", HEADER_SIZE, PROGRAM_HEADER_SIZE, 2, 0, 0, 0)
    header += segment(SEGMENT_LOAD, 5, PAGE, ENTRY, len(code), PAGE)
    header += segment(SEGMENT_NOTE, 4, notes_at, 0, len(note), 4)
    return (header + note).ljust(PAGE, b"\0") + code


def write(work):
    """Writes the guests into the directory `work`; returns the paths of those that end, idle, are firmware, are the bare code
    of the first, and that use all of a GiB."""
    contents = {
        "ends.elf": elf(SAY + RESET + EXIT + HALT),
        "idles.elf": elf(SAY + HALT),
        "ends.bin": bytes(FIRMWARE_SIZE - 16) + FIRMWARE.ljust(16, b"\0"),
        "ends.code": SAY + RESET + EXIT + HALT,
        "fills.elf": elf(FILL + SAY + HALT),
    }
    for name, content in contents.items():
        with open(os.path.join(work, name), "wb") as file:
            file.write(content)
    return [os.path.join(work, name) for name in contents]
