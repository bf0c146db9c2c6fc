//! The device: what it offers, and the threads that work for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::backend::Backend;
use super::config::{self, MAX_PAIRS, NetSettings, Offloads};
use super::header::{FRAME_OVERHEAD, HEADER, MAX_FRAME};
use super::mac::MacAddress;
use super::pair::Limiters;
use super::receive::ReceiveMode;
pub(super) use super::shared::{Driver, Settings, Shared};
use super::stream::StreamState;
use super::taps::{IOCTLS, TapSettings, Taps};
use super::thread::{Command, Reply, SetUp, Start, Worker};
use crate::lock;
use crate::metrics::Metrics;
use crate::virtio::mailbox::{CallError, DEADLINE, DeviceThread};
use crate::virtio::rate_limit::{Allowance, Limit, RateLimitState};
use crate::virtio::{ActivateError, Activation, Queue, StopError, VirtioDevice};

/// The MTU of Ethernet: no backend is expected to have a smaller one.
const USUAL_MTU: u16 = 1500;

/// Why a network device can't be made.
#[derive(Debug, Error)]
pub enum NetError {
    /// A device has at least one pair of queues, and each has a thread.
    #[error("invalid number of queue pairs {0}: use 1 to {MAX_PAIRS}")]
    Pairs(usize),
    /// Only a tap can have several queues.
    #[error("several queues need a tap")]
    QueuesWithoutTap,
    /// The host refuses to set up the tap, a thread, or a descriptor.
    #[error("cannot make a network device")]
    Host(#[source] io::Error),
}

/// The state of a network device, without its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The MAC address, which the driver can change.
    pub mac: MacAddress,
    /// By how many pairs of queues packets come.
    pub pairs: u16,
    /// The offloads of packets to the guest, as feature bits.
    pub offloads: u64,
    /// Whether the link was up. A device with another backend has that backend's link.
    pub link_is_up: bool,
    /// The rate limit of packets to the guest.
    pub receive_limit: RateLimitState,
    /// The rate limit of packets from the guest.
    pub transmit_limit: RateLimitState,
    /// The frames under way if the backend is a stream.
    pub stream: Option<StreamState>,
}

crate::metrics! {
    /// What a network device counts. Bytes are those of Ethernet frames.
    pub struct NetMetrics {
        /// Bytes that the guest received.
        rx_bytes,
        /// Packets that the guest received.
        rx_packets,
        /// Packets to the guest that were lost, most of them because they were longer than the guest's buffers.
        rx_errors,
        /// How often there was no buffer for a packet that may have been there.
        rx_stalls,
        /// How often packets to the guest may have had to wait for the rate limit.
        rx_rate_limit_waits,
        /// Bytes that the guest sent.
        tx_bytes,
        /// Packets that the guest sent.
        tx_packets,
        /// Packets from the guest that were lost, since they are invalid or the host refused them.
        tx_errors,
        /// How often a packet had to wait for the backend.
        tx_stalls,
        /// How often packets from the guest had to wait for the rate limit.
        tx_rate_limit_waits,
        /// Commands on the control queue.
        control_operations,
        /// How often a setting of the tap was changed for the driver.
        tap_ioctls,
    }
}

/// The thread of a pair.
type PairThread = DeviceThread<Command, Reply>;

/// A network device.
pub struct Net {
    settings: NetSettings,
    offered: u64,
    queue_sizes: Vec<u16>,
    /// One for each pair.
    threads: Vec<PairThread>,
    shared: Arc<Shared>,
    // They live through resets: a reset fills no bucket.
    receive_allowance: Allowance,
    transmit_allowance: Allowance,
    /// The frames under way when the device was suspended.
    stream: Option<StreamState>,
    /// The driver that works with the device.
    driver: Option<Arc<Driver>>,
}

/// How a device is made, besides its settings; tests change it.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// How long a thread may take to answer.
    pub(super) deadline: Duration,
    /// How many ioctls of the tap the driver may cause.
    pub(super) ioctls: Limit,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { deadline: DEADLINE, ioctls: IOCTLS }
    }
}

impl Net {
    /// Makes a device with a pair of queues for each of `backends`; several have to be queues of one tap. Its threads
    /// are started.
    ///
    /// # Errors
    ///
    /// [`NetError`].
    pub fn new(settings: NetSettings, backends: Vec<Backend>) -> Result<Self, NetError> {
        Self::with_bounds(settings, backends, Bounds::default())
    }

