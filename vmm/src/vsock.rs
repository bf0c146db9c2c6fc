//! The host's side of the guest's sockets.

use devices::virtio::vsock::{Vsock, VsockListener, VsockPathError};

use crate::config::VsockConfig;
use crate::descriptors;

/// The most sockets that are open at once.
const MAX_SOCKETS: u64 = 4096;
/// With fewer sockets than these, it is worth a word.
const FEW: u64 = 1024;

/// Makes the device of `config`, in a VM that needs `others` descriptors for all but connections.
///
/// # Errors
///
/// [`VsockPathError`]: the host's socket can't be had.
pub fn open(config: &VsockConfig, others: u64) -> Result<Vsock, VsockPathError> {
    let listener = VsockListener::open(&config.path)?;
    let limit = descriptors::raise_limit(others.saturating_add(MAX_SOCKETS));
    let most = limit.saturating_sub(others).clamp(1, MAX_SOCKETS);
    if most < FEW {
        tracing::warn!(
            "vsock can have {most} connections at once, for this process may have {limit} open files: \
             raise the limit (ulimit -Hn) where more are needed"
        );
    }
    Ok(Vsock::new(config.cid, listener, usize::try_from(most).unwrap_or(usize::MAX)))
}
