//! The device: what the driver gives up, takes back, and tells.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::handle::TargetError;
use super::pages::{Discarder, deflate};
use super::ranges::PAGE;
use super::statistics::{ENTRY, Statistics};
use crate::Timer;
use crate::metrics::Metrics;
use crate::virtio::queue::{ActiveQueue, Budget, Chain, Head};
use crate::virtio::{ActivateError, Activation, Queue, StopError, VirtioDevice, VirtioInterrupt};

/// Feature bits (5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;
const FEATURES: u64 = F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING;

/// Linux reports up to 32 ranges at once and wants a queue that holds them.
const QUEUE_SIZES: [u16; 4] = [128; 4];

/// Where `actual` is in the config space (5.5.4), which the driver writes.
const ACTUAL: u64 = 4;

/// What a turn may cost: to free 64 MiB of small pages takes some milliseconds.
const BUDGET: Budget = Budget { bytes: 64 << 20, host_calls: 1024, ..Budget::TURN };
/// The most entries that it takes from one buffer of statistics.
const MAX_ENTRIES: usize = 64;
/// What a guest is left with whatever is asked of it: less, and Linux could hardly run the driver.
const LEAST_LEFT: u64 = 64 << 20;

/// The state of a balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// The pages that the balloon should have.
    pub target_pages: u32,
    /// The pages that the driver says it has.
    pub actual_pages: u32,
    /// The head of the chain that the driver gets back when the device wants new statistics.
    pub statistics_buffer: Option<Head>,
    /// The statistics that came last, and how long ago they came.
    pub statistics: Option<(Duration, Statistics)>,
    /// The interval at which the driver is asked for statistics; zero is never.
    pub statistics_interval: Duration,
}

crate::metrics! {
    /// What a balloon counts.
    pub struct BalloonMetrics {
        /// Bytes that went to the host by inflating.
        inflated_bytes,
        /// Bytes that the driver took back.
        deflated_bytes,
        /// Bytes that went to the host because the driver reported them free.
        reported_bytes,
        /// Bytes that the driver named and that could not go to the host.
        refused_bytes,
        /// Statistics that came from the driver.
        statistics_operations,
    }
}

/// What a queue is for (5.5.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

impl Role {
    /// The roles of the queues that there are, in the order of their indices: a queue whose feature was not
    /// negotiated takes no index from the next one, in Linux as in all devices that it drives.
    fn all(features: u64) -> impl Iterator<Item = Self> {
        let optional = |bit: u64, role| (features & bit != 0).then_some(role);
        [
            Some(Self::Inflate),
            Some(Self::Deflate),
            optional(F_STATS_VQ, Self::Statistics),
            optional(F_REPORTING, Self::Reporting),
        ]
        .into_iter()
        .flatten()
    }
}

/// A memory balloon.
pub struct Balloon {
    queues: Vec<(Role, ActiveQueue)>,
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
    /// The guest's RAM in bytes.
    ram: u64,
    target_pages: u32,
    actual_pages: u32,
    /// The target when the device was suspended: the driver was not signalled for another that was set since.
    suspended_target: Option<u32>,
    statistics: Option<(Instant, Statistics)>,
    /// The buffer that the driver gets back when the device wants new statistics.
    statistics_buffer: Option<Head>,
    statistics_came: Arc<Condvar>,
    interval: Duration,
    timer: Timer,
    // Room that every turn needs.
    chain: Chain,
    inflation: Discarder,
    reporting: Discarder,
    metrics: Arc<BalloonMetrics>,
}

impl Balloon {
    /// Makes an empty balloon for a guest with `ram` bytes of memory.
    ///
    /// # Errors
    ///
    /// Those of making a timer: the process has no descriptor left.
    pub fn new(ram: u64) -> io::Result<Self> {
        Ok(Self {
            queues: Vec::new(),
            interrupt: None,
            ram,
            target_pages: 0,
            actual_pages: 0,
            suspended_target: None,
            statistics: None,
            statistics_buffer: None,
            statistics_came: Arc::default(),
            interval: Duration::ZERO,
            timer: Timer::new()?,
            chain: Chain::default(),
            inflation: Discarder::new(false),
            reporting: Discarder::new(true),
            metrics: Arc::default(),
        })
    }

    pub(super) fn target(&self) -> u64 {
        u64::from(self.target_pages) * PAGE
    }

    pub(super) fn actual(&self) -> u64 {
        u64::from(self.actual_pages) * PAGE
    }

    pub(super) fn largest_target(&self) -> u64 {
        self.ram.saturating_sub(LEAST_LEFT).min(u64::from(u32::MAX) * PAGE) / PAGE * PAGE
    }

