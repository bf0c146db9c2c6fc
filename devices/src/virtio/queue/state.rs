//! A queue while no device works on it.

use std::num::Wrapping;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

/// A queue that the driver enabled: its rings and how far device and driver have come in them.
///
/// The transport gives it to the device ([`Activation::queues`](crate::virtio::Activation::queues)), and the device
/// gives it back when it is suspended.
#[derive(Debug)]
pub struct Queue {
    pub(super) rings: virtio_queue::Queue,
    /// The used index when it was last decided whether to signal the driver.
    pub(super) signalled: Wrapping<u16>,
    /// The driver broke a rule: nothing is taken from the queue until the device is reset.
    pub(super) broken: bool,
}

/// The position of a queue: what of it is not in guest memory and not in the transport's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The available index of the next chain to take, modulo 2^16.
    pub next_available: u16,
    /// The used index that the next chain goes back with, modulo 2^16.
    pub next_used: u16,
    /// The used index when it was last decided whether to signal the driver (2.7.10).
    pub signalled: u16,
    /// The driver broke a rule: nothing is taken from the queue until the device is reset.
    pub broken: bool,
}

impl Queue {
    /// The queue as it begins, with `rings` that were checked.
    pub fn new(rings: virtio_queue::Queue) -> Self {
        Self { signalled: Wrapping(rings.next_used()), rings, broken: false }
    }

    /// Where the queue is.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_available: self.rings.next_avail(),
            next_used: self.rings.next_used(),
            signalled: self.signalled.0,
            broken: self.broken,
        }
    }

    /// Puts the queue where another was.
    pub fn set_state(&mut self, state: QueueState) {
        self.rings.set_next_avail(state.next_available);
        self.rings.set_next_used(state.next_used);
        self.signalled = Wrapping(state.signalled);
        self.broken = state.broken;
    }
}

/// The rings.
impl Deref for Queue {
    type Target = virtio_queue::Queue;

    fn deref(&self) -> &virtio_queue::Queue {
        &self.rings
    }
}

impl DerefMut for Queue {
    fn deref_mut(&mut self) -> &mut virtio_queue::Queue {
        &mut self.rings
    }
}
