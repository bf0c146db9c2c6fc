//! The console device (VIRTIO 1.2, section 5.3): one port, `hvc0` in Linux.

mod config;
mod device;
mod input;
mod listener;
mod output;
#[cfg(test)]
mod tests;

pub use self::config::WindowSize;
pub use self::device::{Console, ConsoleState};
pub use self::listener::Listener;
pub use self::output::{ConsoleSink, SentPart};
