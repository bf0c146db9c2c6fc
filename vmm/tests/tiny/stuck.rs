//! Guests that keep their devices from ending in time.

guest!(
    resets_entropy,
    "
        map_virtio
        say 'r'
    2:
        start_device
        store 0x70, 0
        jmp 2b
    "
);

guest!(
    reads_and_resets,
    "
        map_virtio
        say 'r'
    2:
        start_device
        descriptor 0, 0x33000, 16, 1
        descriptor 1, 0x34000, 512, 1 | 2
        descriptor 2, 0x35000, 1, 2
        offer
        // The disk's thread takes the request meanwhile, or in a later round.
        mov ecx, 100000
    3:
        dec ecx
        jnz 3b
        store 0x70, 0
        jmp 2b
    "
);

guest!(
    reads_of_four,
    "
        map_virtio
        mov ebp, 4
        descriptor 0, 0x33000, 16, 1
        descriptor 1, 0x34000, 512, 1 | 2
        descriptor 2, 0x35000, 1, 2
    2:
        start_device
        offer
        add ebx, 0x1000
        dec ebp
        jnz 2b
        say 'r'
        // Opens the port, as mvm keeps input until then, and waits for a character.
        write_port {COM1} + 4, 1
        write_port {COM1} + 1, 1
    3:
        mov dx, {COM1} + 5
        in al, dx
        test al, 1
        jz 3b
        power_off
    "
);

/// Says `r`, and activates and resets its first device without end.
pub(crate) fn resetting() -> &'static [u8] {
    resets_entropy()
}

/// Says `r`, and reads the first sector of its first disk and resets the disk without end.
pub(crate) fn reading_and_resetting() -> &'static [u8] {
    reads_and_resets()
}

/// Reads the first sector of each of its four disks, says `r`, and powers off when a character comes.
pub(crate) fn reading_four_disks() -> &'static [u8] {
    reads_of_four()
}
