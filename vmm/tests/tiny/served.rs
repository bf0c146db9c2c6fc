//! Guests with a device that another process serves.

/// A guest that starts its file system, the device whose ID is 26, so many times. Its first queue gets a FUSE request
/// then: a header, and room for the header of an answer.
macro_rules! asks {
    ($name:ident, $starts:expr) => {
        guest!(
            $name,
            "
                map_virtio
            2:
                cmp dword ptr [rbx + 8], 26
                je 3f
                add ebx, 0x1000
                jmp 2b
            3:
                mov ecx, {STARTS}
            4:
                start_device
                dec ecx
                jnz 4b
                mov qword ptr [0x33008], 7
                descriptor 0, 0x33000, 40, 1
                descriptor 1, 0x34000, 64, 2
                offer
                say 'r'
                await_used 1
                // The error of the answer.
                mov eax, [0x34004]
                put32
                power_off
            ",
            STARTS = $starts,
        );
    };
}

asks!(starts_once, 1);
asks!(starts_twice, 2);

/// Says `r` once it has started its shared folder and asked it for something, then the error that it got, and powers
/// off.
pub(crate) fn asking() -> &'static [u8] {
    starts_once()
}

/// The same after it has reset the device and started it again.
pub(crate) fn restarting() -> &'static [u8] {
    starts_twice()
}
