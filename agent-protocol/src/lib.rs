//! The messages between the agent, which is PID 1 of a container's VM, and the host.
//!
//! They pass over vsock. The agent connects to [`PORT`] of the host once it is ready, and takes connections from the
//! host on [`PORT`] of its own. On every connection the agent says [`Reply::Hello`] first. Then the host makes requests;
//! after [`Request::Attach`] the connection carries the bytes of that stream and nothing else.
//!
//! A message is its length, four bytes, little endian, and that many bytes of postcard: see [`encode`] and [`Decoder`].
//! Neither side trusts the other: lengths are bounded by [`MAX_MESSAGE`].

mod frame;
mod spec;

pub use frame::{Decoder, FrameError, MAX_MESSAGE, encode};
pub use spec::{
    Capabilities, Container, File, Limit, Mount, MountKind, Network, Process, Resources, Size, Writable,
};

use serde::{Deserialize, Serialize};

/// The version of these messages: it changes when one of them does.
pub const VERSION: u32 = 1;
/// The vsock port of both sides, which only root can listen on.
pub const PORT: u32 = 1000;
/// The host's context ID (VIRTIO 1.2, 5.10.4).
pub const HOST_CID: u32 = 2;

/// A stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// What it reads.
    Stdin,
    /// What it writes; with a terminal, all that this shows.
    Stdout,
    /// What it writes beside.
    Stderr,
}

/// What the host asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Start a container. The answers are [`Reply::Started`] and, when it ends, [`Reply::Exited`]; or
    /// [`Reply::Failed`].
    Start(Box<Container>),
    /// Make this connection that of a stream of a container's first process.
    Attach {
        /// The container.
        container: String,
        /// Which stream.
        stream: Stream,
    },
    /// Send a signal to a container's first process. The answer is [`Reply::Done`] or [`Reply::Failed`].
    Signal {
        /// The container.
        container: String,
        /// The number of the signal.
        signal: u8,
    },
    /// Set the size of a container's terminal. There is no answer.
    Resize {
        /// The container.
        container: String,
        /// The size.
        size: Size,
    },
    /// Kill all containers, write everything to the disks, and power the VM off. There is no answer.
    PowerOff,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The first on every connection.
    Hello {
        /// The version of the agent's messages.
        version: u32,
    },
    /// The container's first process runs.
    Started,
    /// It has ended.
    Exited(Exit),
    /// It was done.
    Done,
    /// It was not done.
    Failed(Failure),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, or 128 and the number of the signal that killed it.
    pub code: u8,
    /// The kernel killed one of the container's processes, since the container had no memory left.
    pub out_of_memory: bool,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// What was being done and why it failed, on one line.
    pub message: String,
}

/// Kinds of failures, which a user's command tells apart by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Anything else.
    Other,
    /// There is no such command.
    NotFound,
    /// The command can't be executed.
    NotExecutable,
}
