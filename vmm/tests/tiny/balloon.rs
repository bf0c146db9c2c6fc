//! The memory balloon, from the hand that asks for it to the page that the guest loses.

use std::time::Instant;

use instance::Client;
use instance::api::{BalloonStatistics, BalloonUpdate};
use vmm::ExitReason;

use super::machine::{Machine, WATCHDOG};

guest!(
    inflates,
    "
        map_virtio
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
        await_used 1
        mov eax, [0x40000]
        put32
        mov eax, [0x41000]
        put32
        power_off
    "
);

#[test]
fn a_guest_is_told_of_its_balloons_target_and_gives_a_page() {
    let Some(mut machine) = Machine::new(inflates()) else { return };
    machine.config.balloon = true;
    let running = machine.controlled().run_with_pipe(false);
    let mut client = Client::connect(&running.control_socket()).unwrap();
    let deadline = Instant::now() + WATCHDOG;
    // The guest has one page in the balloon before it looks at the target.
    while client.get::<BalloonStatistics>("/balloon/statistics").unwrap().actual_pages != 1 {
        assert!(Instant::now() < deadline, "the driver never was ready");
    }
    client.send("PATCH", "/balloon", &BalloonUpdate { amount_mib: 32 }).unwrap();
    let (reason, console) = running.wait();
    assert_eq!(reason, ExitReason::PowerOff);
    let numbers: Vec<_> =
        console.chunks(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(numbers, [5, 0, 32 << 8, 0, 0x2222_2222]);
}
