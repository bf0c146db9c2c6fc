//! The messages between the agent, which is PID 1 of a container's VM or a service of a VM's guest, and the host.
//!
//! They pass over vsock. As PID 1 the agent connects to [`PORT`] of the host once it is ready. It takes connections
//! from the host on [`PORT`] of its own. On every connection the agent says [`Reply::Hello`] first. Then the host makes
//! requests; after [`Request::Attach`] the connection carries the bytes of that stream and nothing else. A stream
//! outlives its connection: see [`Sender`] and [`Receiver`].
//!
//! A message is its length, four bytes, little endian, and that many bytes of postcard: see [`encode`] and [`Decoder`].
//! Neither side trusts the other: lengths are bounded by [`MAX_MESSAGE`].

mod copy;
mod environment;
mod frame;
mod relay;
mod ring;
mod spec;
mod stream;

pub use copy::{CopyWhat, FileInfo, PieceReader, PieceWriter};
pub use environment::set_variables;
pub use frame::{Decoder, FrameError, MAX_MESSAGE, encode};
pub use relay::{End, Relays};
pub use spec::{
    Adoption, Awakening, Capabilities, Container, Exec, File, Limit, Mount, MountKind, Network, Pod,
    PodContainer, PodDisk, Preparation, Process, Resources, Size, Writable,
};
pub use stream::{MAX_PIECE, Receiver, Sender, StreamError};

use serde::{Deserialize, Serialize};