    pub(super) fn with_bounds(
        settings: NetSettings,
        backends: Vec<Backend>,
        bounds: Bounds,
    ) -> Result<Self, NetError> {
        let pairs = u16::try_from(backends.len()).ok().filter(|pairs| (1..=MAX_PAIRS).contains(pairs));
        let pairs = pairs.ok_or(NetError::Pairs(backends.len()))?;
        let taps: Vec<_> = backends.iter().filter_map(Backend::tap).cloned().collect();
        if pairs > 1 && taps.len() < backends.len() {
            return Err(NetError::QueuesWithoutTap);
        }
        let offloads = backends.first().map_or(Offloads::None, Backend::offloads);
        let driver_settings = Settings { mac: settings.mac, pairs: 1, offloads: 0 };
        let shared = Arc::new(Shared::new(driver_settings, pairs, settings.mtu));
        let mut taps = Taps::new(taps, bounds.ioctls, shared.metrics.clone()).map_err(NetError::Host)?;
        // A driver begins with one pair, so that most of them need no change.
        taps.set(TapSettings { pairs: 1, offloads: 0 }).map_err(NetError::Host)?;
        let mut device = Self {
            offered: config::features(&settings, offloads, pairs),
            queue_sizes: config::queue_sizes(pairs),
            threads: Vec::new(),
            shared,
            receive_allowance: Allowance::new(settings.limits.receive),
            transmit_allowance: Allowance::new(settings.limits.transmit),
            stream: None,
            driver: None,
            settings,
        };
        let mut taps = Some(taps);
        for (number, backend) in (0..).zip(backends) {
            let thread = device.thread(number, backend, taps.take(), bounds.deadline);
            device.threads.push(thread.map_err(NetError::Host)?);
        }
        Ok(device)
    }

    fn thread(
        &self,
        number: u16,
        backend: Backend,
        taps: Option<Taps>,
        deadline: Duration,
    ) -> io::Result<PairThread> {
        let (receive, transmit) = (self.receive_allowance.limiter()?, self.transmit_allowance.limiter()?);
        let limiters = Limiters { receive, transmit };
        let worker = Worker::new(number, backend, taps, limiters, self.shared.clone())?;
        DeviceThread::with_deadline("net", deadline, move |mailbox| worker.run(&mailbox))
    }

    /// Whether the backend is there.
    pub fn link_is_up(&self) -> bool {
        self.shared.link_is_up.load(Ordering::Acquire)
    }

    fn pairs(&self) -> u16 {
        u16::try_from(self.queue_sizes.len() / 2).unwrap_or(MAX_PAIRS)
    }

    /// The driver of `activation`, and its queues.
    fn driver_of(&self, activation: &mut Activation) -> (Arc<Driver>, Vec<Option<Queue>>) {
        let has = |feature: u32| activation.features & 1 << feature != 0;
        let pairs = if has(VIRTIO_NET_F_MQ) { self.pairs() } else { 1 };
        let control_queue = has(VIRTIO_NET_F_CTRL_VQ).then_some(2 * pairs);
        let longest = self.longest(activation.features);
        let mode = ReceiveMode::new(activation.features, self.settings.mtu, longest);
        let queues = std::mem::take(&mut activation.queues);
        (Arc::new(Driver::new(activation, mode, pairs, control_queue)), queues)
    }

    /// The length of the longest packet that a driver with `features` can be sent, header included.
    fn longest(&self, features: u64) -> usize {
        if config::takes_long_packets(features) {
            HEADER + MAX_FRAME
        } else {
            HEADER + FRAME_OVERHEAD + usize::from(self.settings.mtu.unwrap_or(USUAL_MTU).max(USUAL_MTU))
        }
    }

    /// Gives each thread its queues. The first one sets the tap up before the others receive anything.
    fn start(
        &mut self,
        driver: &Arc<Driver>,
        mut queues: Vec<Option<Queue>>,
        tap: SetUp,
    ) -> Result<(), ActivateError> {
        self.driver = Some(driver.clone());
        let mut take = |index: u16| {
            let queue = queues.get_mut(usize::from(index)).and_then(Option::take);
            queue.map(|queue| (index, queue))
        };
        let control = driver.control_queue.and_then(&mut take);
        let mut starts = (0..driver.pairs).map(|number| {
            let queues = [take(2 * number), take(2 * number + 1)];
            Start { driver: driver.clone(), queues: queues.into_iter().flatten().collect(), tap: None }
        });
        let Some((mut first, first_thread)) = starts.next().zip(self.threads.first()) else { return Ok(()) };
        first.queues.extend(control);
        first.tap = Some(tap);
        match first_thread.call(Command::Start(first))? {
            Reply::Failed(error) => return Err(error),
            Reply::Done | Reply::Suspended(..) => {}
        }
        let end = Instant::now() + first_thread.deadline();
        let sent: Vec<_> = starts
            .zip(self.threads.iter().skip(1))
            .map(|(start, thread)| thread.send(Command::Start(start)))
            .collect();
        let mut result = Ok(());
        for pending in sent {
            match pending.and_then(|pending| pending.wait_until(end)) {
                // A driver may use fewer pairs than there are.
                Ok(Reply::Failed(ActivateError::QueueMissing(_)) | Reply::Done | Reply::Suspended(..)) => {}
                Ok(Reply::Failed(error)) => result = Err(error),
                Err(error) => result = Err(error.into()),
            }
        }
        result
    }

    /// Sends a message to each thread and waits for all answers, up to one deadline.
    fn call_all(&self, command: impl Fn() -> Command) -> Vec<Result<Reply, CallError>> {
        let sent: Vec<_> = self.threads.iter().map(|thread| thread.send(command())).collect();
        let deadline = self.threads.first().map_or(DEADLINE, DeviceThread::deadline);
        let end = Instant::now() + deadline;
        sent.into_iter().map(|pending| pending.and_then(|pending| pending.wait_until(end))).collect()
    }

