//! The network device (VIRTIO 1.2, section 5.1).
//!
//! Each pair of a receive queue and a transmit queue has a thread of its own (`thread`), which is made with the device
//! and moves packets between the guest's buffers and a [`Backend`] without a copy in between.

mod backend;
mod config;
mod control;
mod device;
mod header;
mod interface;
mod mac;
mod pair;
mod receive;
mod route;
mod shared;
mod stream;
mod tap;
mod taps;
#[cfg(test)]
mod tests;
mod thread;
mod transmit;

pub use self::backend::Backend;
pub use self::config::{MAX_MTU, MAX_PAIRS, MIN_MTU, NetLimits, NetSettings};
pub use self::device::{Net, NetError, NetMetrics, NetState};
pub use self::interface::{Interface, InterfaceName, InterfaceNameError};
pub use self::mac::{MacAddress, MacAddressError};
pub use self::stream::{Stream, StreamState};
pub use self::tap::{Tap, TapError};
