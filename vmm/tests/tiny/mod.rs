//! What the tests share, then the tests by subject.

#[macro_use]
mod guest;
mod image;
mod machine;

mod boot;
mod control;
mod cpus;
mod ends;
mod interrupts;
mod memory;
mod pause;
mod ports;
mod virtio;
