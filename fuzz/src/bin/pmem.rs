//! Persistent memory, with flushes that have to be made and flushes that have not, on storage that may stop answering.

#![no_main]

use std::time::Duration;

use devices::virtio::block::{ImageFormat, Valve};
use devices::virtio::pmem::{Pmem, PmemFile, PmemMode};
use fuzz::{HostSide, Rig, Script, run_on};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

/// How long the thread may take to answer. It is short, for many runs a second: what a busy machine makes of it is a
/// device that has to be reset.
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

fuzz_target!(|input: (bool, Script)| {
    let (copies, script) = input;
    let (_file, path) = fuzz::memory_file(2 << 20);
    let mode = if copies { PmemMode::CopyOnWrite } else { PmemMode::Shared };
    let valve = Valve::closed().expect("an eventfd");
    valve.open();
    // A bit that no feature of the device has: on a file, or on storage that can stall.
    let stalls = script.declined >> 61 & 1 == 1;
    let of_device = valve.clone();
    let make = move || {
        let file = fuzz::opened(|| PmemFile::open(&path, mode, ImageFormat::Raw));
        let start = GuestAddress(1 << 32);
        let pmem =
            if stalls { Pmem::stalled(file, start, &of_device, DEADLINE) } else { Pmem::new(file, start) };
        pmem.expect("a device")
    };
    let rig = Rig::new(make, script.declined, script.halvings);
    let deadline = if stalls { DEADLINE } else { Duration::from_secs(5) };
    run_on(rig.with_host(Storage(valve), deadline, &[0]), script);
});
