//! Random bytes of the host for the guest.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::GuestMemoryMmap;

use crate::metrics::Metrics;
use crate::virtio::queue::{ActiveQueue, Budget, Chain};
use crate::virtio::{ActivateError, Activation, Queue, StopError, VirtioDevice};

/// The requests queue (5.4.2).
const REQUESTS: u16 = 0;
const QUEUE_SIZES: [u16; 1] = [64];
/// The most bytes that one request gets. A driver may ask for 4 GiB, and would hold up the event loop with
/// it; a device may fill less than the buffer has room for (5.4.6.1).
const MAX_REQUEST: usize = 64 << 10;
/// The most bytes taken from the kernel at once, on the stack. The kernel gives as many without interruption.
const PIECE: usize = 256;
/// What a turn may cost: a few requests of the largest size.
const BUDGET: Budget = Budget { bytes: 256 << 10, host_calls: 1024, ..Budget::TURN };

/// The state of an entropy device: it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

crate::metrics! {
    /// What an entropy device counts.
    pub struct RngMetrics {
        /// Requests answered.
        request_operations,
        /// Random bytes given.
        random_bytes,
    }
}

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    requests: Option<ActiveQueue>,
    metrics: Arc<RngMetrics>,
}

impl Rng {
    /// Makes a device; it takes its bytes from the kernel's generator.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Fills what `chain` lets the device write, up to [`MAX_REQUEST`], and gives the count of bytes.
fn answer(chain: &mut Chain, memory: &GuestMemoryMmap) -> u32 {
    let mut piece = [0; PIECE];
    let mut written = 0;
    while written < MAX_REQUEST {
        let random = match getrandom(&mut piece, GetRandomFlags::empty()) {
            Ok(length) => piece.get(..length).unwrap_or_default(),
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "the host gives no random bytes");
                break;
            }
        };
        let here = chain.writable.put(memory, random);
        written += here;
        if here < random.len() {
            break;
        }
    }
    u32::try_from(written).unwrap_or(u32::MAX)
}

impl VirtioDevice for Rng {
    type State = RngState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// An entropy device has no config space (5.4.4).
    fn config_space(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.requests = Some(ActiveQueue::take(&mut activation, REQUESTS)?.in_ram().with_budget(BUDGET));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.requests = None;
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        Ok(vec![self.requests.take().map(ActiveQueue::into_queue)])
    }

    fn resume(&mut self, activation: Option<Activation>, RngState {}: RngState) -> Result<(), ActivateError> {
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }

    fn queue_notified(&mut self, _index: u16) {
        let Some(queue) = &mut self.requests else { return };
        let mut chain = Chain::default();
        queue.start_turn();
        while queue.pop(&mut chain) {
            let head = chain.head;
            let written = answer(&mut chain, queue.memory());
            queue.spend(written.into(), u64::from(written).div_ceil(PIECE as u64));
            queue.add_used(head, written);
            self.metrics.request_operations.increment();
            self.metrics.random_bytes.add(written.into());
        }
        queue.end_turn();
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn state(&self) -> RngState {
        RngState {}
    }
}
