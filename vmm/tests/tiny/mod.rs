//! What the tests share, then the tests by subject.

#[macro_use]
mod guest;
mod image;
mod machine;

mod boot;
mod consoles;
mod cpus;
mod ends;
mod interrupts;
mod memory;
mod ports;
mod virtio;
