//! Virtio devices behind virtio-mmio, as a driver of a few instructions finds them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use instance::{Client, MetricsReport};
use kvm_ioctls::Cap;
use vmm::ExitReason;

use super::machine::Machine;

guest!(
    probe,
    "
        map_virtio
        mov ebp, 3
    2:
        // Magic number, version, device ID.
        mov eax, [rbx]
        put32
        mov eax, [rbx + 4]
        put32
        mov eax, [rbx + 8]
        put32
        add ebx, 0x1000
        dec ebp
        jnz 2b
        power_off
    "
);

#[test]
fn disks_come_first_then_the_entropy_device_then_nothing() {
    let Some(machine) = Machine::new(probe()) else { return };
    let numbers = machine.disk("disk", &[0; 512]).run().numbers();
    assert_eq!(numbers[..3], [0x7472_6976, 2, 2], "a disk");
    assert_eq!(numbers[3..6], [0x7472_6976, 2, 4], "an entropy device");
    assert_eq!(numbers[6..], [u32::MAX; 3], "nothing");
}

guest!(
    negotiates,
    "
        map_virtio
        // The upper half of the features that are offered.
        store 0x14, 1
        mov eax, [rbx + 0x10]
        put32
        // The largest size of queue 0, and of queue 7.
        mov eax, [rbx + 0x34]
        put32
        store 0x30, 7
        mov eax, [rbx + 0x34]
        put32
        // The size of the disk in its config space, read at once.
        mov rax, [rbx + 0x100]
        put64
        // FEATURES_OK is not taken from a driver that did not accept VERSION_1.
        store 0x70, 1
        store 0x70, 1 | 2
        store 0x70, 1 | 2 | 8
        mov eax, [rbx + 0x70]
        put32
        // From one that did, it is, and so is DRIVER_OK.
        start_device
        mov eax, [rbx + 0x70]
        put32
        power_off
    "
);

#[test]
fn a_driver_negotiates_by_the_registers() {
    let Some(machine) = Machine::new(negotiates()) else { return };
    let numbers = machine.disk("disk", &[0; 3 * 512]).run().numbers();
    let [features, size, no_size, rest @ ..] = numbers.as_slice() else { panic!("{numbers:?}") };
    assert_eq!(features & 1, 1, "VERSION_1 is offered");
    assert!(size.is_power_of_two() && *size >= 8, "{size}");
    assert_eq!(*no_size, 0, "there is no queue 7");
    assert_eq!(rest, [3, 0, 0b11, 0b1111], "sectors, then what the status was");
}

guest!(
    reads_and_writes,
    "
        map_virtio
        start_device
        // Type IN, sector 1: a header, the data, a status.
        mov qword ptr [0x33000], 0
        mov qword ptr [0x33008], 1
        mov byte ptr [0x35000], 0xff
        descriptor 0, 0x33000, 16, 1
        descriptor 1, 0x34000, 512, 1 | 2
        descriptor 2, 0x35000, 1, 2
        offer
        // The used ring comes first, the interrupt status last.
        await_used 1
        // Where the guest reads it itself, it says used buffers from DRIVER_OK on.
    4:
        pause
        test dword ptr [rbx + 0x60], 1
        jz 4b
        // Of the used ring flags and index, head, length; the interrupt status before and after it is
        // acknowledged.
        mov eax, [0x32000]
        put32
        mov rax, [0x32004]
        put64
        mov eax, [rbx + 0x60]
        put32
        store 0x64, 1
        mov eax, [rbx + 0x60]
        put32
        // The status, the data.
        mov al, [0x35000]
        put8
        mov esi, 0x34000
        mov ecx, 512
        send
        // Type OUT of the same data, sector 0.
        mov dword ptr [0x33000], 1
        mov dword ptr [0x33008], 0
        mov byte ptr [0x35000], 0xff
        descriptor 1, 0x34000, 512, 1
        mov word ptr [0x31006], 0
        mov word ptr [0x31002], 2
        store 0x50, 0
        await_used 2
        mov al, [0x35000]
        put8
        power_off
    "
);

