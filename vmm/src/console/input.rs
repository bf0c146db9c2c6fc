//! From those who type to the guest, as fast as the guest reads and no faster.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::SerialInput;
use devices::virtio::console::Console;
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

/// The device that takes what is typed.
pub enum InputPort {
    /// The serial port.
    Serial(SerialInput),
    /// A virtio console, and the event by which it says that there is room.
    Virtio(Arc<Mutex<Console>>, EventFd),
}

impl InputPort {
    /// How many bytes the device takes now.
    pub(super) fn room(&self) -> usize {
        match self {
            Self::Serial(serial) => serial.capacity(),
            Self::Virtio(console, _) => console.lock().unwrap_or_else(PoisonError::into_inner).input_room(),
        }
    }

    /// Types `bytes`, for which there is room.
    pub(super) fn enqueue(&self, bytes: &[u8]) {
        match self {
            Self::Serial(serial) => {
                if let Err(error) = serial.enqueue(bytes) {
                    tracing::warn!(%error, "cannot raise the console's interrupt");
                }
            }
            Self::Virtio(console, _) => {
                console.lock().unwrap_or_else(PoisonError::into_inner).input(bytes);
            }
        }
    }

    /// Becomes readable when there is room again.
    pub(super) fn drained(&self) -> &EventFd {
        match self {
            Self::Serial(serial) => serial.drained(),
            Self::Virtio(_, drained) => drained,
        }
    }
}

/// Reads up to `room` bytes from `source`, which `take` is given; false where there will be no more.
pub(super) fn pump(source: impl AsFd, room: usize, take: impl FnOnce(&[u8])) -> bool {
    let mut buffer = [0; 256];
    let room = room.min(buffer.len());
    // A read of nothing would look like an end.
    let Some(buffer) = buffer.get_mut(..room).filter(|buffer| !buffer.is_empty()) else { return true };
    match rustix::io::read(source, &mut *buffer) {
        Ok(0) => false,
        Ok(read) => {
            take(buffer.get(..read).unwrap_or_default());
            true
        }
        Err(Errno::AGAIN | Errno::INTR) => true,
        Err(error) => {
            tracing::debug!(error = %io::Error::from(error), "an input of the console ends");
            false
        }
    }
}
