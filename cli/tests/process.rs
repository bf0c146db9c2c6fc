//! `mvm boot` as a process: signals, job control, limits, and an end that comes in time.
//!
//! The guests are a few bytes of machine code. They need `/dev/kvm`, whatever kind of KVM that is; without it each test
//! prints why it is skipped.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test")]
#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

#[path = "process/back_ends.rs"]
mod back_ends;
#[path = "process/commands.rs"]
mod commands;
#[path = "process/forks.rs"]
mod forks;
#[path = "../../vmm/tests/tiny/image.rs"]
mod image;
#[path = "process/jail.rs"]
mod jail;
#[path = "process/job_control.rs"]
mod job_control;
#[path = "process/keepers.rs"]
mod keepers;
#[path = "process/kept.rs"]
mod kept;
#[path = "process/saved.rs"]
mod saved;
#[path = "process/signals.rs"]
mod signals;
#[path = "process/snapshots.rs"]
mod snapshots;
#[path = "process/stalled_files.rs"]
mod stalled_files;
#[path = "process/storm.rs"]
mod storm;
#[path = "process/stuck.rs"]
mod stuck;
#[path = "process/system_calls.rs"]
mod system_calls;
#[path = "process/terminal.rs"]
mod terminal;
#[path = "process/tiny.rs"]
mod tiny;
#[path = "process/vm.rs"]
mod vm;
