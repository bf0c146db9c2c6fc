//! The socket device (VIRTIO 1.2, section 5.10): stream connections between programs of the guest and of the host.
//!
//! The host's side is a Unix socket at a path. A process of the host connects to it and writes `CONNECT <port>\n`;
//! once a program of the guest has accepted, it reads `OK <port>\n`, and the connection is what it was connected
//! to. A connection of the guest to port P of the host (CID 2) goes to the Unix socket at the path with `_P` behind
//! it.
//!
//! A thread of the device's own serves both queues and all sockets (`worker`). `muxer` moves packets between
//! them; `connection` and `credit` are the rules of the protocol and know neither queues nor descriptors.

mod backlog;
mod connection;
mod credit;
mod device;
mod dialer;
mod handshake;
mod header;
mod listener;
mod muxer;
mod pool;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod worker;

pub use self::device::{Vsock, VsockMetrics, VsockState};
pub use self::dialer::dial;
pub use self::listener::{VsockListener, VsockPathError};
