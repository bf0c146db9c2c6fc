//! The block device, on a disk of a few sectors.

#![no_main]

use devices::virtio::block::{Block, Disk, DiskId, ImageFormat};
use fuzz::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: Script| {
    let (_file, path) = fuzz::memory_file(64 << 10);
    let make = move || {
        let disk = Disk::open(&path, false, ImageFormat::Raw).expect("the disk opens");
        Block::new(disk, DiskId::default(), Default::default()).expect("a device")
    };
    fuzz::run(make, script);
});
