//! The device: what the transport sees of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::dialer::Dialer;
use super::listener::VsockListener;
use super::muxer::{Flag, Setup};
use super::worker::{self, Command, Reply, Thread};
use crate::metrics::Metrics;
use crate::virtio::{ActivateError, Activation, Queue, StopError, VirtioDevice};

/// Receive, transmit and event queue (5.10.2). A packet is at least two buffers for Linux before 6.2, which then uses
/// indirect descriptors.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Streams are supported (5.10.3).
const VIRTIO_VSOCK_F_STREAM: u64 = 0;

/// The state of a socket device beyond its queues. Connections are not part of it: their other ends are processes of
/// the host that the state was saved on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The driver has yet to hear that its connections are gone (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, 5.10.6.7).
    pub reset_event: bool,
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

/// A socket device. Its thread serves all queues.
pub struct Vsock {
    guest_cid: u32,
    metrics: Arc<VsockMetrics>,
    reset_event: Flag,
    thread: Thread,
}

impl Vsock {
    /// Makes a device of a guest with the CID `guest_cid`, and its thread. Processes of the host connect to `listener`,
    /// and at most `most` sockets are open at once.
    ///
    /// # Errors
    ///
    /// The host has no descriptor or no thread left.
    pub fn new(guest_cid: u32, listener: VsockListener, most: usize) -> io::Result<Self> {
        Self::dialed_by(None, guest_cid, listener, most)
    }

    /// The same, whose guest's connections are connected by a process that calls [`dial`](super::dial) with the other end
    /// of `dialer`, where there is one.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn dialed_by(
        dialer: Option<OwnedFd>,
        guest_cid: u32,
        listener: VsockListener,
        most: usize,
    ) -> io::Result<Self> {
        let (metrics, reset_event) = (Arc::default(), Flag::default());
        let setup = Setup {
            guest_cid: guest_cid.into(),
            listener: Arc::new(listener),
            dialer: dialer.map(Dialer::new).map(Arc::new),
            most,
            metrics: Arc::clone(&metrics),
            epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?),
            reset_event: reset_event.clone(),
        };
        Ok(Self { guest_cid, metrics, reset_event, thread: worker::start(setup)? })
    }

    fn start(&self, command: Command) -> Result<(), ActivateError> {
        match self.thread.call(command)? {
            Reply::Refused(error) => Err(error),
            Reply::Done | Reply::Queues(_) => Ok(()),
        }
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
        self.start(Command::Activate(activation))
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.thread.call(Command::Reset)?;
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        match self.thread.call(Command::Suspend)? {
            Reply::Queues(queues) => Ok(queues),
            Reply::Done | Reply::Refused(_) => Ok(Vec::new()),
        }
    }

    /// A device that was suspended goes on with its connections; a new one tells the driver that they are gone.
    fn resume(&mut self, activation: Option<Activation>, state: VsockState) -> Result<(), ActivateError> {
        if state.reset_event {
            self.reset_event.set(true);
        }
        self.start(Command::Resume(activation))
    }

    fn state(&self) -> VsockState {
        VsockState { reset_event: self.reset_event.get() }
    }

    fn queue_notified(&mut self, _index: u16) {}

    fn reads_notifier(&self, _index: u16) -> bool {
        true
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }
}
