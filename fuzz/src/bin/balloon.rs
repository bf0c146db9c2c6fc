//! The balloon, and what the host asks of it meanwhile.

#![no_main]

use std::time::Duration;

use devices::virtio::balloon::{Balloon, BalloonHandle};
use fuzz::{MAX_STEPS, Rig, Script, Step};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Action {
    Driver(Step),
    /// Makes these page numbers a chain of the queue.
    Pages {
        queue: u8,
        pages: Vec<u16>,
    },
    SetTarget(u64),
    AskForStatistics,
}

/// Where page numbers are written.
const PAGES: u64 = 0x8000;

fuzz_target!(|script: Script<Action>| {
    let make = || Balloon::new(128 << 20).expect("a device");
    let mut rig = Rig::new(make, script.declined, script.halvings);
    for action in script.steps.iter().take(MAX_STEPS) {
        // The device may be another one now.
        let handle = BalloonHandle::new(rig.shared_device());
        match action {
            Action::Driver(step) => rig.step(step),
            Action::Pages { queue, pages } => {
                let bytes: Vec<u8> = pages.iter().flat_map(|page| u32::from(*page).to_le_bytes()).collect();
                rig.write(PAGES, &bytes);
                rig.chain((*queue).into(), &[(PAGES, bytes.len() as u32, 0)]);
            }
            Action::SetTarget(bytes) => drop(handle.set_target(*bytes)),
            Action::AskForStatistics => drop(handle.refresh_statistics(Duration::ZERO)),
        }
        rig.pump();
        let handle = BalloonHandle::new(rig.shared_device());
        assert!(handle.target() <= handle.largest_target());
    }
});