    /// Has the threads go on whose queues came back while another thread did not answer.
    fn go_on(&self, queues: Vec<(u16, Queue)>) {
        let Some(driver) = &self.driver else { return };
        let mut of_pairs: Vec<Vec<(u16, Queue)>> = self.threads.iter().map(|_| Vec::new()).collect();
        for (index, queue) in queues {
            let pair = if driver.control_queue == Some(index) { 0 } else { usize::from(index / 2) };
            if let Some(queues) = of_pairs.get_mut(pair) {
                queues.push((index, queue));
            }
        }
        for (number, (queues, thread)) in of_pairs.into_iter().zip(&self.threads).enumerate() {
            let tap = (number == 0).then(|| SetUp::Limited(self.shared.tap_settings()));
            let start = Start { driver: driver.clone(), queues, tap };
            if !start.queues.is_empty()
                && let Err(error) = thread.call(Command::Start(start))
            {
                tracing::error!(%error, "a pair of network queues does not go on");
            }
        }
    }

    /// Takes over what `state` has of the device itself.
    fn restore(&mut self, state: &NetState) -> Result<(), ActivateError> {
        let invalid = |why: &str| Err(ActivateError::State(why.to_owned()));
        if !(1..=self.pairs()).contains(&state.pairs) {
            return invalid("it has another number of queue pairs");
        }
        if state.offloads & !config::guest_offloads(self.offered) != 0 {
            return invalid("it has offloads that this device does not offer");
        }
        let NetState { mac, pairs, offloads, .. } = *state;
        *lock(&self.shared.settings) = Settings { mac, pairs, offloads };
        self.receive_allowance.restore(&state.receive_limit);
        self.transmit_allowance.restore(&state.transmit_limit);
        if let (Some(stream), Some(thread)) = (&state.stream, self.threads.first())
            && let Reply::Failed(error) = thread.call(Command::Restore(stream.clone()))?
        {
            return Err(error);
        }
        Ok(())
    }
}

impl Drop for Net {
    /// The threads end at the same time.
    fn drop(&mut self) {
        self.threads.iter().for_each(DeviceThread::close);
    }
}

impl VirtioDevice for Net {
    type State = NetState;

    fn end(&mut self) {
        self.threads.iter().for_each(DeviceThread::close);
    }

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
        self.shared.config_space()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let offloads = config::guest_offloads(activation.features);
        *lock(&self.shared.settings) = Settings { mac: self.settings.mac, pairs: 1, offloads };
        let (driver, queues) = self.driver_of(&mut activation);
        self.start(&driver, queues, SetUp::Limited(TapSettings { pairs: 1, offloads }))
    }

    fn reset(&mut self) -> Result<(), StopError> {
        for reply in self.call_all(|| Command::Stop) {
            reply?;
        }
        self.driver = None;
        lock(&self.shared.settings).mac = self.settings.mac;
        Ok(())
    }

    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        let (mut queues, mut stream, mut failure) = (Vec::new(), None, None);
        for reply in self.call_all(|| Command::Suspend) {
            match reply {
                Ok(Reply::Suspended(more, state)) => {
                    queues.extend(more);
                    stream = stream.or(state);
                }
                Ok(Reply::Done | Reply::Failed(_)) => {}
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            self.go_on(queues);
            return Err(error.into());
        }
        self.stream = stream;
        Ok(self.driver.as_ref().map_or_else(Vec::new, |driver| {
            let mut all = driver.activation(queues).queues;
            all.resize_with(self.queue_sizes.len(), || None);
            all
        }))
    }

    fn resume(&mut self, activation: Option<Activation>, state: NetState) -> Result<(), ActivateError> {
        self.restore(&state)?;
        let Some(mut activation) = activation else { return Ok(()) };
        if state.offloads & !config::guest_offloads(activation.features) != 0 {
            return Err(ActivateError::State("it has offloads that were not negotiated".to_owned()));
        }
        let (driver, queues) = self.driver_of(&mut activation);
        if state.pairs > driver.pairs {
            return Err(ActivateError::State("it has queue pairs that were not negotiated".to_owned()));
        }
        self.start(&driver, queues, SetUp::AtOnce(self.shared.tap_settings()))?;
        if self.link_is_up() != state.link_is_up {
            activation.interrupt.config_changed(&self.config_space());
        }
        Ok(())
    }

    /// Not called: the threads read the notifiers of all queues.
    fn queue_notified(&mut self, _index: u16) {}

    fn reads_notifier(&self, _index: u16) -> bool {
        true
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.shared.metrics.clone()
    }

    fn state(&self) -> NetState {
        let Settings { mac, pairs, offloads } = *lock(&self.shared.settings);
        NetState {
            mac,
            pairs,
            offloads,
            link_is_up: self.link_is_up(),
            receive_limit: self.receive_allowance.state(),
            transmit_limit: self.transmit_allowance.state(),
            stream: self.stream.clone(),
        }
    }
}
