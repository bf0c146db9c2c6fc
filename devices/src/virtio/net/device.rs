//! The device: what it offers, and the threads that work for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::super::queue::ActiveQueue;
use super::super::rate_limit::Allowance;
use super::super::{ActivateError, Activation, Queue, StopError, VirtioDevice};
use super::backend::Backend;
use super::config::{self, MAX_PAIRS, NetSettings, Offloads};
use super::control::{Control, Taps};
use super::header::{FRAME_OVERHEAD, HEADER, MAX_FRAME};
use super::mac::MacAddress;
use super::pair::{Pair, Worker};
use super::receive::{Receive, Terms};
use super::transmit::Transmit;
use crate::lock;
use crate::metrics::Metrics;

/// The MTU of Ethernet: no backend is taken for one with less.
const USUAL_MTU: u16 = 1500;

/// Why backends make no device.
#[derive(Debug, Error)]
pub enum NetError {
    /// A device has at least one pair of queues, and each is a thread.
    #[error("a network device with {0} pairs of queues cannot be had: give 1 to {MAX_PAIRS}")]
    Pairs(usize),
    /// Only a tap can have several queues.
    #[error("several queues need a tap")]
    QueuesWithoutTap,
}

/// What a snapshot has to know of a network device: what the driver chose by the control queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The hardware address.
    pub mac: MacAddress,
    /// How many pairs of queues packets come by.
    pub pairs: u16,
    /// What the driver takes unfinished, as feature bits.
    pub offloads: u64,
}

crate::metrics! {
    /// What a network device counts. Bytes are those of Ethernet frames.
    pub struct NetMetrics {
        /// Bytes that the guest was given.
        rx_bytes,
        /// Packets that the guest was given.
        rx_packets,
        /// Packets that were lost on their way to the guest: longer than the buffers for them, for the most part.
        rx_errors,
        /// How often there was no buffer of the guest's when there may have been a packet.
        rx_stalls,
        /// How often packets for the guest may have had to wait for the rate limit.
        rx_rate_limit_waits,
        /// Bytes that the guest sent.
        tx_bytes,
        /// Packets that the guest sent.
        tx_packets,
        /// Packets that were lost on their way from the guest: the host refused them.
        tx_errors,
        /// How often a packet had to wait for the backend.
        tx_stalls,
        /// How often packets of the guest had to wait for the rate limit.
        tx_rate_limit_waits,
        /// Commands by the control queue.
        control_operations,
    }
}

/// A network device.
pub struct Net {
    settings: NetSettings,
    offered: u64,
    queue_sizes: Vec<u16>,
    backends: Vec<Arc<Mutex<Backend>>>,
    taps: Arc<Mutex<Taps>>,
    workers: Vec<Worker>,
    link_is_up: Arc<AtomicBool>,
    // They go on through resets: a guest must not get a full bucket by a reset.
    receive_allowance: Allowance,
    transmit_allowance: Allowance,
    state: Arc<Mutex<NetState>>,
    metrics: Arc<NetMetrics>,
}

impl Net {
    /// Makes a device with a pair of queues for each of `backends`; several have to be queues of one tap.
    ///
    /// # Errors
    ///
    /// [`NetError`]: there can't be so many pairs.
    pub fn new(settings: NetSettings, backends: Vec<Backend>) -> Result<Self, NetError> {
        let pairs = u16::try_from(backends.len()).ok().filter(|pairs| (1..=MAX_PAIRS).contains(pairs));
        let pairs = pairs.ok_or(NetError::Pairs(backends.len()))?;
        let taps: Vec<_> = backends.iter().filter_map(Backend::tap).cloned().collect();
        if pairs > 1 && taps.len() < backends.len() {
            return Err(NetError::QueuesWithoutTap);
        }
        let offloads = backends.first().map_or(Offloads::None, Backend::offloads);
        Ok(Self {
            offered: config::features(&settings, offloads, pairs),
            queue_sizes: config::queue_sizes(pairs),
            backends: backends.into_iter().map(|backend| Arc::new(Mutex::new(backend))).collect(),
            taps: Arc::new(Mutex::new(Taps::new(taps))),
            workers: Vec::new(),
            link_is_up: Arc::new(AtomicBool::new(true)),
            receive_allowance: Allowance::new(settings.limits.receive),
            transmit_allowance: Allowance::new(settings.limits.transmit),
            state: Arc::new(Mutex::new(NetState { mac: settings.mac, pairs: 1, offloads: 0 })),
            metrics: Arc::default(),
            settings,
        })
    }

    /// Whether the backend is there.
    pub fn link_is_up(&self) -> bool {
        self.link_is_up.load(Ordering::Acquire)
    }