#[test]
fn a_driver_reads_and_writes_sectors_of_a_disk() {
    let Some(machine) = Machine::new(reads_and_writes()) else { return };
    let second: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let machine = machine.disk("disk", &[&[0; 512][..], &second].concat());
    let disk = File::open(&machine.config.disks[0].path).unwrap();
    let output = machine.run().output();
    let (registers, data) = output.split_at(20);
    let registers: Vec<_> =
        registers.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
    let after = u32::from(has_read_only_memory());
    assert_eq!(registers, [1 << 16, 0, 513, 1, after], "used ring, interrupt status");
    assert_eq!(data, [&[0][..], &second, &[0]].concat(), "the status of either request is OK");
    let mut first = [0; 512];
    disk.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, *second);
}

/// Whether guests read the registers themselves on this host.
fn has_read_only_memory() -> bool {
    vmm::open_kvm().unwrap().check_extension(Cap::ReadonlyMem)
}

guest!(
    handles_an_interrupt,
    "
        map_virtio
        start_device
        say 'r'
        // The rounds of a driver that is interrupted for used buffers, and looks at whatever else there is to read.
    2:
        mov ecx, 1000
    3:
        mov eax, [rbx + 0x60]
        store 0x64, 1
        mov eax, [rbx]
        mov eax, [rbx + 0x70]
        mov eax, [rbx + 0xfc]
        mov eax, [rbx + 0x100]
        dec ecx
        jnz 3b
        say 'd'
        jmp 2b
    "
);

#[test]
fn an_interrupt_is_read_and_acknowledged_without_an_exit() {
    let Some(machine) = Machine::new(handles_an_interrupt()) else { return };
    if !has_read_only_memory() {
        let _ = writeln!(io::stderr(), "skipped: this KVM lacks KVM_CAP_READONLY_MEM");
        return;
    }
    let mut running = machine.controlled().run_until_ready();
    let mut client = Client::connect(&running.control_socket()).unwrap();
    let mut exits = |kind: &str| {
        let report: MetricsReport = client.get("/metrics.json").unwrap();
        report.counters["vcpu"]["0"][kind]
    };
    let before = ["mmio_read_exits", "mmio_write_exits"].map(&mut exits);
    for _ in 0..3 {
        running.wait_until_ready();
    }
    assert_eq!(["mmio_read_exits", "mmio_write_exits"].map(&mut exits), before);
    assert_eq!(before[0], 0, "no register was read by an exit");
    running.force(libc::SIGKILL);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGKILL));
}

guest!(
    changes_what_it_reads,
    "
        map_virtio
        // Each register that a write to another one changes.
        store 0x14, 1
        mov eax, [rbx + 0x10]
        put32
        store 0x14, 2
        mov eax, [rbx + 0x10]
        put32
        start_device
        mov eax, [rbx + 0x44]
        put32
        store 0x30, 9
        mov eax, [rbx + 0x44]
        put32
        // An acknowledgement with the bit for the config space reaches the device, whatever else it has.
        store 0x64, 3
        mov eax, [rbx + 0x60]
        and eax, 2
        put32
        store 0x70, 0
        mov eax, [rbx + 0x60]
        put32
        mov eax, [rbx + 0x70]
        put32
        // A write does not change what is only for reading.
        store 0x00, 7
        mov eax, [rbx]
        put32
        power_off
    "
);

#[test]
fn what_a_driver_writes_changes_what_it_reads_next() {
    let Some(machine) = Machine::new(changes_what_it_reads()) else { return };
    assert_eq!(machine.run().numbers(), [1, 0, 1, 0, 0, 0, 0, 0x7472_6976]);
}

guest!(
    gathers_entropy,
    "
        take_interrupt {GSI}, 3f
        mov ebx, {VIRTIO}
        start_device
        // 48 bytes of 64 that are zero.
        descriptor 0, 0x34000, 48, 2
        sti
        offer
    2:
        hlt
        jmp 2b
    3:
        // The interrupt status, the used ring's index, head and length, the data.
        mov eax, [rbx + 0x60]
        put32
        mov eax, [0x32000]
        put32
        mov rax, [0x32004]
        put64
        mov esi, 0x34000
        mov ecx, 64
        send
        power_off
    ",
    GSI = vmm::layout::VIRTIO_GSIS[0]
);

