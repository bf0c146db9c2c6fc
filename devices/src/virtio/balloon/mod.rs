//! The memory balloon (VIRTIO 1.2, section 5.5): memory that the guest has no use for goes back to the host.

mod device;
mod handle;
mod pages;
mod ranges;
mod statistics;
#[cfg(test)]
mod tests;

pub use self::device::{Balloon, BalloonMetrics, BalloonState};
pub use self::handle::{BalloonHandle, TargetError};
pub use self::statistics::Statistics;
