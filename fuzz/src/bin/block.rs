//! The block device, on a disk of a few sectors, which may stop answering.

#![no_main]

use std::time::{Duration, Instant};

use devices::virtio::block::{Block, Disk, DiskError, DiskId, ImageFormat, Valve};
use fuzz::{HostSide, Rig, Script, run_on};
use libfuzzer_sys::fuzz_target;

/// How long the disk's thread may take to answer. It is short, for many runs a second: what a busy machine makes of it
/// is a device that has to be reset.
const DEADLINE: Duration = Duration::from_millis(20);

struct Storage(Valve);

impl HostSide for Storage {
    fn stall(&mut self) {
        self.0.close();
    }

    fn release(&mut self) {
        self.0.open();
    }
}

/// The disk at `path`. Another device may be about to let go of it.
fn open(path: &std::path::Path) -> Disk {
    let start = Instant::now();
    loop {
        match Disk::open(path, false, ImageFormat::Raw) {
            Err(DiskError::InUse { .. }) if start.elapsed() < Duration::from_secs(5) => {
                std::thread::yield_now()
            }
            disk => return disk.expect("the disk opens"),
        }
    }
}

fuzz_target!(|script: Script| {
    let (_file, path) = fuzz::memory_file(64 << 10);
    let valve = Valve::closed().expect("an eventfd");
    valve.open();
    // Bits that no feature of the device has: through io_uring, or on a disk that can stall, with a thread that waits
    // for it or is stuck in a system call.
    let kind = script.declined >> 61 & 0b11;
    let of_device = valve.clone();
    let make = move || match kind {
        0 => Block::new(open(&path), DiskId::default(), Default::default()).expect("a device"),
        kind => Block::stalled(open(&path), &of_device, kind == 1, DEADLINE).expect("a device"),
    };
    let rig = Rig::new(make, script.declined, script.halvings);
    let deadline = if kind == 0 { Duration::from_secs(5) } else { DEADLINE };
    run_on(rig.with_host(Storage(valve), deadline, &[0]), script);
});
