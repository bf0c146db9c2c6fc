//! What a VM's process and the one that keeps it tell each other.

use jail::Report;
use serde::{Deserialize, Serialize};

use crate::console::FileIdentity;
use crate::{ExitReason, VmError};

/// What the keeper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToVm {
    /// End at once, for this reason.
    End(ExitReason),
    /// Do what this signal asks for: the power button first, force then.
    Signal(i32),
    /// Put a disk into a slot. Its open files come with the message; they follow each other up to these places.
    Insert { number: u64, slot: usize, read_only: bool, ends: Vec<u64> },
    /// Take the disk out of a slot.
    Eject { number: u64, slot: usize },
    /// Here is the next file of the console's log.
    Log,
    /// Here is the next file of `--console FILE`.
    Console,
    /// The processes that serve devices are as they have to be: the guest may run.
    Run,
}

/// What the VM's process says. A guest that has taken it over may say anything.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromVm {
    /// Its power button was pressed.
    Pressed,
    /// It is built, and runs from now on.
    Built,
    /// Its console has printed the text that is waited for.
    Printed,
    /// The VM has ended.
    Ended(VmEnd),
    /// It could not be built, or was ended by force.
    Failed(Failure),
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
    /// The VM is built, and waits for [`ToVm::Run`], as processes serve its devices.
    Ready,
    /// The console's log has grown: another file is to take its place.
    NewLog,
    /// It is filled, and can take its place.
    LogFilled,
    /// The file of `--console FILE` has grown, which is this one: another one is to take its place.
    NewConsole(FileIdentity),
    /// What is passed on.
    #[serde(untagged)]
    Said(FromVm),
}

/// Why a VM's process did not run it to an end of the VM's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A line for the user.
    pub text: String,
    /// Whose fault it is.
    pub fault: Fault,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// What was asked for can't work.
    User,
    /// The host can't do it.
    Host,
    /// The guest has attacked the process.
    Guest,
}

impl Failure {
    pub(super) fn host(doing: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |error| Self { text: format!("cannot {doing}: {error}"), fault: Fault::Host }
    }
}

impl From<VmError> for Failure {
    fn from(error: VmError) -> Self {
        let fault = if error.is_the_hosts() { Fault::Host } else { Fault::User };
        Self { text: devices::log::chain(&error), fault }
    }
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEnd {
    /// Why; `None` where its process ended without a word.
    pub reason: Option<ExitReason>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How it ended, in words.
    pub text: String,
    /// When each phase of the start was reached, as `vmm::Timeline::nanoseconds`.
    #[serde(default)]
    pub timing: Vec<u64>,
}

/// What a page of the VM's memory can have come from that is gone.
const CUT_OFF: &str = "a page of its memory is gone (SIGBUS): was the file that it comes from cut off, of a template, a snapshot \
                       or --pmem, or is its storage full or failing?";

/// Why a VM's process ended that has not said it, by its exit code.
pub fn end_without_a_word(code: u8) -> String {
    let of_bus = u8::try_from(libc::SIGBUS).unwrap_or_default().saturating_add(128);
    if code == of_bus { CUT_OFF.to_owned() } else { format!("its process ended with {code}") }
}

impl VmEnd {
    /// An end for `reason`, with the phases of the start in `timing`.
    pub(super) fn of(reason: ExitReason, timing: Vec<u64>) -> Self {
        let signal = if let ExitReason::Signal(signal) = &reason { Some(*signal) } else { None };
        let text = reason.hint().map_or_else(|| reason.to_string(), |hint| format!("{reason}; {hint}"));
        Self { reason: Some(reason), signal, text, timing }
    }

    /// That of a VM whose process has not said how it ended, `signal` being what it was told to end by.
    pub fn without_a_word(signal: Option<i32>, text: String) -> Self {
        Self { reason: None, signal, text, timing: Vec::new() }
    }

    /// Whether the guest powered off, or what it was for was done.
    pub fn is_power_off(&self) -> bool {
        self.reason == Some(ExitReason::PowerOff)
    }
}