    pub(super) fn set_target(&mut self, bytes: u64) -> Result<(), TargetError> {
        let most = self.largest_target();
        let pages = u32::try_from(bytes / PAGE).ok().filter(|_| bytes <= most);
        let pages = pages.ok_or(TargetError { asked: bytes, most })?;
        if std::mem::replace(&mut self.target_pages, pages) != pages
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config_changed(&self.config_space());
        }
        Ok(())
    }

    pub(super) fn statistics(&self) -> Option<(Instant, Statistics)> {
        self.statistics
    }

    /// Is notified when statistics came.
    pub(super) fn statistics_came(&self) -> Arc<Condvar> {
        self.statistics_came.clone()
    }

    /// Gives the driver its buffer back, which is how it is asked for new statistics. Where it has the buffer
    /// already, they are on their way.
    pub(super) fn request_statistics(&mut self) {
        let queue = self.queues.iter_mut().find(|(role, _)| *role == Role::Statistics);
        if let Some((_, queue)) = queue
            && let Some(head) = self.statistics_buffer.take()
        {
            queue.add_used(head, 0);
            queue.end_turn();
        }
    }

    pub(super) fn statistics_interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn set_statistics_interval(&mut self, interval: Duration) -> io::Result<()> {
        self.timer.set_each(interval)?;
        self.interval = interval;
        Ok(())
    }

    fn start(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let roles = (0..).zip(Role::all(activation.features));
        let queues: Result<Vec<_>, ActivateError> = roles
            .map(|(index, role)| {
                let queue = ActiveQueue::take(&mut activation, index)?;
                Ok((role, queue.in_ram().with_budget(BUDGET)))
            })
            .collect();
        self.queues = queues?;
        self.interrupt = Some(activation.interrupt);
        Ok(())
    }

    /// Takes statistics and keeps their buffer, until new ones are wanted (5.5.6.3).
    fn take_statistics(&mut self, index: usize) {
        let Some((_, queue)) = self.queues.get_mut(index) else { return };
        while queue.pop(&mut self.chain) {
            // Those that the driver left out keep their value.
            let mut statistics = self.statistics.map(|(_, statistics)| statistics).unwrap_or_default();
            let mut entry = [0; ENTRY];
            for _ in 0..MAX_ENTRIES {
                if !self.chain.readable.take(queue.memory(), &mut entry) {
                    break;
                }
                statistics.take(entry);
            }
            self.statistics = Some((Instant::now(), statistics));
            self.metrics.statistics_operations.increment();
            self.statistics_came.notify_all();
            // A driver has one buffer; of one that has more, the newest is kept.
            if let Some(older) = self.statistics_buffer.replace(self.chain.head) {
                queue.add_used(older, 0);
            }
        }
    }
}

impl VirtioDevice for Balloon {
    type State = BalloonState;

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        [self.target_pages, self.actual_pages].map(u32::to_le_bytes).concat()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self.actual_pages.to_le_bytes();
        for (place, value) in (0..).zip(data) {
            let index = offset.checked_add(place).and_then(|place| place.checked_sub(ACTUAL));
            let index = index.and_then(|index| usize::try_from(index).ok());
            if let Some(byte) = index.and_then(|index| actual.get_mut(index)) {
                *byte = *value;
            }
        }
        self.actual_pages = u32::from_le_bytes(actual);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (interrupt, features) = (Arc::clone(&activation.interrupt), activation.features);
        self.start(activation)?;
        // Linux makes its first buffer available before it sets DRIVER_OK, and notifies only then.
        let statistics = (0..).zip(Role::all(features)).find(|(_, role)| *role == Role::Statistics);
        if let Some((index, _)) = statistics {
            interrupt.notify_again(index);
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), StopError> {
        self.queues.clear();
        self.inflation.clear();
        self.reporting.clear();
        self.interrupt = None;
        self.statistics_buffer = None;
        // The driver begins with an empty balloon.
        self.actual_pages = 0;
        Ok(())
    }

    /// A new target, and the time for new statistics, wait until the device is resumed.
    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        for (role, queue) in &mut self.queues {
            match role {
                Role::Inflate => self.inflation.give_up(queue, &self.metrics),
                Role::Reporting => self.reporting.give_up(queue, &self.metrics),
                Role::Deflate | Role::Statistics => {}
            }
        }
        self.interrupt = None;
        self.suspended_target = Some(self.target_pages);
        Ok(self.queues.drain(..).map(|(_, queue)| Some(queue.into_queue())).collect())
    }

    fn resume(&mut self, activation: Option<Activation>, state: BalloonState) -> Result<(), ActivateError> {
        let largest = self.largest_target() / PAGE;
        if u64::from(state.target_pages) > largest {
            let target = state.target_pages;
            return Err(ActivateError::State(format!(
                "a balloon of {target} pages; it has at most {largest}"
            )));
        }
        self.target_pages = state.target_pages;
        self.actual_pages = state.actual_pages;
        self.statistics_buffer = state.statistics_buffer;
        self.statistics = state.statistics.map(|(age, statistics)| {
            let now = Instant::now();
            (now.checked_sub(age).unwrap_or(now), statistics)
        });
        self.set_statistics_interval(state.statistics_interval).map_err(ActivateError::Host)?;
        let suspended_target = self.suspended_target.take();
        let Some(activation) = activation else { return Ok(()) };
        self.start(activation)?;
        if let Some(interrupt) = &self.interrupt
            && suspended_target.is_some_and(|target| target != self.target_pages)
        {
            interrupt.config_changed(&self.config_space());
        }
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) {
        let index = usize::from(index);
        let Some((role, queue)) = self.queues.get_mut(index) else { return };
        queue.start_turn();
        match role {
            Role::Inflate => self.inflation.turn(queue, &mut self.chain, &self.metrics),
            Role::Reporting => self.reporting.turn(queue, &mut self.chain, &self.metrics),
            Role::Deflate => deflate(queue, &mut self.chain, &self.metrics),
            Role::Statistics => self.take_statistics(index),
        }
        if let Some((_, queue)) = self.queues.get_mut(index) {
            queue.end_turn();
        }
    }

    fn wake_fds(&self) -> Vec<RawFd> {
        vec![self.timer.as_raw_fd()]
    }

    /// It is time for new statistics.
    fn woken(&mut self, _index: usize) {
        self.timer.acknowledge();
        self.request_statistics();
    }

    fn metrics(&self) -> Arc<dyn Metrics> {
        self.metrics.clone()
    }

    fn state(&self) -> BalloonState {
        BalloonState {
            target_pages: self.target_pages,
            actual_pages: self.actual_pages,
            statistics_buffer: self.statistics_buffer,
            statistics: self.statistics.map(|(at, statistics)| (at.elapsed(), statistics)),
            statistics_interval: self.interval,
        }
    }
}
