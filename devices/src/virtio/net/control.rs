//! The control queue (5.1.6.5): the driver says how the device is to work.

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use vm_memory::GuestMemoryMmap;

use super::super::queue::{ActiveQueue, Buffers, Chain};
use super::config;
use super::device::{NetMetrics, NetState};
use super::mac::MacAddress;
use super::tap::Tap;
use crate::lock;

/// The queues of the tap, of which the driver chooses how many work; none, where the backend is no tap.
pub(super) struct Taps {
    taps: Vec<Tap>,
    attached: usize,
}

impl Taps {
    /// All of `taps` are attached.
    pub(super) fn new(taps: Vec<Tap>) -> Self {
        Self { attached: taps.len(), taps }
    }

    /// Lets packets come by the first `count` queues only.
    pub(super) fn attach(&mut self, count: usize) -> io::Result<()> {
        while self.attached > count.max(1) {
            if let Some(last) = self.taps.get(self.attached - 1) {
                last.set_attached(false)?;
            }
            self.attached -= 1;
        }
        while self.attached < count.min(self.taps.len()) {
            if let Some(next) = self.taps.get(self.attached) {
                next.set_attached(true)?;
            }
            self.attached += 1;
        }
        Ok(())
    }

    /// Says what the driver takes, as feature bits have it.
    pub(super) fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        // They are the interface's: the first queue says it for all, as it alone is always attached.
        self.taps.first().map_or(Ok(()), |tap| tap.set_offloads(config::tap_offloads(offloads)))
    }
}

/// A control queue at work.
pub(super) struct Control {
    queue: ActiveQueue,
    features: u64,
    pairs: u16,
    taps: Arc<Mutex<Taps>>,
    state: Arc<Mutex<NetState>>,
    metrics: Arc<NetMetrics>,
}

impl Control {
    /// A queue whose commands change `taps` and `state`, for a driver that accepted `features`.
    pub(super) fn new(
        queue: ActiveQueue,
        (features, pairs): (u64, u16),
        taps: Arc<Mutex<Taps>>,
        state: Arc<Mutex<NetState>>,
        metrics: Arc<NetMetrics>,
    ) -> Self {
        Self { queue, features, pairs, taps, state, metrics }
    }

    /// Answers all commands. Linux spins until each is.
    pub(super) fn turn(&mut self) {
        let mut chain = Chain::default();
        self.queue.start_turn();
        while self.queue.pop(&mut chain) {
            let memory = Arc::clone(self.queue.memory());
            let done = self.command(&memory, &mut chain.readable).is_some();
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            self.metrics.control_operations.increment();
            if chain.writable.put(&memory, &[u8::try_from(answer).unwrap_or(u8::MAX)]) == 0 {
                self.queue.fail_chain(chain.head);
                return;
            }
            self.queue.add_used(chain.head, 1);
        }
        self.queue.end_turn();
    }

    /// Does a command; `None`, where it is unknown or wrong.
    fn command(&self, memory: &GuestMemoryMmap, command: &mut Buffers) -> Option<()> {
        let [class, number] = take(memory, command)?;
        let has = |feature: u32| (self.features & (1 << feature) != 0).then_some(());
        match (class.into(), number.into()) {
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                has(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                lock(&self.state).mac = MacAddress::new(take(memory, command)?)?;
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                has(VIRTIO_NET_F_MQ)?;
                let pairs = u16::from_le_bytes(take(memory, command)?);
                (1..=self.pairs).contains(&pairs).then_some(())?;
                done(lock(&self.taps).attach(pairs.into()))?;
                lock(&self.state).pairs = pairs;
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                let offloads = u64::from_le_bytes(take(memory, command)?);
                (offloads & !config::guest_offloads(self.features) == 0).then_some(())?;
                done(lock(&self.taps).set_offloads(offloads))?;
                lock(&self.state).offloads = offloads;
            }
            _ => return None,
        }
        Some(())
    }
}

fn take<const LENGTH: usize>(memory: &GuestMemoryMmap, command: &mut Buffers) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    command.take(memory, &mut bytes).then_some(bytes)
}

fn done(result: io::Result<()>) -> Option<()> {
    result.inspect_err(|error| tracing::warn!(%error, "a tap refuses what the guest asked for")).ok()
}
