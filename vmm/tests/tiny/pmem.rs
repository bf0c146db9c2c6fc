//! Persistent memory, as a guest finds it in its physical memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use super::machine::Machine;
use devices::virtio::pmem::PmemMode;
use vmm::ExitReason;

/// With 128 MiB of RAM, the first file is here.
const PMEM: u64 = 4 << 30;
const SIZE: usize = 2 << 20;

/// Recognizable content: each 32 bits are their own place.
fn content() -> Vec<u8> {
    (0..SIZE).step_by(4).flat_map(|at| u32::try_from(at).unwrap().to_le_bytes()).collect()
}

/// The file of a machine's only persistent memory, which outlives the machine's directory.
fn file_of(machine: &Machine) -> File {
    File::open(&machine.config.pmem[0].path).unwrap()
}

fn word(file: &File, offset: u64) -> u32 {
    let mut word = [0; 4];
    file.read_exact_at(&mut word, offset).unwrap();
    u32::from_le_bytes(word)
}

guest!(
    uses_pmem,
    "
        map_virtio
        map_gib 4, 0x14000
        // Device ID, start, size.
        mov eax, [rbx + 8]
        put32
        mov rax, [rbx + 0x100]
        put64
        mov rax, [rbx + 0x108]
        put64
        // The last word of the second page, before and after a write; the last one of all.
        movabs rbp, {PMEM}
        mov eax, [rbp + 0x1ffc]
        put32
        mov dword ptr [rbp + 0x1ffc], 0x12345678
        mov eax, [rbp + 0x1ffc]
        put32
        mov eax, [rbp + 0x1ffffc]
        put32
        // A flush.
        start_device
        mov dword ptr [0x33000], 0
        mov dword ptr [0x34000], 0xffffffff
        descriptor 0, 0x33000, 4, 1
        descriptor 1, 0x34000, 4, 2
        offer
        await_used 1
        mov eax, [0x34000]
        put32
        // What is behind the file.
        mov eax, [rbp + 0x200000]
        put32
        power_off
    ",
    PMEM = PMEM
);

fn use_pmem(mode: PmemMode, after_write: u32, in_file: u32) {
    let Some(machine) = Machine::new(uses_pmem()) else { return };
    let machine = machine.pmem("pmem", mode, &content());
    let file = file_of(&machine);
    let numbers = machine.run().numbers();
    assert_eq!(numbers[..5], [27, 0, 1, 0x20_0000, 0], "{mode:?}: the ID, start and size");
    assert_eq!(numbers[5..8], [0x1ffc, after_write, 0x1f_fffc], "{mode:?}: the content");
    assert_eq!(numbers[8..], [0, u32::MAX], "{mode:?}: the flush, and nothing behind");
    assert_eq!(word(&file, 0x1ffc), in_file, "{mode:?}");
}

#[test]
fn what_a_guest_writes_to_shared_pmem_is_in_the_file() {
    use_pmem(PmemMode::Shared, 0x1234_5678, 0x1234_5678);
}

#[test]
fn read_only_pmem_takes_no_write() {
    use_pmem(PmemMode::ReadOnly, 0x1ffc, 0x1ffc);
}

#[test]
fn what_a_guest_writes_to_copy_on_write_pmem_is_not_in_the_file() {
    use_pmem(PmemMode::CopyOnWrite, 0x1234_5678, 0x1ffc);
}

guest!(
    reads_a_sector_into_pmem,
    "
        map_virtio
        map_gib 4, 0x14000
        start_device
        mov qword ptr [0x33000], 0
        mov qword ptr [0x33008], 0
        mov byte ptr [0x35000], 0xff
        descriptor 0, 0x33000, 16, 1
        mov rax, {PMEM} + 0x1000
        mov qword ptr [0x30010], rax
        mov dword ptr [0x30018], 512
        mov dword ptr [0x3001c], 3 | 2 << 16
        descriptor 2, 0x35000, 1, 2
        offer
        await_used 1
        movzx eax, byte ptr [0x35000]
        put32
        movabs rbp, {PMEM}
        mov eax, [rbp + 0x1004]
        put32
        // The device lives: the same into RAM.
        mov qword ptr [0x30010], 0x36000
        mov byte ptr [0x35000], 0xff
        mov word ptr [0x31006], 0
        mov word ptr [0x31002], 2
        store 0x50, 0
        await_used 2
        movzx eax, byte ptr [0x35000]
        put32
        mov eax, [0x36004]
        put32
        power_off
    ",
    PMEM = PMEM
);

/// Programs that map files of a DAX file system and give them to direct I/O do this.
fn read_a_sector(mode: PmemMode, expected: [u32; 2], in_file: u32) {
    let Some(machine) = Machine::new(reads_a_sector_into_pmem()) else { return };
    let machine = machine.disk("disk", &[0xab; 512]).pmem("pmem", mode, &content());
    let file = file_of(&machine);
    assert_eq!(machine.run().numbers(), [expected[0], expected[1], 0, 0xabab_abab], "{mode:?}");
    assert_eq!(word(&file, 0x1004), in_file, "{mode:?}");
}

#[test]
fn a_disk_reads_into_pmem_that_can_be_written() {
    read_a_sector(PmemMode::Shared, [0, 0xabab_abab], 0xabab_abab);
    read_a_sector(PmemMode::CopyOnWrite, [0, 0xabab_abab], 0x1004);
}

#[test]
fn a_disk_cannot_read_into_read_only_pmem_and_says_so() {
    read_a_sector(PmemMode::ReadOnly, [1, 0x1004], 0x1004);
}

guest!(
    waits_for_ever,
    "
        map_gib 4, 0x14000
        movabs rbp, {PMEM}
        mov eax, [rbp]
        say '!'
    2:
        pause
        jmp 2b
    ",
    PMEM = PMEM
);

#[test]
fn a_file_that_is_cut_off_ends_the_vm_and_one_that_is_written_does_not() {
    let Some(machine) = Machine::new(waits_for_ever()) else { return };
    let machine = machine.pmem("pmem", PmemMode::Shared, &content());
    let file = OpenOptions::new().write(true).open(&machine.config.pmem[0].path).unwrap();
    let running = machine.run_until_ready();
    file.write_all_at(&[1], 0).unwrap();
    file.set_len(4096).unwrap();
    let (reason, _) = running.wait();
    assert_eq!(reason, ExitReason::MemoryCutOff);
}
