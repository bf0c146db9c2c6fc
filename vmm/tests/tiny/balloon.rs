//! The memory balloon, from the hand that asks for it to the page that the guest loses.

use std::time::{Duration, Instant};

use vmm::BalloonHandle;

use super::machine::Machine;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

guest!(
    inflates,
    "
        map_gib 3, 0x12000
        mov ebx, {VIRTIO}
        store 0x70, 1
        store 0x70, 1 | 2
        store 0x24, 1
        store 0x20, 1
        store 0x70, 1 | 2 | 8
        // The inflate queue at 0x30000, the deflate queue at 0x38000.
        mov esi, 0x30000
        xor ebp, ebp
    2:
        mov [rbx + 0x30], ebp
        store 0x38, 8
        store 0x84, 0
        store 0x94, 0
        store 0xa4, 0
        mov eax, esi
        mov [rbx + 0x80], eax
        add eax, 0x1000
        mov [rbx + 0x90], eax
        add eax, 0x1000
        mov [rbx + 0xa0], eax
        store 0x44, 1
        add esi, 0x8000
        inc ebp
        cmp ebp, 2
        jne 2b
        store 0x70, 1 | 2 | 4 | 8
        // The device ID, the target; then an actual size of one page says that the guest is ready.
        mov eax, [rbx + 8]
        put32
        mov eax, [rbx + 0x100]
        put32
        store 0x104, 1
        // The config space changes, and the interrupt status says so.
    3:
        pause
        test dword ptr [rbx + 0x60], 2
        jz 3b
        store 0x64, 2
        mov eax, [rbx + 0x100]
        put32
        // One page goes, and its neighbour stays.
        mov dword ptr [0x40000], 0x11111111
        mov dword ptr [0x41000], 0x22222222
        mov dword ptr [0x33000], 0x40
        descriptor 0, 0x33000, 4, 0
        offer
    4:
        pause
        test dword ptr [rbx + 0x60], 1
        jz 4b
        mov eax, [0x40000]
        put32
        mov eax, [0x41000]
        put32
        power_off
    ",
    VIRTIO = vmm::arch::current::layout::VIRTIO_MMIO
);

#[test]
fn a_guest_is_told_of_its_balloons_target_and_gives_a_page() {
    let Some(mut machine) = Machine::new(inflates()) else { return };
    machine.config.balloon = true;
    let ended = machine.run_with(|vm| {
        let balloon = vm.balloon().expect("the VM has a balloon");
        std::thread::spawn(move || control(&balloon));
    });
    assert_eq!(ended.numbers(), [5, 0, 32 << 8, 0, 0x2222_2222]);
}

fn control(balloon: &BalloonHandle) {
    assert_eq!(balloon.largest_target(), 64 * MIB);
    let deadline = Instant::now() + Duration::from_secs(60);
    while balloon.actual() != PAGE {
        assert!(Instant::now() < deadline, "the driver never was ready");
        std::thread::yield_now();
    }
    balloon.set_target(32 * MIB).unwrap();
}
