//! The entropy device.

#![no_main]

use devices::virtio::rng::Rng;
use fuzz::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: Script| fuzz::run(Rng::new, &[0], script));
