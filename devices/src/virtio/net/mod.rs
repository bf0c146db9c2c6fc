//! The network device (VIRTIO 1.2, section 5.1).
//!
//! A pair of a receive queue and a transmit queue is served by a thread of its own (`pair`), which moves packets
//! straight between the guest's buffers and a [`Backend`].

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
mod stream;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

pub use self::backend::Backend;
pub use self::config::{MAX_MTU, MAX_PAIRS, MIN_MTU, NetLimits, NetSettings};
pub use self::device::{Net, NetError, NetMetrics, NetState};
pub use self::interface::{Interface, InterfaceName, InterfaceNameError};
pub use self::mac::{MacAddress, MacAddressError};
pub use self::stream::Stream;
pub use self::tap::{Tap, TapError};
