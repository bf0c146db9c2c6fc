//! The device: what the transport sees of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::super::{ActivateError, Activation, Queue, StopError, VirtioDevice};
use super::listener::VsockListener;
use super::muxer::Setup;
use super::worker::Worker;
use crate::metrics::Metrics;

/// Receive, transmit and event queue (5.10.2). A packet is at least two buffers for Linux before 6.2, which then uses
/// indirect descriptors.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Streams are supported (5.10.3).
const VIRTIO_VSOCK_F_STREAM: u64 = 0;

/// What a snapshot has to know of a socket device. Connections don't outlive it: their other ends are processes of
/// the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's CID.
    pub guest_cid: u32,
}

crate::metrics! {
    /// What a socket device counts.
    pub struct VsockMetrics {
        /// Bytes that the guest got.
        rx_bytes,
        /// Packets that the guest got.
        rx_packets,
        /// Bytes that the guest sent.
        tx_bytes,
        /// Packets that the guest sent.
        tx_packets,
        /// Packets of the guest that belong nowhere or are cut short.
        invalid_packets,
        /// Connections that both sides took.
        opened_connections,
        /// Connections that could not be, from either side.
        refused_connections,
        /// Connections that ended with an error or a broken rule.
        reset_connections,
        /// Times that the guest had no buffer for what there was.
        rx_stalls,
        /// Times that a socket of the host had no room for what the guest sent.
        tx_stalls,
        /// Times that a connection's reader in the guest had fallen behind.
        credit_stalls,
    }
}

/// A socket device.
pub struct Vsock {
    guest_cid: u32,
    setup: Setup,
    worker: Option<Worker>,
}

impl Vsock {
    /// Makes a device of a guest with the CID `guest_cid`. Processes of the host come by way of `listener`, and at
    /// most `most` sockets are open at once.
    pub fn new(guest_cid: u32, listener: VsockListener, most: usize) -> Self {
        let setup = Setup {
            guest_cid: guest_cid.into(),
            listener: Arc::new(listener),
            most,
            metrics: Arc::default(),
        };
        Self { guest_cid, setup, worker: None }
    }
}

impl VirtioDevice for Vsock {
    type State = VsockState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// The guest's CID (5.10.4).
    fn config_space(&self) -> Vec<u8> {
        u64::from(self.guest_cid).to_le_bytes().to_vec()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker = Some(Worker::start(self.setup.clone(), activation)?);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.worker = None;
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        if self.worker.is_some() { Err(StopError::Unsupported) } else { Ok(Vec::new()) }
    }

    fn resume(&mut self, activation: Option<Activation>, _state: VsockState) -> Result<(), ActivateError> {
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }

    /// The event queue is for a device that moved to another host (5.10.6.7); this one has nothing to say.
    fn queue_notified(&mut self, _index: u16) {}

    fn reads_notifier(&self, _index: u16) -> bool {
        true
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.setup.metrics.clone()
    }

    fn state(&self) -> VsockState {
        VsockState { guest_cid: self.guest_cid }
    }
}