    fn pairs(&self) -> u16 {
        u16::try_from(self.backends.len()).unwrap_or(MAX_PAIRS)
    }

    /// Sets taps as the negotiation left them. A tap that is gone is no reason to break the device: its thread will
    /// see that.
    fn prepare_taps(&self, features: u64) -> Result<(), ActivateError> {
        let offloads = config::guest_offloads(features);
        *lock(&self.state) = NetState { mac: self.settings.mac, pairs: 1, offloads };
        let mut taps = lock(&self.taps);
        match taps.set_offloads(offloads).and_then(|()| taps.attach(1)) {
            Err(error) if error.raw_os_error() != Some(libc::EBADFD) => Err(ActivateError::Host(error)),
            _ => Ok(()),
        }
    }

    fn control(&self, activation: &mut Activation) -> Option<(u16, Control)> {
        let features = activation.features;
        let pairs = if features & (1 << VIRTIO_NET_F_MQ) != 0 { self.pairs() } else { 1 };
        if features & (1 << VIRTIO_NET_F_CTRL_VQ) == 0 {
            return None;
        }
        // A driver that negotiates a control queue and leaves it disabled has no use for it.
        let queue = ActiveQueue::take(activation, 2 * pairs).ok()?;
        let (taps, state, metrics) = (self.taps.clone(), self.state.clone(), self.metrics.clone());
        Some((2 * pairs, Control::new(queue, (features, pairs), taps, state, metrics)))
    }

    /// The length of the longest packet that a driver with `features` can be sent, header included.
    fn longest(&self, features: u64) -> usize {
        if config::takes_long_packets(features) {
            HEADER + MAX_FRAME
        } else {
            HEADER + FRAME_OVERHEAD + usize::from(self.settings.mtu.unwrap_or(USUAL_MTU).max(USUAL_MTU))
        }
    }

    fn start_pair(
        &self,
        (number, backend): (u16, &Arc<Mutex<Backend>>),
        activation: &mut Activation,
        control: Option<(u16, Control)>,
    ) -> Result<Worker, ActivateError> {
        let features = activation.features;
        let terms = Terms::new(features, self.settings.mtu, self.longest(features));
        let receive = ActiveQueue::take(activation, 2 * number)?;
        let transmit = ActiveQueue::take(activation, 2 * number + 1)?;
        let limiter = |allowance: &Allowance| allowance.limiter().map_err(ActivateError::Host);
        let receive_limiter = limiter(&self.receive_allowance)?;
        let transmit_limiter = limiter(&self.transmit_allowance)?;
        let pair = Pair {
            number,
            backend: backend.clone(),
            receive: Receive::new(receive, terms, receive_limiter, self.metrics.clone()),
            transmit: Transmit::new(transmit, transmit_limiter, self.metrics.clone()),
            control,
            notifiers: activation.notifiers.clone(),
            link_is_up: self.link_is_up.clone(),
            interrupt: activation.interrupt.clone(),
        };
        Worker::start(pair).map_err(ActivateError::Host)
    }

    fn start(&mut self, activation: &mut Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        self.prepare_taps(features)?;
        let mut control = self.control(activation);
        let all = (0..).zip(&self.backends);
        let pairs = if features & (1 << VIRTIO_NET_F_MQ) != 0 { self.pairs() } else { 1 };
        let mut workers = Vec::new();
        for (number, backend) in all.take(pairs.into()) {
            match self.start_pair((number, backend), activation, control.take()) {
                Ok(worker) => workers.push(worker),
                // A driver may use fewer pairs than there are.
                Err(ActivateError::QueueMissing(_)) if number > 0 => {}
                Err(error) => {
                    workers.into_iter().for_each(Worker::stop);
                    return Err(error);
                }
            }
        }
        self.workers = workers;
        Ok(())
    }
}

impl VirtioDevice for Net {
    type State = NetState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config_space(&self) -> Vec<u8> {
        config::space(lock(&self.state).mac, self.link_is_up(), self.pairs(), self.settings.mtu).to_vec()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.start(&mut activation)
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.workers.drain(..).for_each(Worker::stop);
        lock(&self.state).mac = self.settings.mac;
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        if !self.workers.is_empty() { Err(StopError::Unsupported) } else { Ok(Vec::new()) }
    }

    fn resume(&mut self, activation: Option<Activation>, _state: NetState) -> Result<(), ActivateError> {
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }

    /// No queue is the event loop's.
    fn queue_notified(&mut self, _index: u16) {}

    fn reads_notifier(&self, _index: u16) -> bool {
        true
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn state(&self) -> NetState {
        lock(&self.state).clone()
    }
}

impl Drop for Net {
    /// No thread outlives its device.
    fn drop(&mut self) {
        self.workers.drain(..).for_each(Worker::stop);
    }
}
