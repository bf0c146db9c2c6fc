//! The block device, on a disk of a few sectors, which may stop answering, and in some runs is put into the device and
//! taken out of it.

#![no_main]

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::virtio::block::{Block, BlockHandle, Disk, DiskId, ImageFormat, Valve};
use fuzz::{HostSide, MAX_STEPS, Rig, Script, Step, run_on};
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

/// The disk at `path`.
fn open(path: &Path) -> Disk {
    fuzz::opened(|| Disk::open(path, false, ImageFormat::Raw))
}

/// A slot in which the disk at `path` is, if it is to be.
fn slot(kind: u64, valve: &Valve, path: &Path, has_disk: bool) -> Block {
    let block = match kind {
        0 => Block::slot(None),
        kind => Block::stalled_slot(valve, kind == 1, DEADLINE),
    };
    let block = Arc::new(Mutex::new(block.expect("a device")));
    if has_disk {
        BlockHandle::new(block.clone()).insert(open(path)).expect("it is empty");
    }
    Arc::into_inner(block).and_then(|block| block.into_inner().ok()).expect("no other has it")
}

/// The most disks that are put in or taken out in a run: each may wait for a disk that does not answer.
const MAX_MOVES: usize = 8;

/// A run on a slot: what the driver writes to the config space, which has nothing to write, is when a disk comes or
/// goes.
fn run_on_slot(kind: u64, path: &Path, valve: Valve, script: &Script) {
    let has_disk = Rc::new(Cell::new(script.halvings.is_multiple_of(2)));
    let (of_device, its_path, its_disk) = (valve.clone(), path.to_owned(), has_disk.clone());
    let make = move || slot(kind, &of_device, &its_path, its_disk.get());
    let rig = Rig::new(make, script.declined, script.halvings);
    let deadline = if kind == 0 { Duration::from_secs(5) } else { DEADLINE };
    let mut rig = rig.with_host(Storage(valve), deadline, &[0]);
    let mut moves = 0;
    for step in script.steps.iter().take(MAX_STEPS) {
        match step {
            Step::SetConfig { .. } if moves < MAX_MOVES => {
                moves += 1;
                let handle = BlockHandle::new(rig.shared_device());
                // A disk that does not answer is not taken out.
                let _ = if has_disk.get() { handle.eject() } else { handle.insert(open(path)) };
                has_disk.set(handle.has_disk());
                rig.pump();
            }
            step => rig.step(step),
        }
    }
    rig.end(script);
}

fuzz_target!(|script: Script| {
    let (_file, path) = fuzz::memory_file(64 << 10);
    let valve = Valve::closed().expect("an eventfd");
    valve.open();
    // Bits that no feature of the device has: through io_uring, or on a disk that can stall, with a thread that waits
    // for it or is stuck in a system call.
    let kind = script.declined >> 61 & 0b11;
    if script.declined >> 60 & 1 == 1 {
        return run_on_slot(kind, &path, valve, &script);
    }
    let of_device = valve.clone();
    let make = move || match kind {
        0 => Block::new(open(&path), DiskId::default(), Default::default()).expect("a device"),
        kind => Block::stalled(open(&path), &of_device, kind == 1, DEADLINE).expect("a device"),
    };
    let rig = Rig::new(make, script.declined, script.halvings);
    let deadline = if kind == 0 { Duration::from_secs(5) } else { DEADLINE };
    run_on(rig.with_host(Storage(valve), deadline, &[0]), script);
});
