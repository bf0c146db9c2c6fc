//! Persistent memory, with flushes that have to be made and flushes that have not.

#![no_main]

use devices::virtio::block::ImageFormat;
use devices::virtio::pmem::{Pmem, PmemFile, PmemMode};
use fuzz::Script;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

fuzz_target!(|input: (bool, Script)| {
    let (copies, script) = input;
    let (_file, path) = fuzz::memory_file(2 << 20);
    let mode = if copies { PmemMode::CopyOnWrite } else { PmemMode::Shared };
    let make = move || {
        let file = PmemFile::open(&path, mode, ImageFormat::Raw).expect("the file opens");
        Pmem::new(file, GuestAddress(1 << 32)).expect("a device")
    };
    fuzz::run(make, &[0], script);
});
