//! Boots of real Linux guests.

#![allow(missing_docs, reason = "tests are named after what they show")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]

#[path = "guests/boots.rs"]
mod boots;
#[path = "guests/console.rs"]
mod console;
#[path = "guests/disks.rs"]
mod disks;
#[path = "guests/ends.rs"]
mod ends;
#[path = "guests/machine.rs"]
mod machine;
