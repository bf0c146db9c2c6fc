//! Shared folders: the processes that serve them, and their devices.

mod command;
mod socket;
mod virtiofsd;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use devices::virtio::vhost_user::{ShareTag, VhostUser, VhostUserError};
use thiserror::Error;

pub use self::virtiofsd::VIRTIOFSD;
use crate::helper::Helper;
use crate::{VhostUserConfig, VmConfig};

/// Why a folder can't be shared.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The folder can't be looked at.
    #[error("cannot share {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
    /// A file, say.
    #[error("cannot share {}: it is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// No virtiofsd on this host.
    #[error(
        "no virtiofsd is installed, which shares folders: install the package virtiofsd (Debian 13, Fedora, Arch), \
         or name the program in {variable}",
        variable = VIRTIOFSD.variable
    )]
    NoProgram,
    /// virtiofsd can't be started.
    #[error("cannot start {} to share {tag}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What it was to serve.
        tag: ShareTag,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
    /// virtiofsd ended before it served anything.
    #[error("virtiofsd does not share {tag}: {message}{hint}")]
    Ended {
        /// What it was to serve.
        tag: ShareTag,
        /// What it said.
        message: String,
        /// How to mend it, where that is known.
        hint: &'static str,
    },
    /// Nobody listens at the socket.
    #[error("cannot connect to the vhost-user socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
    /// The process at the other end can't be used.
    #[error("cannot share {tag}")]
    BackEnd {
        /// What it serves.
        tag: ShareTag,
        /// Why.
        #[source]
        source: VhostUserError,
    },
}

impl ShareError {
    /// Whether the host is at fault, and not what it was asked for.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Folder { .. } | Self::NotAFolder(_) | Self::Socket { .. } => false,
            Self::NoProgram | Self::Start { .. } | Self::Ended { .. } | Self::BackEnd { .. } => true,
        }
    }
}

/// A share on its way: a connection to the process that serves it, and that process where it is mvm's own.
pub struct Share {
    tag: ShareTag,
    socket: UnixStream,
    process: Option<Helper>,
}

/// Starts a process for each folder of `config`, and connects to those that run already. They get ready while the VM
/// is built.
///
/// # Errors
///
/// [`ShareError`]; what was started ends.
pub fn start(config: &VmConfig) -> Result<Vec<Share>, ShareError> {
    let mut shares = Vec::new();
    for share in &config.shares {
        let (process, socket) = virtiofsd::start(share)?;
        shares.push(Share { tag: share.tag.clone(), socket, process: Some(process) });
    }
    for VhostUserConfig::Fs { socket: path, tag } in &config.vhost_user {
        let error = |source| ShareError::Socket { path: path.clone(), source };
        let socket = socket::connect(path).map_err(error)?;
        shares.push(Share { tag: tag.clone(), socket, process: None });
    }
    Ok(shares)
}

impl Share {
    /// Makes the device. The process is for the event loop, which hears what it has to say.
    ///
    /// # Errors
    ///
    /// [`ShareError`] says why the process can't be used, in its own words where it has any.
    pub fn into_device(self) -> Result<(VhostUser, Option<Helper>), ShareError> {
        let Self { tag, socket, process } = self;
        match VhostUser::fs(socket, &tag) {
            Ok(device) => Ok((device, process)),
            Err(source) => Err(process
                .and_then(|process| virtiofsd::failure(process, &tag))
                .unwrap_or(ShareError::BackEnd { tag, source })),
        }
    }
}
