//! The control queue (5.1.6.5), by which the driver changes settings of the device.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use vm_memory::GuestMemoryMmap;

use super::config;
use super::device::Shared;
use super::mac::MacAddress;
use super::taps::{TapSettings, Taps};
use crate::lock;
use crate::virtio::Queue;
use crate::virtio::queue::{ActiveQueue, Buffers, Chain};

/// How a command went.
enum Outcome {
    /// It was done.
    Done,
    /// It is unknown or invalid, or the host refused it.
    Failed,
    /// It changes the tap, and has to wait until it may.
    Waits,
}

/// A control queue that the device works on.
pub(super) struct Control {
    queue: ActiveQueue,
    features: u64,
    pairs: u16,
    shared: Arc<Shared>,
}

impl Control {
    /// A queue whose commands change a device of `pairs` pairs, for a driver that accepted `features`.
    pub(super) fn new(queue: ActiveQueue, features: u64, pairs: u16, shared: Arc<Shared>) -> Self {
        Self { queue, features, pairs, shared }
    }

    /// Does all commands, unless one has to wait until it may change the tap: it stays in the queue with those behind
    /// it. Linux's driver waits for each.
    pub(super) fn turn(&mut self, taps: &mut Taps) {
        let mut chain = Chain::default();
        self.queue.start_turn();
        while self.queue.pop(&mut chain) {
            let memory = Arc::clone(self.queue.memory());
            let answer = match self.command(&memory, &mut chain.readable, taps) {
                Outcome::Done => VIRTIO_NET_OK,
                Outcome::Failed => VIRTIO_NET_ERR,
                Outcome::Waits => {
                    self.queue.put_back(1);
                    break;
                }
            };
            self.shared.metrics.control_operations.increment();
            if chain.writable.put(&memory, &[u8::try_from(answer).unwrap_or(u8::MAX)]) == 0 {
                self.queue.fail_chain(chain.head);
                return;
            }
            self.queue.add_used(chain.head, 1);
        }
        self.queue.end_turn();
    }

    /// Gives the queue back, with its position.
    pub(super) fn into_queue(self) -> Queue {
        self.queue.into_queue()
    }

    fn command(&mut self, memory: &GuestMemoryMmap, command: &mut Buffers, taps: &mut Taps) -> Outcome {
        let Some(change) = self.read(memory, command) else { return Outcome::Failed };
        let mut settings = lock(&self.shared.settings);
        let mut tap = TapSettings { pairs: settings.pairs, offloads: settings.offloads };
        match change {
            Change::Mac(mac) => {
                settings.mac = mac;
                drop(settings);
                self.queue.interrupt().config_updated(&self.shared.config_space());
                return Outcome::Done;
            }
            Change::Pairs(pairs) => tap.pairs = pairs,
            Change::Offloads(offloads) => tap.offloads = offloads,
        }
        // The config space is read under this lock, and an ioctl may take long.
        drop(settings);
        match taps.try_set(tap) {
            Ok(Some(ioctls)) => {
                self.queue.spend(0, ioctls);
                let mut settings = lock(&self.shared.settings);
                (settings.pairs, settings.offloads) = (tap.pairs, tap.offloads);
                Outcome::Done
            }
            Ok(None) => Outcome::Waits,
            Err(error) => refused(&error),
        }
    }

    /// Reads a command; `None` if it is unknown or invalid.
    fn read(&self, memory: &GuestMemoryMmap, command: &mut Buffers) -> Option<Change> {
        let [class, number] = take(memory, command)?;
        let has = |feature: u32| (self.features & (1 << feature) != 0).then_some(());
        Some(match (class.into(), number.into()) {
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                has(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                Change::Mac(MacAddress::new(take(memory, command)?)?)
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                has(VIRTIO_NET_F_MQ)?;
                let pairs = u16::from_le_bytes(take(memory, command)?);
                (1..=self.pairs).contains(&pairs).then_some(Change::Pairs(pairs))?
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                let offloads = u64::from_le_bytes(take(memory, command)?);
                (offloads & !config::guest_offloads(self.features) == 0)
                    .then_some(Change::Offloads(offloads))?
            }
            _ => return None,
        })
    }
}

/// What a command changes.
enum Change {
    Mac(MacAddress),
    Pairs(u16),
    Offloads(u64),
}

fn take<const LENGTH: usize>(memory: &GuestMemoryMmap, command: &mut Buffers) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    command.take(memory, &mut bytes).then_some(bytes)
}

fn refused(error: &io::Error) -> Outcome {
    tracing::warn!(%error, "a tap refuses what the guest's driver asked for");
    Outcome::Failed
}
