//! Running VMs seen from outside: the directory by which other processes find one, and what they do with it. Nothing
//! here needs KVM.
//!
//! There is no daemon: the directories of a user's VMs lie beside each other, and a VM lives as long as its process
//! holds the lock on its own.
//!
//! ```text
//! $XDG_RUNTIME_DIR/mvm/       0700; its lock is held while a VM is added or the remains of one are removed
//! ├── names/web -> 3f0c…      a name belongs to one VM
//! └── 3f0c9a51b2e7/           0700; its lock is held by the VM's process
//!     ├── vm.json             who it is, see [`Record`]
//!     ├── control.sock        HTTP, see [`Client`] and [`api`]
//!     └── console.sock        a console, see [`console::attach`]
//! ```
//!
//! A lock is one of flock(2) on the directory itself, so that there is no moment at which one is there without the
//! other, and so that cleaners of temporary files leave the directory alone.

pub mod api;
mod archive;
mod bounded;
mod cgroup;
mod client;
mod clone;
pub mod console;
mod directory;
mod events;
mod gauges;
mod identity;
mod ids;
pub mod keeper;
mod lock;
mod metrics;
mod place;
mod process;
mod record;
mod registry;
mod removal;
mod signals;
pub mod time;
mod volumes;
mod written;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use archive::{Archive, End, Entry, EntryError, Keep, Kept, Kind, Phase, write_health};
pub use bounded::{BoundedFile, Changes, Lines, earlier, open_output};
pub use cgroup::{Cgroup, CgroupError, CgroupLimits, CgroupUsage, MoreMemory, examine_cgroups};
pub use client::{Client, ClientError, connect_within};
pub use directory::{CONSOLE_SOCKET, CONTROL_SOCKET, Instance};
pub use events::{Event, EventReader};
pub use gauges::{ProcessGauges, ProcessMeter};
pub use identity::{Identity, IdentityError, VmId, VmName};
pub use ids::{IdClaim, IdRange, IdRangeError};
pub use metrics::{Counters, MetricsReport};
pub use place::{data_directory, make_data_directory, runtime_directory, set_runtime_directory};
pub use process::{OpenProcess, Process, ProcessError, exit_now};
pub use record::{Format, Record, RecordError, Summary};
pub use registry::{Registry, Running};
pub use removal::RemovalWatch;
pub use signals::{
    ENDING, Signals, ignore_limits_and_terminal, name_of, restore_defaults, start_without_signals,
    take_ending, take_for_container,
};
pub use volumes::{
    Volume, VolumeDriver, VolumeError, VolumeHold, VolumeName, VolumeNameError, VolumeRecord, Volumes,
};

/// Why a VM has no directory, or others' can't be seen.
#[derive(Debug, Error)]
pub enum InstanceError {
    /// The name belongs to a VM that runs.
    #[error("the name {name} is in use by {id}: use another one, or `mvm stop {name}`")]
    NameTaken {
        /// The name.
        name: VmName,
        /// Whose it is.
        id: String,
    },
    /// The name belongs to a VM, container or pod that is kept.
    #[error("the name {name} is in use by {id}: use another one, or `{removal} -f {name}`")]
    NameKept {
        /// The name.
        name: VmName,
        /// Whose it is.
        id: String,
        /// The command that removes it.
        removal: &'static str,
    },
    /// What is kept has no place.
    #[error("cannot find a directory for data: set HOME or MVM_DATA_DIR to an absolute path")]
    NoDataDirectory,
    /// What is kept of one can't be used.
    #[error("the record of {id} is damaged")]
    Kept {
        /// Whose.
        id: VmId,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// It can't be started again.
    #[error("cannot start {id} again")]
    Order {
        /// Which.
        id: VmId,
        /// Why not.
        #[source]
        source: EntryError,
    },
    /// A VM with that ID runs.
    #[error("there is a VM with the ID {0} already: give another --id, or none")]
    IdTaken(VmId),
    /// No directory, or a step of making it failed.
    #[error("cannot {doing} {}", path.display())]
    Directory {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another user could have put files into it.
    #[error("{} belongs to another user: remove it, or give a directory of your own with --runtime-dir", .0.display())]
    NotOurs(PathBuf),
    /// Others can change what is in it.
    #[error("{} is open to other users: chmod 700 it", .0.display())]
    OpenToOthers(PathBuf),
    /// The address of a Unix socket has room for 107 bytes.
    #[error("{} is too long for a socket's path: give a shorter one with --runtime-dir", .0.display())]
    PathTooLong(PathBuf),
    /// /proc does not say who this process is.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nothing runs by that name.
    #[error("there is no VM or container {0:?}: `mvm ps -a` lists them")]
    NotFound(String),
    /// It is a pod.
    #[error("{0:?} is a pod, which has containers: use `mvm pod`, or name one of them")]
    IsPod(String),
    /// There is no such pod.
    #[error("there is no pod {0:?}: `mvm pod ps` lists them")]
    NoPod(String),
    /// More than one ID begins so.
    #[error("{0:?} could be more than one: give more digits of the ID")]
    Ambiguous(String),
    /// Its record can't be used.
    #[error("the directory of VM {id} is damaged")]
    Record {
        /// Whose.
        id: VmId,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
}

impl InstanceError {
    /// Whether the host is at fault, and not what it was asked for.
    pub fn is_the_hosts(&self) -> bool {
        !matches!(
            self,
            Self::NameTaken { .. }
                | Self::NameKept { .. }
                | Self::IdTaken(_)
                | Self::NotFound(_)
                | Self::IsPod(_)
                | Self::NoPod(_)
                | Self::Ambiguous(_)
        )
    }

    fn directory(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Directory { doing, path, source }
    }
}
