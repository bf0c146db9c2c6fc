//! The conversation with a back end.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::{Activation, Queue};
use super::VhostUserError;
use super::deadline::within;

/// How long a back end may take to begin, to start its queues, and to stop them; a vCPU waits for the latter two. A
/// healthy one takes milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What the transport offers to every driver, so that every back end has to have it.
const NEEDED: [(u32, &str); 3] = [
    (VIRTIO_F_VERSION_1, "support for VIRTIO 1 (VIRTIO_F_VERSION_1)"),
    (VIRTIO_RING_F_INDIRECT_DESC, "support for indirect descriptors (VIRTIO_F_INDIRECT_DESC)"),
    (VIRTIO_RING_F_EVENT_IDX, "support for event indexes (VIRTIO_F_EVENT_IDX)"),
];

/// A back end that answers.
pub(super) struct BackEnd {
    front_end: Frontend,
    /// The same socket, to shut down and to watch.
    socket: UnixStream,
    patience: Duration,
    /// The feature bits that it offered.
    features: u64,
    /// The queues that run.
    started: Vec<usize>,
}

/// What went wrong in an exchange, with what was being done.
type Failure = (&'static str, vhost::Error);

fn failed(doing: &'static str) -> impl FnOnce(vhost::Error) -> Failure {
    move |error| (doing, error)
}

impl BackEnd {
    /// Negotiates with the back end at the other end of `socket`, which has to serve `queues` queues and gets
    /// `patience` for anything that it is asked.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`] says what it did wrong or can't do.
    pub(super) fn negotiate(
        socket: UnixStream,
        queues: usize,
        patience: Duration,
    ) -> Result<Self, VhostUserError> {
        let own = socket.try_clone().map_err(VhostUserError::Host)?;
        let mut front_end = Frontend::from_stream(own, queues as u64);
        let limit = patience.as_secs();
        let features = match within(patience, &socket, || begin(&mut front_end, queues)) {
            Ok(Some(Ok(features))) => features,
            Ok(Some(Err((doing, source)))) => return Err(VhostUserError::Exchange { doing, source }),
            Ok(None) => return Err(VhostUserError::TimedOut { doing: "answer", seconds: limit }),
            Err(error) => return Err(VhostUserError::Host(error)),
        };
        for (bit, what) in NEEDED {
            if features & 1 << bit == 0 {
                return Err(VhostUserError::Lacks(what));
            }
        }
        Ok(Self { front_end, socket, patience, features, started: Vec::new() })
    }

    /// The feature bits that it offers to the driver.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    #[cfg(test)]
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The socket to it.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Gives it the guest's memory and the queues, and starts them. It raises the device's interrupt itself.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`]; then it is of no more use.
    pub(super) fn start(&mut self, activation: &Activation) -> Result<(), VhostUserError> {
        let rings = rings(activation)?;
        self.started = rings.iter().map(|ring| ring.index).collect();
        let regions: Result<Vec<_>, _> =
            activation.memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        let regions = regions.map_err(|_| VhostUserError::PrivateMemory)?;
        let features = activation.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.exchange("start its queues", |front_end| {
            front_end.set_features(features).map_err(failed("take the features"))?;
            front_end.set_mem_table(&regions).map_err(failed("take the guest's memory"))?;
            rings.iter().try_for_each(|ring| ring.start(front_end))
        })
    }

    /// Stops its queues: when it has answered, it touches the guest's memory no more.
    ///
    /// # Errors
    ///
    /// [`VhostUserError`]; then it is of no more use.
    pub(super) fn stop(&mut self) -> Result<(), VhostUserError> {
        let started = std::mem::take(&mut self.started);
        if started.is_empty() {
            return Ok(());
        }
        self.exchange("stop its queues", |front_end| {
            started.into_iter().try_for_each(|index| {
                front_end.set_vring_enable(index, false).map_err(failed("disable a queue"))?;
                front_end.get_vring_base(index).map(drop).map_err(failed("stop a queue"))
            })
        })
    }

    fn exchange(
        &mut self,
        doing: &'static str,
        exchange: impl FnOnce(&mut Frontend) -> Result<(), Failure>,
    ) -> Result<(), VhostUserError> {
        let Self { front_end, socket, patience, .. } = self;
        match within(*patience, socket, || exchange(front_end)) {
            Ok(Some(result)) => result.map_err(|(doing, source)| VhostUserError::Exchange { doing, source }),
            Ok(None) => Err(VhostUserError::TimedOut { doing, seconds: patience.as_secs() }),
            Err(error) => Err(VhostUserError::Host(error)),
        }
    }
}

/// Settles the protocol's own features, and returns what the back end offers to the driver.
fn begin(front_end: &mut Frontend, queues: usize) -> Result<u64, Failure> {
    front_end.set_owner().map_err(failed("take an owner"))?;
    let features = front_end.get_features().map_err(failed("name its features"))?;
    // `vhost` refuses it where the back end has no such features: enabling a queue is one of them.
    let protocol = front_end.get_protocol_features().map_err(failed("name its protocol features"))?;
    let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    front_end.set_protocol_features(protocol & wanted).map_err(failed("take the protocol features"))?;
    if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        // From here on each request is answered, so that a refusal is seen.
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    if protocol.contains(VhostUserProtocolFeatures::MQ) {
        let most = front_end.get_queue_num().map_err(failed("count its queues"))?;
        if most < queues as u64 {
            return Err(("have as many queues as the device", vhost::Error::InvalidQueue));
        }
    }
    Ok(features)
}

/// A queue as a back end is told of it.
struct Ring<'a> {
    index: usize,
    size: u16,
    base: u16,
    addresses: VringConfigData,
    kick: &'a EventFd,
    call: &'a EventFd,
}

/// The queues that the driver enabled.
fn rings(activation: &Activation) -> Result<Vec<Ring<'_>>, VhostUserError> {
    let queues = activation.queues.iter().zip(activation.notifiers.iter()).enumerate();
    let enabled = queues.filter_map(|(index, (queue, kick))| Some((index, queue.as_ref()?, kick)));
    enabled
        .map(|(index, queue, kick)| {
            let addresses = addresses(queue, &activation.memory)?;
            let call = u16::try_from(index).ok().and_then(|index| activation.interrupt.queue_eventfd(index));
            let call = call.ok_or(VhostUserError::PrivateInterrupt)?;
            Ok(Ring { index, size: queue.size(), base: queue.next_avail(), addresses, kick, call })
        })
        .collect()
}

/// Where the parts of a queue lie in this process, which is how a back end is told of them.
fn addresses(queue: &Queue, memory: &GuestMemoryMmap) -> Result<VringConfigData, VhostUserError> {
    let host = |address: u64| {
        // The transport has checked that the rings lie in memory.
        let pointer = memory.get_host_address(GuestAddress(address));
        pointer.map(|pointer| pointer as u64).map_err(|_| VhostUserError::PrivateMemory)
    };
    Ok(VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: host(queue.desc_table())?,
        used_ring_addr: host(queue.used_ring())?,
        avail_ring_addr: host(queue.avail_ring())?,
        log_addr: None,
    })
}

impl Ring<'_> {
    fn start(&self, front_end: &mut Frontend) -> Result<(), Failure> {
        let Self { index, size, base, addresses, kick, call } = self;
        front_end.set_vring_num(*index, *size).map_err(failed("take a queue's size"))?;
        front_end.set_vring_addr(*index, addresses).map_err(failed("take a queue's addresses"))?;
        front_end.set_vring_base(*index, *base).map_err(failed("take a queue's position"))?;
        front_end.set_vring_call(*index, call).map_err(failed("take a queue's interrupt"))?;
        front_end.set_vring_kick(*index, kick).map_err(failed("take a queue's notifier"))?;
        front_end.set_vring_enable(*index, true).map_err(failed("enable a queue"))
    }
}
