//! Attaching to a container that runs: its keeper serves a socket in the VM's directory, and other processes of the
//! user connect their standard input and output by it.
//!
//! A message is framed as those of the agent (`agent_protocol::encode`). The keeper says [`FromKeeper::Hello`] first.
//! What the container writes goes to all who are attached, from then on; where one of them does not read, the container
//! waits for it, as it does for a reader of any pipe, and the log has it already. Once the container has ended no
//! reader is waited for longer than [`LAST_WORDS`].

mod client;
mod keys;
mod server;

use std::time::Duration;

use agent_protocol::Size;
use serde::{Deserialize, Serialize};

pub use client::{AttachError, AttachOptions, AttachStreams, Attached, attach, connect};
pub(crate) use keys::DetachFilter;
pub use keys::{DetachKeys, KeysError};
pub use server::Attachments;
pub(crate) use server::{Console, Input};

/// The name of the socket in the VM's directory.
const SOCKET: &str = "attach.sock";
/// The version of the messages.
const VERSION: u32 = 1;
/// How many are attached at a time at most.
const MAX_CLIENTS: usize = 64;
/// Of how many clients that have gone input waits for the container at most.
const MAX_REMAINDERS: usize = 16;
/// How long those who are attached have to read the last of the output.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The most bytes of input or output in a message.
const CHUNK: usize = 32 << 10;

/// What one who is attached says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ToKeeper {
    /// Input of the container.
    Input(Vec<u8>),
    /// It was all.
    InputEnd,
    /// The size of the terminal.
    Resize(Size),
}

/// What the keeper says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum FromKeeper {
    /// The first message.
    Hello {
        /// The version of the messages.
        version: u32,
        /// The container has a terminal.
        has_terminal: bool,
        /// Input is passed on.
        has_input: bool,
    },
    /// What the container writes.
    Output(Vec<u8>),
    /// What it writes to standard error.
    Errors(Vec<u8>),
    /// It has ended.
    Ended {
        /// Its exit code.
        code: u8,
        /// What there is to say of it, for standard error; may be empty.
        text: String,
    },
    /// In place of [`FromKeeper::Hello`]: as many are attached as can be.
    Full {
        /// How many.
        clients: usize,
    },
}
