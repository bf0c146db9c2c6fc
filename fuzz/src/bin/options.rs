//! The values of flags and of configuration files, and a VM's record: what is read is written back as the same.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use instance::Record;
use libfuzzer_sys::fuzz_target;
use vmm::{Bandwidth, Rate};

fn check<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}

fuzz_target!(|text: &str| {
    check::<vmm::ConsoleConfig>(text);
    check::<vmm::DiskConfig>(text);
    check::<vmm::GdbConfig>(text);
    check::<vmm::NetConfig>(text);
    check::<vmm::PmemConfig>(text);
    check::<vmm::ShareConfig>(text);
    check::<vmm::VhostUserConfig>(text);
    check::<instance::VmId>(text);
    check::<instance::VmName>(text);
    check::<vmm::VsockConfig>(text);
    check::<Bandwidth>(text);
    check::<Rate>(text);
    // A size is shown rounded.
    let _ = text.parse::<vmm::MemorySize>();
    if let Ok(record) = serde_json::from_str::<Record>(text) {
        let written = serde_json::to_string(&record).expect("a record can be written");
        assert_eq!(serde_json::from_str::<Record>(&written).ok(), Some(record));
    }
});
