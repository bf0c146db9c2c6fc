//! What a VM's process and the one that keeps it tell each other.

use jail::Report;
use serde::{Deserialize, Serialize};

/// What the keeper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToVm {
    /// End at once: what the guest was for is done, or this signal ends it.
    End { signal: Option<i32> },
    /// Put a disk into a slot. Its open files come with the message; they follow each other up to these places.
    Insert { number: u64, slot: usize, read_only: bool, ends: Vec<u64> },
    /// Take the disk out of a slot.
    Eject { number: u64, slot: usize },
    /// Here is the next file of the console's log.
    Log,
}

/// What the VM's process says. A guest that has taken it over may say anything.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromVm {
    /// Its power button was pressed.
    Pressed,
    /// The VM has ended.
    Ended(VmEnd),
    /// It could not be built: a line for the user.
    Failed(String),
    /// What was asked of a slot was done, or why not.
    Slot {
        /// Which request.
        number: u64,
        /// Why not.
        failure: Option<String>,
    },
}

/// All that it says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// It is confined so, and these processes serve its devices, each in a group of its own.
    Confined {
        /// The layers.
        report: Report,
        /// The groups.
        helpers: Vec<u32>,
    },
    /// The console's log has grown: another file is to take its place.
    NewLog,
    /// It is filled, and can take its place.
    LogFilled,
    /// What is passed on.
    #[serde(untagged)]
    Said(FromVm),
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEnd {
    /// The guest powered off, or what it was for was done.
    pub is_power_off: bool,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How it ended, in words.
    pub text: String,
    /// When each phase of the start was reached, as `vmm::Timeline::nanoseconds`.
    #[serde(default)]
    pub timing: Vec<u64>,
}
