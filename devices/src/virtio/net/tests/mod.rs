//! What a driver and a backend see of a network device.

mod control;
mod hostile;
mod limits;
mod receive;
mod stream;
mod suspend;
mod taps;
mod threads;
mod transmit;

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};

use super::backend::{Backend, BackendError};
use super::device::NetMetrics;
use super::header::{FRAME_OVERHEAD, HEADER, MAX_FRAME};
use super::receive::{Receive, ReceiveMode, Wait};
use super::tap::{Ioctls, Tap};
use super::transmit::Transmit;
use crate::virtio::queue::ActiveQueue;
use crate::virtio::rate_limit::{RateLimiter, RateLimits};
use crate::virtio::testing::{Driver, FREE, WRITE};

/// A packet of `length` bytes of a frame, with a header that no backend but a tap would give.
fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0];
    packet.extend((0..length).map(|index| u8::try_from(index % 251).unwrap()));
    packet
}

/// The same as the driver has to find it in `buffers` buffers.
fn received(length: usize, buffers: u16) -> Vec<u8> {
    let mut packet = packet(length);
    packet[HEADER - 2..HEADER].copy_from_slice(&buffers.to_le_bytes());
    packet
}

/// A pair of queues with a driver on one side and a backend on the other, and no thread between them.
struct Rig {
    rx: Driver,
    tx: Driver,
    receive: Receive,
    transmit: Transmit,
    backend: Backend,
    metrics: Arc<NetMetrics>,
}

/// Packets that are longer than Ethernet's.
const LONG: usize = HEADER + MAX_FRAME;
/// Packets that are not.
const SHORT: usize = HEADER + FRAME_OVERHEAD + 1500;

/// A driver that takes offloads, and packets in several buffers where it is `mergeable`.
fn mergeable_mode(mergeable: bool, longest: usize) -> ReceiveMode {
    let merge = if mergeable { 1 << VIRTIO_NET_F_MRG_RXBUF } else { 0 };
    ReceiveMode::new(merge | 1 << VIRTIO_NET_F_GUEST_CSUM, None, longest)
}

impl Rig {
    fn new(backend: Backend, mergeable: bool, longest: usize) -> Self {
        Self::with_mode(backend, mergeable_mode(mergeable, longest))
    }

    fn with_mode(backend: Backend, mode: ReceiveMode) -> Self {
        Self::limited(backend, mode, RateLimits::default())
    }

    fn limited(backend: Backend, mode: ReceiveMode, limits: RateLimits) -> Self {
        let mut drivers = Driver::several(&[16, 16]);
        let mut activation = Driver::activation_of(&drivers, 0);
        let (tx, rx) = (drivers.pop().unwrap(), drivers.pop().unwrap());
        let metrics = Arc::<NetMetrics>::default();
        let receive = ActiveQueue::take(&mut activation, 0).unwrap();
        let transmit = ActiveQueue::take(&mut activation, 1).unwrap();
        Self {
            rx,
            tx,
            receive: Receive::new(receive, mode, RateLimiter::new(limits).unwrap(), metrics.clone()),
            transmit: Transmit::new(transmit, RateLimiter::new(limits).unwrap(), metrics.clone()),
            backend,
            metrics,
        }
    }

    fn receive(&mut self, wait_for_buffers: bool) -> Result<Wait, BackendError> {
        self.receive.turn(&mut self.backend, wait_for_buffers, self.transmit.queue())
    }

    /// With a tap, whose other end is given too.
    fn with_tap(mergeable: bool, longest: usize) -> (Self, UnixDatagram) {
        let (backend, wire, _) = tap();
        (Self::new(backend, mergeable, longest), wire)
    }
}

fn tap() -> (Backend, UnixDatagram, Ioctls) {
    let (near, wire) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    let ioctls = Ioctls::default();
    (Backend::Tap(Tap::of_socket(near, ioctls.clone())), wire, ioctls)
}

/// What there is on the wire, packet by packet.
fn take_all(wire: &UnixDatagram) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    while let Ok(length) = wire.recv(&mut buffer) {
        packets.push(buffer[..length].to_vec());
    }
    packets
}
