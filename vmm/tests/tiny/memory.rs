//! Where there is memory, and where there is none.

use std::os::unix::fs::FileExt;

use vmm::MemorySize;

use super::image::{self, Entry};
use super::machine::Machine;

guest!(
    edges,
    "
        // The last four bytes of 128 MiB, and the first ones behind them, which take no write.
        mov ebx, 128 << 20
        mov eax, 0x12345678
        mov [rbx - 4], eax
        mov [rbx], eax
        mov eax, [rbx - 4]
        put32
        mov eax, [rbx]
        put32
        movzx eax, byte ptr [rbx]
        put32
        power_off
    "
);

#[test]
fn ram_goes_to_its_last_byte_and_behind_it_all_bits_are_ones() {
    let Some(machine) = Machine::new(edges()) else { return };
    assert_eq!(machine.run().numbers(), [0x1234_5678, u32::MAX, 0xff]);
}

guest!(
    beyond_the_hole,
    "
        map_gib 2, 0x12000
        map_gib 3, 0x13000
        map_gib 4, 0x14000
        // The last bytes below the hole, and the last ones beyond it.
        mov ebx, 0xc0000000
        mov dword ptr [rbx - 4], 0x11111111
        movabs rbp, 0x120000000
        mov dword ptr [rbp - 4], 0x22222222
        mov eax, [rbx - 4]
        put32
        mov eax, [rbp - 4]
        put32
        // The first ones of either hole.
        mov eax, [rbx]
        put32
        mov eax, [rbp]
        put32
        power_off
    "
);

#[test]
fn ram_that_the_hole_displaces_is_beyond_4_gib() {
    let Some(mut machine) = Machine::new(beyond_the_hole()) else { return };
    machine.config.memory = MemorySize::from_mib(3584);
    assert_eq!(machine.run().numbers(), [0x1111_1111, 0x2222_2222, u32::MAX, u32::MAX]);
}

guest!(
    changes_itself,
    "
        mov byte ptr [rip + 2f + 1], 'b'
        // A processor may run what was there before until an instruction that serializes (Intel SDM volume
        // 3A, 8.1.3).
        xor eax, eax
        cpuid
    2:
        mov al, 'a'
        put8
        power_off
    "
);

#[test]
fn what_a_guest_writes_over_its_kernel_does_not_reach_the_kernels_file() {
    let Some(machine) = Machine::new(changes_itself()) else { return };
    let kernel = std::fs::File::open(&machine.config.kernel).unwrap();
    assert_eq!(machine.run().output(), b"b");
    let expected = image::elf(changes_itself(), Entry::Linux64);
    let mut file = vec![0; expected.len()];
    kernel.read_exact_at(&mut file, 0).unwrap();
    assert_eq!(file, expected);
}
