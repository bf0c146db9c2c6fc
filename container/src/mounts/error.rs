//! Why a container can't have a mount.

use std::io;
use std::path::PathBuf;

use instance::{VolumeError, VolumeName};
use thiserror::Error;

use super::MountError;
use super::prepare::MAX_SOCKET_PATH;

/// Why a container can't have a mount.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// What the user asks for.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Nothing is at the path of `--mount`.
    #[error("bind source path does not exist: {}: make it, or use -v, which makes a folder there", .0.display())]
    Missing(PathBuf),
    /// The host's path can't be looked at, or no folder can be made there.
    #[error("cannot {doing} {}", path.display())]
    Path {
        /// What was being done.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A device or a FIFO.
    #[error("cannot mount {}: it is {kind}; a container gets folders, files and sockets of the host", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A folder or file that a pod does not have.
    #[error(
        "{} is not in a folder of the pod: its VM has those that `mvm pod create -v HOSTPATH` names when it is made", .0.display()
    )]
    NotInPod(PathBuf),
    /// A volume that a pod does not have.
    #[error(
        "volume {0} is a directory of the host, as it was made with --driver shared: the pod's VM has those that \
         `mvm pod create -v NAME` names when it is made"
    )]
    VolumeNotInPod(VolumeName),
    /// A folder that a pod can only read.
    #[error("{0} is read-only in the pod: add :ro behind the path")]
    ReadOnlyInPod(String),
    /// A path whose name is no text.
    #[error("cannot mount {}: its path is not UTF-8", .0.display())]
    NotText(PathBuf),
    /// What a pod names, and that is no folder or file.
    #[error("{} is a socket, which the pod does not name: give it to the container, with -v", .0.display())]
    SocketOfPod(PathBuf),
    /// A volume that is a disk needs no name at the pod.
    #[error(
        "volume {0} is a disk, which the pod gets when a container has it: leave it out, or use -v {0}:PATH for all \
        containers"
    )]
    DiskOfPod(VolumeName),
    /// A socket whose path is too long for its address.
    #[error("cannot forward {}: the path of a socket has up to {MAX_SOCKET_PATH} bytes", .0.display())]
    LongSocket(PathBuf),
    /// More than a VM has room for.
    #[error("{asked} {what} are more than the {most} that a container can have{advice}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        asked: usize,
        /// How many there may be.
        most: usize,
        /// What to do about it.
        advice: &'static str,
    },
}