/// The version of these messages. It grows by one when there is a new one: requests and replies are added behind the
/// last, and none is changed, so that agent and host of different versions understand each other as far as the older
/// one goes. Where one has to change, so does [`OLDEST`].
pub const VERSION: u32 = 7;
/// The first version that has [`Request::Prepare`].
pub const PREPARES: u32 = 7;
/// The first version that has [`Request::Adopt`].
pub const ADOPTS: u32 = 6;
/// The first version that has [`Request::Copy`].
pub const COPIES: u32 = 4;
/// The oldest version that the host still talks to: that of an agent which an older mvm has started.
pub const OLDEST: u32 = 3;
/// The vsock port of both sides, which only root can listen on.
pub const PORT: u32 = 1000;
/// The most processes that [`Request::Exec`] starts in a container at a time.
pub const MAX_EXECS: usize = 64;
/// The most requests of the kind [`Request::Copy`] that are worked on in a container at a time.
pub const MAX_COPIES: usize = 16;
/// What the guest itself is called in place of a container, where the agent is a service of it. There it runs commands
/// and copies files, and refuses all that is about containers.
pub const GUEST: &str = "guest";
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
    /// Start a further process in a container that runs. The answers are those of [`Request::Start`]. When the
    /// container's first process ends, the kernel kills all others.
    Exec {
        /// The container.
        container: String,
        /// What the process is called from now on, in place of a container: letters and digits. It is forgotten once
        /// the process has ended and this connection is closed. Where this connection is closed before, the process
        /// runs on, without input, and what it writes is dropped.
        id: String,
        /// The process.
        exec: Box<Exec>,
    },
    /// Make this connection that of a stream of a process that has started, in place of the one that it had. The answer
    /// is [`Reply::Attached`], behind which come the stream's bytes (see [`Sender`]); or [`Reply::Failed`].
    Attach {
        /// The container, for its first process, or the process.
        container: String,
        /// Which stream.
        stream: Stream,
        /// How many bytes of an output the host has; of no meaning for the input.
        position: u64,
    },
    /// Have [`Reply::Exited`] of a process come on this connection, in place of the one that started it: the host has
    /// lost that.
    Wait {
        /// The container, for its first process, or the process.
        container: String,
    },
    /// Send a signal to a process. The answer is [`Reply::Done`] or [`Reply::Failed`].
    Signal {
        /// The container, for its first process, or the process.
        container: String,
        /// The number of the signal.
        signal: u8,
    },
    /// Set the size of a process's terminal. There is no answer.
    Resize {
        /// The container, for its first process, or the process.
        container: String,
        /// The size.
        size: Size,
    },
    /// Kill all containers, write everything to the disks, and power the VM off. There is no answer.
    PowerOff,
    /// Say what a container uses. The answer is [`Reply::Usage`] or [`Reply::Failed`]. Since version 4.
    Usage {
        /// The container.
        container: String,
    },
    /// Change what a container may use; what is `None` stays. The answer is [`Reply::Done`] or [`Reply::Failed`]. Since
    /// version 4.
    Update {
        /// The container.
        container: String,
        /// What it may use from now on.
        resources: Box<Resources>,
    },
    /// Say which processes a container has. The answer is [`Reply::Processes`] or [`Reply::Failed`]. Since version 4.
    Processes {
        /// The container.
        container: String,
    },
    /// Look at, read or write files of a container that runs. The connection is for nothing else then: see
    /// [`CopyWhat`].
    Copy {
        /// The container.
        container: String,
        /// What is to be done.
        what: CopyWhat,
    },
    /// Make the root of a container that does not run, with its volumes and folders of the host and nothing else
    /// mounted in it, so that its files can be reached by [`Request::Copy`]. No process of its own runs. The answers
    /// are those of [`Request::Start`].
    Hold(Box<Container>),
    /// Make what the containers of a pod share. The answer is [`Reply::Done`] or [`Reply::Failed`]. Since version 4, as
    /// those that follow.
    Pod(Box<Pod>),
    /// Start a container in the pod. The answers are those of [`Request::Start`]. Where this connection is closed the
    /// container is killed.
    StartInPod(Box<PodContainer>),
    /// Kill a container of the pod, if it still runs, and forget it. The answer, [`Reply::Done`] or [`Reply::Failed`],
    /// comes when nothing of it uses these disks any more.
    Release {
        /// The container.
        container: String,
        /// Block devices of the guest, as in `/dev/vdc`.
        disks: Vec<String>,
    },
    /// Have all processes of a container stand still, or go on. The answer, [`Reply::Done`] or [`Reply::Failed`], comes
    /// when they do.
    Freeze {
        /// The container.
        container: String,
        /// They stand still.
        freezes: bool,
    },
    /// Say whether a container stands still. The answer is [`Reply::Frozen`] or [`Reply::Failed`].
    IsFrozen {
        /// The container.
        container: String,
    },
    /// The VM goes on from a template: become another one than those that go on from the same. The answer is
    /// [`Reply::Done`] or [`Reply::Failed`]. Since version 5.
    Awake(Box<Awakening>),
    /// The VM is about to be saved as a template: let go of the devices that another one has in other processes, until
    /// [`Request::Awake`]. The answer is [`Reply::Done`] or [`Reply::Failed`]. Since version 6.
    Rest,
    /// The VM is a copy of one that ran: its container becomes another one from here on, which [`Request::Wait`] and
    /// [`Request::Attach`] are about. Its streams begin anew, with what the first one's host was not sent. The answer
    /// is [`Reply::Done`] or [`Reply::Failed`]. Since version 6.
    Adopt(Box<Adoption>),
    /// The VM is about to be saved as a template for containers of one image: mount the root that they have in common.
    /// The first container that [`Request::Start`] starts has it. The answer is [`Reply::Done`] or [`Reply::Failed`].
    /// Since version 7.
    Prepare(Box<Preparation>),
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The first on every connection.
    Hello {
        /// The version of the agent's messages.
        version: u32,
    },
    /// The process runs.
    Started,
    /// The connection is that of the stream.
    Attached {
        /// How many bytes of the input the agent has, or of an output the host.
        position: u64,
    },
    /// It has ended.
    Exited(Exit),
    /// It was done.
    Done,
    /// It was not done.
    Failed(Failure),
    /// What the container uses.
    Usage(Usage),
    /// The processes of the container, up to [`MAX_PROCESSES`], and the milliseconds since the VM's boot.
    Processes(Vec<ProcessEntry>, u64),
    /// What a file is.
    Found(FileInfo),
    /// Whether the container stands still.
    Frozen(bool),
}

