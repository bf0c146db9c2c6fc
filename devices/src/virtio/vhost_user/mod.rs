//! Devices that another process serves (vhost-user): mvm negotiates with the driver, hands the process the guest's
//! memory, the queues and their eventfds, and stays out of the way of requests.
//!
//! The back end at the other end of the socket is trusted with the guest's memory and with nothing of mvm's: what it
//! answers is checked, how long it takes is bounded, and when it goes, the device says so and the VM lives on.

mod back_end;
mod deadline;
mod device;
mod fs;
mod orphans;
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
    #[error("the vhost-user back end failed when it was to {doing}")]
    Exchange {
        /// What was asked of it.
        doing: &'static str,
        /// How it failed.
        #[source]
        source: vhost::Error,
    },
    /// It did not answer in time.
    #[error("the vhost-user back end did not {doing} within {seconds} seconds")]
    TimedOut {
        /// What was asked of it.
        doing: &'static str,
        /// For how long it was waited.
        seconds: u64,
    },
    /// It can't do what the device type or every guest needs.
    #[error("the vhost-user back end has no {0}")]
    Lacks(&'static str),
    /// It went away earlier.
    #[error("the vhost-user back end has gone")]
    Gone,
    /// The guest's memory has no file that could be shared.
    #[error("the guest's memory is not shared with other processes")]
    PrivateMemory,
    /// The device's interrupt is not one that another process could raise.
    #[error("the device's interrupt is not shared with other processes")]
    PrivateInterrupt,
    /// The host has no descriptor or thread left.
    #[error("cannot set up the connection to the vhost-user back end")]
    Host(#[source] io::Error),
}
