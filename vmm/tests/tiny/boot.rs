//! What a guest finds when it is entered.

use vmm::MemorySize;

use super::machine::{Ended, Machine};

guest!(
    linux_64,
    "
        // boot_params: the magic number of the setup header, the arguments to their end.
        mov eax, [rsi + 0x202]
        put32
        mov ebx, [rsi + 0x228]
    2:
        mov al, [rbx]
        put8
        inc ebx
        test al, al
        jnz 2b
        // The root pointer of ACPI, its signature.
        mov rbx, [rsi + 0x70]
        mov rax, [rbx]
        put64
        // The initrd.
        mov ecx, [rsi + 0x21c]
        mov esi, [rsi + 0x218]
        send
        power_off
    "
);

#[test]
fn a_64_bit_guest_finds_arguments_initrd_and_acpi_in_the_zero_page() {
    let Some(mut machine) = Machine::new(linux_64()) else { return };
    machine.config.initrd = Some(machine.file("initrd", b"an initrd"));
    machine.config.append = Some("tiny".into());
    assert_eq!(machine.run().output(), b"HdrSconsole=ttyS0 panic=-1 tiny\0RSD PTR an initrd");
}

guest!(
    pvh,
    "
        .code32
        // hvm_start_info: its magic number and version, the arguments to their end.
        mov eax, [ebx]
        put32
        mov eax, [ebx + 4]
        put32
        mov esi, [ebx + 24]
    2:
        lodsb
        put8
        test al, al
        jnz 2b
        // The first module; its address, its size.
        mov ebp, [ebx + 16]
        mov esi, [ebp]
        mov ecx, [ebp + 8]
        send
        // The root pointer of ACPI, its signature.
        mov esi, [ebx + 32]
        mov ecx, 8
        send
        // Paging is off.
        mov eax, cr0
        shr eax, 31
        put8
        power_off
    "
);

#[test]
fn a_pvh_guest_finds_arguments_initrd_and_acpi_in_its_start_info() {
    let Some(mut machine) = Machine::pvh(pvh()) else { return };
    machine.config.initrd = Some(machine.file("initrd", b"an initrd"));
    machine.config.cmdline = Some("only=this".into());
    let expected = b"\x78\xc5\x6e\x33\x01\0\0\0only=this\0an initrdRSD PTR \0";
    assert_eq!(machine.run().output(), expected);
}

guest!(
    linux_64_map,
    "
        // The E820 map of the zero page; entries of 20 bytes.
        movzx ecx, byte ptr [rsi + 0x1e8]
        imul ecx, ecx, 20
        add rsi, 0x2d0
        send
        power_off
    "
);

guest!(
    pvh_map,
    "
        .code32
        // The memory map of hvm_start_info; entries of 24 bytes, of which the last 4 are reserved.
        mov ebp, [ebx + 48]
        mov esi, [ebx + 40]
    2:
        mov ecx, 20
        send
        add esi, 4
        dec ebp
        jnz 2b
        power_off
    "
);

/// Start, length and kind of the entries that a guest copied out.
fn memory_map(ended: Ended) -> Vec<(u64, u64, u32)> {
    let output = ended.output();
    let entries = output.chunks(20).map(|entry| {
        let field = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
        (field(0), field(8), u32::from_le_bytes(entry[16..].try_into().unwrap()))
    });
    entries.collect()
}

const LOW: [(u64, u64, u32); 4] =
    [(0, 0x9_fc00, 1), (0x9_fc00, 0x4_0400, 2), (0xe_0000, 0x1_d000, 3), (0xf_d000, 0x3000, 2)];

#[test]
fn both_kinds_of_guest_are_told_of_ram_below_the_hole() {
    let expected = [&LOW[..], &[(0x10_0000, 127 << 20, 1)]].concat();
    let Some(machine) = Machine::new(linux_64_map()) else { return };
    assert_eq!(memory_map(machine.run()), expected);
    let Some(machine) = Machine::pvh(pvh_map()) else { return };
    assert_eq!(memory_map(machine.run()), expected);
}

#[test]
fn both_kinds_of_guest_are_told_of_ram_beyond_the_hole() {
    let expected = [&LOW[..], &[(0x10_0000, 0xbff0_0000, 1), (1 << 32, 512 << 20, 1)]].concat();
    let memory = MemorySize::from_mib(3584);
    let Some(mut machine) = Machine::new(linux_64_map()) else { return };
    machine.config.memory = memory;
    assert_eq!(memory_map(machine.run()), expected);
    let Some(mut machine) = Machine::pvh(pvh_map()) else { return };
    machine.config.memory = memory;
    assert_eq!(memory_map(machine.run()), expected);
}
