//! Kernel files: ELF and bzImage.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};

fuzz_target!(|data: &[u8]| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).expect("memory");
    let (mut file, path) = fuzz::memory_file(0);
    file.write_all(data).expect("a file in memory takes a few bytes");
    if let Ok(kernel) =
        vmm::parts::BootFile::kernel(&path).and_then(|file| vmm::parts::load_kernel(&memory, file))
    {
        assert!(kernel.end <= 32 << 20);
        assert!(kernel.cmdline_max() > 0);
    }
});
