//! What the tests share, then the tests by subject.

#[macro_use]
mod guest;
mod image;
mod machine;

mod attacks;
mod balloon;
mod boot;
mod consoles;
mod control;
mod copies;
mod cpus;
mod ends;
mod flood;
mod gdb;
mod interrupts;
mod memory;
mod pause;
mod pmem;
mod ports;
mod sealed;
mod snapshots;
mod sockets;
mod virtio;
