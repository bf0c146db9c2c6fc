//! Processes that are killed at random moments, a host that goes down, and containers that are used for long: nothing
//! that had succeeded is lost, nothing is left, and no command waits without an end.
//!
//! CI repeats each a few times, `make soak` often; `cli/tests/soak.rs` has what needs no VM.

#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod endurance;
mod full;
mod host;
mod kills;
mod processes;
mod reboot;
mod saves;
mod services;
