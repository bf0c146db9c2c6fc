//! The host's side of the guest's sockets.

use devices::virtio::vsock::{Vsock, VsockListener, VsockPathError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::VsockConfig;

/// The most sockets that are open at once.
const MAX_SOCKETS: u64 = 4096;
/// Descriptors left for all that is not a connection.
const OTHERS: u64 = 64;
/// With fewer sockets than these, it is worth a word.
const FEW: u64 = 1024;

/// Makes the device of `config`.
///
/// # Errors
///
/// [`VsockPathError`]: the host's socket can't be had.
pub fn open(config: &VsockConfig) -> Result<Vsock, VsockPathError> {
    let listener = VsockListener::open(&config.path)?;
    let limit = raise_descriptor_limit();
    let most = limit.saturating_sub(OTHERS).clamp(1, MAX_SOCKETS);
    if most < FEW {
        tracing::warn!(
            "vsock can have {most} connections at once, for this process may have {limit} open files: \
             raise the limit (ulimit -Hn) where more are needed"
        );
    }
    Ok(Vsock::new(config.cid, listener, usize::try_from(most).unwrap_or(usize::MAX)))
}

/// Raises the limit of open files as far as this process may, and gives it.
fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    let most = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    if most(current) < most(maximum)
        && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok()
    {
        return most(maximum);
    }
    most(current)
}
