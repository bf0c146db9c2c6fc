//! Devices that another process serves (vhost-user): mvm negotiates with the driver and gives the process the guest's
//! memory, the queues and their eventfds. Requests don't pass through mvm.
//!
//! The back end at the other end of the socket can access the guest's memory, and is not trusted otherwise: its answers
//! are checked, it has a deadline for each, and when it is gone, requests fail and the VM lives on.

mod back_end;
mod device;
mod fs;
mod lost;
#[cfg(test)]
mod tests;
mod watch;

use std::io;

use thiserror::Error;

pub use self::device::{VhostUser, VhostUserState};
pub use self::fs::{ShareTag, ShareTagError};

/// Why a back end can't be used.
#[derive(Debug, Error)]
pub enum VhostUserError {
    /// It refused something, broke the protocol, or went away.
    #[error("the vhost-user back end failed to {doing}")]
    Exchange {
        /// What it was asked for.
        doing: &'static str,
        /// How it failed.
        #[source]
        source: vhost::Error,
    },
    /// It did not answer in time.
    #[error("the vhost-user back end did not {doing} within {seconds} seconds")]
    TimedOut {
        /// What it was asked for.
        doing: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// It lacks a feature that the device type or every guest needs.
    #[error("the vhost-user back end lacks {0}")]
    Lacks(&'static str),
    /// It is gone.
    #[error("the vhost-user back end is gone")]
    Gone,
    /// The guest's memory has no file that could be shared.
    #[error("the guest's memory is not shared with other processes")]
    PrivateMemory,
    /// Another process can't raise the device's interrupt.
    #[error("the device's interrupt is not shared with other processes")]
    PrivateInterrupt,
    /// The host has no descriptor or thread left.
    #[error("cannot set up the connection to the vhost-user back end")]
    Host(#[source] io::Error),
}
