//! The host's side of the guest's sockets.

use std::os::fd::OwnedFd;

use devices::virtio::vsock::{Vsock, VsockListener};

use crate::config::VsockConfig;
use crate::{VmError, descriptors};

/// The most sockets that are open at once.
const MAX_SOCKETS: u64 = 4096;
/// With fewer sockets than these, it is worth a word.
const FEW: u64 = 1024;

/// The host's side of a vsock device, open.
pub struct OpenVsock {
    guest_cid: u32,
    listener: VsockListener,
    /// The most sockets that are open at once.
    most: usize,
    /// Leads to a process that connects the guest's connections.
    dialer: Option<OwnedFd>,
}

impl OpenVsock {
    /// Has the guest's connections connected by the process that `dialer` leads to.
    pub fn dial_by(&mut self, dialer: OwnedFd) {
        self.dialer = Some(dialer);
    }

    /// Makes the device, with its thread.
    ///
    /// # Errors
    ///
    /// [`VmError::Host`].
    pub fn into_device(self) -> Result<Vsock, VmError> {
        let Self { guest_cid, listener, most, dialer } = self;
        Vsock::dialed_by(dialer, guest_cid, listener, most).map_err(VmError::host("start the vsock thread"))
    }
}

/// Opens the host's side of `config`, in a VM that needs `others` descriptors for all but connections.
///
/// # Errors
///
/// [`VmError::Vsock`].
pub fn open(config: &VsockConfig, others: u64) -> Result<OpenVsock, VmError> {
    let listener = VsockListener::open(&config.path)?;
    let limit = descriptors::raise_limit(others.saturating_add(MAX_SOCKETS));
    let most = limit.saturating_sub(others).clamp(1, MAX_SOCKETS);
    if most < FEW {
        tracing::warn!(
            "vsock can have {most} connections at once, for this process may have {limit} open files: \
             raise the limit (ulimit -Hn) where more are needed"
        );
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    Ok(OpenVsock { guest_cid: config.cid, listener, most, dialer: None })
}
