//! The socket device (vsock), as a hostile driver uses it.

use std::io::Write;
use std::os::unix::net::UnixListener;

use devices::virtio::pmem::PmemMode;
use vmm::{ExitReason, VsockConfig};

use super::machine::Machine;

guest!(
    receives_into_pmem,
    "
        .macro queue index, base
            store 0x30, \\index
            store 0x38, 8
            store 0x80, \\base
            store 0x84, 0
            store 0x90, \\base + 0x1000
            store 0x94, 0
            store 0xa0, \\base + 0x2000
            store 0xa4, 0
            store 0x44, 1
        .endm
        .macro buffer base, index, address, length, flags
            movabs rax, \\address
            mov [\\base + \\index * 16], rax
            mov dword ptr [\\base + \\index * 16 + 8], \\length
            mov dword ptr [\\base + \\index * 16 + 12], \\flags
        .endm
        map_virtio
        accept_version_1
        queue 0, 0x40000
        queue 1, 0x50000
        store 0x70, 1 | 2 | 4 | 8
        // To receive into: a buffer in RAM for RESPONSE, one in persistent memory for data.
        buffer 0x40000, 0, 0x60000, 4096, 2
        buffer 0x40000, 1, {PMEM}, 4096, 2
        mov word ptr [0x41004], 0
        mov word ptr [0x41006], 1
        mov word ptr [0x41002], 2
        store 0x50, 0
        // REQUEST to port 80 of the host: CIDs, ports, type and operation, the size of the guest's buffer.
        mov edi, 0x61000
        mov ecx, 44
        xor eax, eax
        rep stosb
        mov qword ptr [0x61000], 3
        mov qword ptr [0x61008], 2
        mov dword ptr [0x61010], 1025
        mov dword ptr [0x61014], 80
        mov word ptr [0x6101c], 1
        mov word ptr [0x6101e], 1
        mov dword ptr [0x61024], 0x10000
        buffer 0x50000, 0, 0x61000, 44, 0
        mov word ptr [0x51004], 0
        mov word ptr [0x51002], 1
        store 0x50, 1
    2:
        // RESPONSE.
        pause
        cmp word ptr [0x42002], 0
        je 2b
        say 'R'
    3:
        // DEVICE_NEEDS_RESET, for the host has sent data.
        pause
        test dword ptr [rbx + 0x70], 0x40
        jz 3b
        store 0x70, 0
        mov eax, [rbx + 0x70]
        put8
        power_off
    ",
    PMEM = 4_u64 << 30
);

#[test]
fn a_receive_buffer_in_persistent_memory_needs_a_reset_which_takes_no_time() {
    let Some(mut machine) = Machine::new(receives_into_pmem()) else { return };
    let path = machine.path("vsock");
    machine.config.vsock = Some(VsockConfig { path: path.clone(), cid: VsockConfig::MIN_CID });
    let listener = UnixListener::bind(machine.path("vsock_80")).unwrap();
    let machine = machine.pmem("pmem", PmemMode::Shared, &vec![0; 2 << 20]);
    let mut running = machine.run_with_pipe(false);
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"hello").unwrap();
    // The one byte is the R.
    running.wait_until_ready();
    let (reason, status) = running.wait();
    assert_eq!((reason, status), (ExitReason::PowerOff, vec![0]), "the reset is done when its write is");
}