#[test]
fn the_entropy_devices_interrupt_wakes_a_driver_that_waits_for_random_bytes() {
    let Some(machine) = Machine::new(gathers_entropy()) else { return };
    let numbers = machine.run().numbers();
    assert_eq!(numbers[..4], [1, 1 << 16, 0, 48], "interrupt status, used ring");
    let (random, untouched) = numbers[4..].split_at(12);
    assert!(random.iter().all(|number| *number != 0), "48 bytes have no 4 zeros in a row: {random:x?}");
    assert_eq!(untouched, [0; 4]);
}

guest!(
    breaks_a_rule,
    "
        map_virtio
        start_device
        // A chain that ends with itself.
        mov qword ptr [0x30000], 0x34000
        mov dword ptr [0x30008], 16
        mov dword ptr [0x3000c], 3
        offer
    2:
        pause
        test dword ptr [rbx + 0x70], 0x40
        jz 2b
        mov eax, [rbx + 0x70]
        put32
        // A reset repairs it.
        store 0x70, 0
        mov eax, [rbx + 0x70]
        put32
        power_off
    "
);

#[test]
fn a_driver_that_breaks_a_rule_is_told_to_reset_the_device() {
    let Some(machine) = Machine::new(breaks_a_rule()) else { return };
    assert_eq!(machine.run().numbers(), [0x4f, 0]);
}

guest!(
    reads_far_too_much,
    "
        map_virtio
        start_device
        // Type IN, sector 0, into the same MiB 126 times, by an indirect table at 0x60000.
        mov qword ptr [0x33000], 0
        mov qword ptr [0x33008], 0
        mov byte ptr [0x35000], 0xff
        mov qword ptr [0x60000], 0x33000
        mov dword ptr [0x60008], 16
        mov dword ptr [0x6000c], 1 | 1 << 16
        mov ecx, 1
        mov edi, 0x60010
    5:
        mov qword ptr [rdi], 0x400000
        mov dword ptr [rdi + 8], 0x100000
        lea eax, [ecx + 1]
        shl eax, 16
        or eax, 1 | 2
        mov [rdi + 12], eax
        add edi, 16
        inc ecx
        cmp ecx, 127
        jb 5b
        mov qword ptr [rdi], 0x35000
        mov dword ptr [rdi + 8], 1
        mov dword ptr [rdi + 12], 2
        descriptor 0, 0x60000, 128 * 16, 4
        offer
        await_used 1
        // The status of the request, the device status.
        mov al, [0x35000]
        put8
        mov al, [rbx + 0x70]
        put8
        power_off
    "
);

#[test]
fn a_request_of_more_than_the_disk_takes_at_once_is_an_error() {
    let Some(machine) = Machine::new(reads_far_too_much()) else { return };
    assert_eq!(machine.disk("disk", &vec![7; 128 << 20]).run().output(), [1, 0xf]);
}

guest!(
    walks_empty_descriptors,
    "
        map_virtio
        start_device
        // GET_ID with 4000 descriptors of no length between header and status.
        mov qword ptr [0x33000], 8
        mov qword ptr [0x33008], 0
        mov edi, 0x60000
        mov qword ptr [rdi], 0x33000
        mov dword ptr [rdi + 8], 16
        mov dword ptr [rdi + 12], 1 | 1 << 16
        mov ecx, 1
    5:
        add edi, 16
        mov qword ptr [rdi], 0
        mov dword ptr [rdi + 8], 0
        lea eax, [ecx + 1]
        shl eax, 16
        or eax, 1
        mov [rdi + 12], eax
        inc ecx
        cmp ecx, 4001
        jb 5b
        add edi, 16
        mov qword ptr [rdi], 0x35000
        mov dword ptr [rdi + 8], 21
        mov dword ptr [rdi + 12], 2
        descriptor 0, 0x60000, 4002 * 16, 4
        offer
    2:
        pause
        test dword ptr [rbx + 0x70], 0x40
        jz 2b
        mov eax, [rbx + 0x70]
        put32
        power_off
    "
);

#[test]
fn descriptors_without_a_length_count_like_all_others() {
    let Some(machine) = Machine::new(walks_empty_descriptors()) else { return };
    assert_eq!(machine.disk("disk", &[0; 512]).run().numbers(), [0x4f]);
}