/// The most processes that are listed, and bytes of the title of one: they fit in a message.
pub const MAX_PROCESSES: usize = 2048;
/// See [`MAX_PROCESSES`].
pub const MAX_TITLE: usize = 256;

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Its ID, and that of its parent, as the VM counts them.
    pub pid: u32,
    /// See `pid`.
    pub parent: u32,
    /// Its user.
    pub uid: u32,
    /// The number of its terminal's device, or 0.
    pub terminal: u64,
    /// Milliseconds of processor time that it has used.
    pub cpu: u64,
    /// When it started, in milliseconds since the VM's boot.
    pub started: u64,
    /// Its command line.
    pub title: String,
}

/// What a container uses, all its processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Microseconds of processor time since it started.
    pub cpu: u64,
    /// Microseconds since the VM's boot, when that was so.
    pub at: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of it that caches of files have, and that can be had back.
    pub cache: u64,
    /// Processes and threads.
    pub pids: u64,
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
    /// There is no such command or file.
    NotFound,
    /// The command can't be executed.
    NotExecutable,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the variant in a message, which is the first byte behind the length.
    fn number(message: &impl Serialize) -> u8 {
        encode(message).unwrap()[4]
    }

    /// Other versions know the messages by these numbers: new ones get the next.
    #[test]
    fn messages_keep_their_numbers() {
        let container = || "c".to_owned();
        let requests = [
            (2, Request::Attach { container: container(), stream: Stream::Stdin, position: 0 }),
            (3, Request::Wait { container: container() }),
            (4, Request::Signal { container: container(), signal: 15 }),
            (5, Request::Resize { container: container(), size: Size { rows: 1, columns: 1 } }),
            (6, Request::PowerOff),
            (7, Request::Usage { container: container() }),
            (8, Request::Update { container: container(), resources: Box::default() }),
            (9, Request::Processes { container: container() }),
            (10, Request::Copy { container: container(), what: CopyWhat::Changes }),
            (11, Request::Hold(Box::default())),
            (12, Request::Pod(Box::default())),
            (13, Request::StartInPod(Box::default())),
            (14, Request::Release { container: container(), disks: Vec::new() }),
            (15, Request::Freeze { container: container(), freezes: true }),
            (16, Request::IsFrozen { container: container() }),
            (17, Request::Awake(Box::default())),
            (18, Request::Rest),
            (19, Request::Adopt(Box::default())),
            (20, Request::Prepare(Box::default())),
        ];
        for (expected, request) in requests {
            assert_eq!(number(&request), expected, "{request:?}");
        }
        let failure = Failure { kind: FailureKind::Other, message: String::new() };
        let replies = [
            Reply::Hello { version: VERSION },
            Reply::Started,
            Reply::Attached { position: 0 },
            Reply::Exited(Exit { code: 0, out_of_memory: false }),
            Reply::Done,
            Reply::Failed(failure),
            Reply::Usage(Usage::default()),
            Reply::Processes(Vec::new(), 0),
            Reply::Found(FileInfo::default()),
            Reply::Frozen(true),
        ];
        for (expected, reply) in (0..).zip(replies) {
            assert_eq!(number(&reply), expected, "{reply:?}");
        }
        let kinds = [FailureKind::Other, FailureKind::NotFound, FailureKind::NotExecutable];
        assert_eq!(kinds.map(|kind| number(&kind)), [0, 1, 2]);
        assert_eq!([Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|stream| number(&stream)), [0, 1, 2]);
    }

    /// What mounts are in messages: an older agent knows the first ones.
    #[test]
    fn mounts_keep_their_numbers() {
        let text = String::new;
        let kinds = [
            MountKind::FileSystem(text()),
            MountKind::Share(text()),
            MountKind::Cgroup,
            MountKind::Part { tag: text(), name: text(), fills: false },
            MountKind::Disk { device: text(), fills: false },
            MountKind::Socket { port: 0, mode: 0, user: 0, group: 0 },
            MountKind::Below { tag: text(), name: text(), path: text() },
            MountKind::DiskBelow { device: text(), path: text() },
        ];
        for (expected, kind) in (0..).zip(kinds) {
            assert_eq!(number(&kind), expected, "{kind:?}");
        }
    }

    /// What an agent of any version says first is understood by a host of any version.
    #[test]
    fn the_greeting_is_the_same_for_all_versions() {
        assert_eq!(encode(&Reply::Hello { version: 2 }).unwrap(), [2, 0, 0, 0, 0, 2]);
    }
}
