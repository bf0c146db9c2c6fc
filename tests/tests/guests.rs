//! Boots of real Linux guests.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

#[path = "guests/balloon.rs"]
mod balloon;
#[path = "guests/boots.rs"]
mod boots;
#[path = "guests/console.rs"]
mod console;
#[path = "guests/containers.rs"]
mod containers;
#[path = "guests/control.rs"]
mod control;
#[path = "guests/disks.rs"]
mod disks;
#[path = "guests/ends.rs"]
mod ends;
#[path = "guests/gdb.rs"]
mod gdb;
#[path = "guests/machine.rs"]
mod machine;
#[path = "guests/nesting.rs"]
mod nesting;
#[path = "guests/net.rs"]
mod net;
#[path = "guests/passt.rs"]
mod passt;
#[path = "guests/pause.rs"]
mod pause;
#[path = "guests/pmem.rs"]
mod pmem;
#[path = "guests/readme.rs"]
mod readme;
#[path = "guests/shares.rs"]
mod shares;
#[path = "guests/vsock.rs"]
mod vsock;
