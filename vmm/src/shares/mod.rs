//! Shared folders: their back ends (virtiofsd) and their devices.

mod command;
mod socket;
mod tree;
mod virtiofsd;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use devices::virtio::vhost_user::{ShareTag, VhostUser, VhostUserError};
use thiserror::Error;

pub use self::virtiofsd::VIRTIOFSD;
use crate::helper::Helper;
use crate::{ShareConfig, VhostUserConfig};

/// Why a folder can't be shared with the guest.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The folder doesn't exist or can't be opened.
    #[error("cannot share {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// Not a directory.
    #[error("cannot share {}: it is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// A part that is a device, a FIFO or a socket.
    #[error("cannot share {}: it is neither a folder nor a file", .0.display())]
    Kind(PathBuf),
    /// No virtiofsd on this host.
    #[error("virtiofsd is not installed, which shared folders need (-v, --share): {}", VIRTIOFSD.advice())]
    NoProgram,
    /// virtiofsd can't be started.
    #[error("cannot start {} to share {tag}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The share.
        tag: ShareTag,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// virtiofsd ended before it served anything.
    #[error("virtiofsd failed to share {tag}: {message}{hint}")]
    Ended {
        /// The share.
        tag: ShareTag,
        /// What it said.
        message: String,
        /// What to do about it, if that is known.
        hint: &'static str,
    },
    /// No process listens on the socket.
    #[error("cannot connect to the vhost-user socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The vhost-user back end can't be used.
    #[error("cannot share {tag}")]
    BackEnd {
        /// The share.
        tag: ShareTag,
        /// Why.
        #[source]
        source: VhostUserError,
    },
}

impl ShareError {
    /// Whether the cause is the host, not the configuration.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Folder { .. } | Self::NotAFolder(_) | Self::Kind(_) | Self::Socket { .. } => false,
            Self::NoProgram | Self::Start { .. } | Self::Ended { .. } | Self::BackEnd { .. } => true,
        }
    }
}

/// A share that is being started: the connection to its back end, and the process of that if mvm started it.
pub struct Share {
    tag: ShareTag,
    socket: UnixStream,
    process: Option<Helper>,
    /// It is composed of parts.
    is_tree: bool,
}

/// Starts a virtiofsd for `share`. It starts up while the VM is built.
///
/// # Errors
///
/// [`ShareError`]: there is no such folder, or no virtiofsd.
pub fn start(share: &ShareConfig) -> Result<Share, ShareError> {
    let (process, socket) = virtiofsd::start(share)?;
    Ok(Share { tag: share.tag.clone(), socket, process: Some(process), is_tree: !share.parts.is_empty() })
}

/// Connects to a back end that runs already.
///
/// # Errors
///
/// [`ShareError::Socket`].
pub fn connect(device: &VhostUserConfig) -> Result<Share, ShareError> {
    let VhostUserConfig::Fs { socket: path, tag } = device;
    let error = |source| ShareError::Socket { path: path.clone(), source };
    let socket = socket::connect(path).map_err(error)?;
    Ok(Share { tag: tag.clone(), socket, process: None, is_tree: false })
}

impl Share {
    /// The number of the process, where mvm started one.
    pub fn helper(&self) -> Option<u32> {
        self.process.as_ref().map(Helper::pid)
    }

    /// Makes the device. The process is for the event loop, which logs its messages.
    ///
    /// # Errors
    ///
    /// [`ShareError`] says why the process can't be used, with the process's last messages.
    pub fn into_device(self) -> Result<(VhostUser, Option<Helper>), ShareError> {
        let Self { tag, socket, process, is_tree } = self;
        match VhostUser::fs(socket, &tag) {
            Ok(device) => Ok((device, process)),
            Err(source) => Err(process
                .and_then(|process| virtiofsd::failure(process, &tag, is_tree))
                .unwrap_or(ShareError::BackEnd { tag, source })),
        }
    }
}
