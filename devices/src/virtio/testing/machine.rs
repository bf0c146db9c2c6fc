//! A device behind its transport, with a driver that keeps to the rules and checks that the device does: for the
//! property that every device has to have, that nothing is lost or done twice when it is suspended in mid-traffic.
//!
//! How to use it:
//!
//! ```ignore
//! proptest! {
//!     #[test]
//!     fn nothing_is_lost_over_a_suspend(steps in steps()) {
//!         let mut machine = Machine::new(new_device(), FEATURES);
//!         for step in steps {
//!             machine.step(step, new_device, |machine, number| {
//!                 // A request, as the number says; `None`, where the queue has no room for it.
//!                 machine.submit(REQUESTS, &[(FREE, 16, 0), (FREE + 0x1000, 512, WRITE)]);
//!             });
//!         }
//!         machine.finish(&[REQUESTS]);
//!         // `machine.answers` has what came back, in its order.
//!     }
//! }
//! ```
//!
//! The driver notifies the device only where the device wants to be notified, and looks at used rings only when it was
//! interrupted, as Linux does: a signal that is lost over a suspend makes the test fail.
//!
//! A device whose other side the test has as well (a socket, a tap, what a user types) is used in the same way: the
//! test acts on the host's side between steps, or in the closure, and calls [`Machine::run`]. After
//! [`suspend`](Machine::suspend) it may act too: [`assert_quiet`](Machine::assert_quiet) checks that the device did not
//! touch memory or interrupt the driver.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use proptest::prelude::*;
use virtio_bindings::virtio_config as status;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{AVAILABLE, Descriptor, Driver, NEXT, TABLE, USED, dump};
use crate::virtio::VirtioDevice;
use crate::virtio::events::drain;
use crate::virtio::mmio::MmioTransport;
use crate::{BusDevice, Suspend, lock};

/// A device that has not answered by then never will.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a device is watched that has to be quiet: its threads have had their time by then.
const QUIET: Duration = Duration::from_millis(2);

/// What happens to a device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// The driver makes a request; what kind is for the test to derive from the number.
    Submit(u8),
    /// The device does what it has to do, and the driver takes what comes back.
    Run,
    /// The device is suspended and resumed.
    Pause,
    /// The device is suspended and saved, and another goes on from that.
    Replace,
}

/// Some steps, with a suspend in most of them.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<u8>().prop_map(Step::Submit),
        2 => Just(Step::Run),
        1 => Just(Step::Pause),
        1 => Just(Step::Replace),
    ];
    prop::collection::vec(step, 1..40)
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The queue.
    pub(crate) queue: usize,
    /// What [`Machine::submit`] called the chain.
    pub(crate) number: usize,
    /// The bytes that the device says it has written.
    pub(crate) written: u32,
}

/// The chains that the driver of a queue has made available and not got back.
#[derive(Default)]
struct Outstanding {
    /// By their heads: their numbers and descriptors.
    chains: HashMap<u16, (usize, Vec<u16>)>,
    /// The descriptors that are free.
    free: Vec<u16>,
}

/// Counts the interrupts that the event loop sees.
struct Line {
    line: Arc<EventFd>,
    raised: Arc<AtomicUsize>,
}

impl MutEventSubscriber for Line {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new_raw(self.line.as_raw_fd(), EventSet::IN)).unwrap();
    }
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        drain(&self.line);
        self.raised.fetch_add(1, Ordering::SeqCst);
    }
}

type EventLoop = EventManager<Box<dyn MutEventSubscriber>>;

/// A device, its transport, its event loop and its driver.
pub(crate) struct Machine<D: VirtioDevice + 'static> {
    pub(crate) drivers: Vec<Driver>,
    /// What came back, in its order.
    pub(crate) answers: Vec<Answer>,
    outstanding: Vec<Outstanding>,
    submitted: usize,
    /// `None` only while one device takes the place of another.
    live: Option<(EventLoop, MmioTransport<D>)>,
    line: Arc<EventFd>,
    raised: Arc<AtomicUsize>,
    /// Memory as it was when the device was suspended.
    suspended: Option<Vec<(u64, Vec<u8>)>>,
}

fn build<D: VirtioDevice + 'static>(
    device: D,
    driver: &Driver,
    line: &Arc<EventFd>,
    raised: &Arc<AtomicUsize>,
) -> (EventLoop, MmioTransport<D>) {
    let memory: Arc<GuestMemoryMmap> = driver.memory.clone();
    let dma = driver.dma.clone().unwrap_or_else(|| memory.clone());
    let transport = MmioTransport::new(device, memory, line.clone()).unwrap().with_dma(dma);
    let mut events = EventManager::new().unwrap();
    let line = Line { line: line.clone(), raised: raised.clone() };
    events.add_subscriber(Box::new(line) as Box<dyn MutEventSubscriber>);
    events.add_subscriber(Box::new(transport.events()));
    (events, transport)
}

impl<D: VirtioDevice + 'static> Machine<D> {
    /// Puts `device` behind a transport, and lets a driver set it up that accepts `features` of the device type's and
    /// uses event indices.
    pub(crate) fn new(device: D, features: u64) -> Self {
        let sizes: Vec<_> = device.queue_sizes().iter().map(|size| (*size).min(64)).collect();
        Self::with_drivers(device, Driver::several(&sizes), features, true)
    }

    /// The same with drivers of the test's own, one for each queue, whose memory may be another.
    pub(crate) fn with_drivers(device: D, mut drivers: Vec<Driver>, features: u64, event_idx: bool) -> Self {
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let raised = Arc::default();
        let live = Some(build(device, &drivers[0], &line, &raised));
        let outstanding = drivers
            .iter()
            .map(|driver| Outstanding { free: (0..driver.size).collect(), ..Outstanding::default() });
        let outstanding = outstanding.collect();
        drivers.iter_mut().for_each(|driver| driver.event_idx = event_idx);
        let machine = Self {
            drivers,
            answers: Vec::new(),
            outstanding,
            submitted: 0,
            live,
            line,
            raised,
            suspended: None,
        };
        machine.set_up(features | 1 << 32 | 1 << 28 | u64::from(event_idx) << 29);
        machine
    }

    /// The device, as the host has it.
    pub(crate) fn device(&self) -> MutexGuard<'_, D> {
        lock(self.transport().device())
    }

    pub(crate) fn transport(&self) -> &MmioTransport<D> {
        &self.live.as_ref().unwrap().1
    }

    /// Lets the event loop do what it has to do, or wait for it for so many milliseconds; the number of events.
    pub(crate) fn run_events(&mut self, milliseconds: i32) -> usize {
        self.live.as_mut().unwrap().0.run_with_timeout(milliseconds).unwrap()
    }

    fn set(&self, register: u32, value: u32) {
        self.transport().write(register.into(), &value.to_le_bytes());
    }

    fn get(&self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.transport().read(register.into(), &mut value);
        u32::from_le_bytes(value)
    }

    fn set_up(&self, features: u64) {
        self.set(reg::VIRTIO_MMIO_STATUS, 0);
        let mut value = status::VIRTIO_CONFIG_S_ACKNOWLEDGE | status::VIRTIO_CONFIG_S_DRIVER;
        self.set(reg::VIRTIO_MMIO_STATUS, status::VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.set(reg::VIRTIO_MMIO_STATUS, value);
        for (half, wanted) in [(0, features), (1, features >> 32)] {
            self.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES);
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let wanted = u32::try_from(wanted & 0xffff_ffff).unwrap();
            self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, offered & wanted);
        }
        value |= status::VIRTIO_CONFIG_S_FEATURES_OK;
        self.set(reg::VIRTIO_MMIO_STATUS, value);
        for (index, driver) in (0..).zip(&self.drivers) {
            self.set(reg::VIRTIO_MMIO_QUEUE_SEL, index);
            self.set(reg::VIRTIO_MMIO_QUEUE_NUM, driver.size.into());
            for (low, offset) in [
                (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, TABLE),
                (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAILABLE),
                (reg::VIRTIO_MMIO_QUEUE_USED_LOW, USED),
            ] {
                self.set(low, u32::try_from(driver.rings + offset).unwrap());
                self.set(low + 4, 0);
            }
            self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        value |= status::VIRTIO_CONFIG_S_DRIVER_OK;
        self.set(reg::VIRTIO_MMIO_STATUS, value);
        assert_eq!(self.status(), value, "the device takes what the driver has set up");
    }

    /// The device status.
    pub(crate) fn status(&self) -> u32 {
        self.get(reg::VIRTIO_MMIO_STATUS)
    }

    /// Makes a chain of `buffers` (address, length, flags) available on `queue`, and notifies the device if it wants
    /// that. Gives the chain's number, by which it comes back in [`answers`](Self::answers); `None`, where so many
    /// descriptors are not free.
    pub(crate) fn submit(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) -> Option<usize> {
        let outstanding = &mut self.outstanding[queue];
        if outstanding.free.len() < buffers.len() {
            return None;
        }
        let places = outstanding.free.split_off(outstanding.free.len() - buffers.len());
        let driver = &mut self.drivers[queue];
        for (index, &(address, length, flags)) in buffers.iter().enumerate() {
            let next = places.get(index + 1).copied();
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            let descriptor = Descriptor { address, length, flags, next: next.unwrap_or(0) };
            driver.describe_own(places[index], descriptor);
        }
        let (head, number) = (places[0], self.submitted);
        assert!(outstanding.chains.insert(head, (number, places)).is_none());
        driver.make_available(head);
        self.submitted += 1;
        let driver = &self.drivers[queue];
        std::sync::atomic::fence(Ordering::SeqCst);
        let wanted = if driver.event_idx {
            driver.available_event() == driver.next_available.wrapping_sub(1)
        } else {
            driver.read_u16(driver.rings + USED) & 1 == 0
        };
        if wanted {
            self.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(queue).unwrap());
        }
        Some(number)
    }

    /// Takes what came back, if the driver was interrupted; whether it was.
    fn take_answers(&mut self) -> bool {
        if self.raised.swap(0, Ordering::SeqCst) == 0 {
            return false;
        }
        let causes = self.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, causes);
        for (queue, (driver, outstanding)) in self.drivers.iter_mut().zip(&mut self.outstanding).enumerate() {
            loop {
                for (head, written) in driver.take_used() {
                    let chain = outstanding.chains.remove(&u16::try_from(head).unwrap());
                    let (number, places) = chain.expect("a chain comes back that is not the device's");
                    outstanding.free.extend(places);
                    self.answers.push(Answer { queue, number, written });
                }
                // The driver is interrupted for the next one; what came in between is taken now.
                driver.set_used_event(driver.next_used);
                std::sync::atomic::fence(Ordering::SeqCst);
                if driver.used_count() == 0 {
                    break;
                }
            }
        }
        true
    }

    /// Runs the event loop until nothing is left to do, and takes what came back. A device with threads may have more
    /// to do: see [`wait_until`](Self::wait_until).
    pub(crate) fn run(&mut self) {
        for _ in 0..1000 {
            let events = self.run_events(0);
            if events == 0 && !self.take_answers() {
                break;
            }
        }
    }

    /// Runs until `condition` holds.
    pub(crate) fn wait_until(&mut self, mut condition: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.run();
            if condition(self) {
                return;
            }
            assert!(Instant::now() < end, "the device never got there; status {:#x}", self.status());
            // Whatever the driver waits for comes by an interrupt; the test's own condition may not.
            self.run_events(1);
        }
    }

    /// The number of chains of `queue` that have not come back.
    pub(crate) fn outstanding(&self, queue: usize) -> usize {
        self.outstanding[queue].chains.len()
    }

    /// Waits until all chains of `queues` have come back.
    pub(crate) fn finish(&mut self, queues: &[usize]) {
        assert!(self.suspended.is_none(), "the device is suspended");
        self.wait_until(|machine| queues.iter().all(|queue| machine.outstanding(*queue) == 0));
    }

    /// Suspends the device, which has to be quiet then.
    pub(crate) fn suspend(&mut self) {
        self.transport().suspend().unwrap();
        // Interrupts of before are the driver's.
        self.run_events(0);
        self.take_answers();
        self.suspended = Some(dump(&self.drivers[0].memory));
        self.assert_quiet();
    }

    /// Checks that the suspended device has left memory and driver alone.
    pub(crate) fn assert_quiet(&mut self) {
        let before = self.suspended.take().expect("the device is suspended");
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            self.run_events(1);
        }
        assert_eq!(self.raised.load(Ordering::SeqCst), 0, "a suspended device interrupts");
        assert!(dump(&self.drivers[0].memory) == before, "a suspended device writes to memory");
        self.suspended = Some(before);
    }

    /// Resumes the device.
    pub(crate) fn resume(&mut self) {
        self.transport().resume().unwrap();
        self.suspended = None;
    }

    /// Resumes the device that `make` makes from the state of the suspended one, serialized to bytes. The suspended one
    /// is gone by then.
    pub(crate) fn restore(&mut self, make: impl FnOnce() -> D) {
        assert!(self.suspended.is_some(), "the device is suspended");
        let saved = self.transport().save().unwrap();
        self.live = None;
        self.live = Some(build(make(), &self.drivers[0], &self.line, &self.raised));
        self.transport().restore(&saved).unwrap();
        assert_eq!(self.transport().save().unwrap(), saved, "what was restored can be saved again");
        self.resume();
    }

    /// Does `step`. `make` makes a device as the first one, `submit` a request of the given kind.
    pub(crate) fn step(&mut self, step: Step, make: impl FnOnce() -> D, submit: impl FnOnce(&mut Self, u8)) {
        match step {
            Step::Submit(number) => submit(self, number),
            Step::Run => self.run(),
            Step::Pause => {
                self.suspend();
                self.resume();
            }
            Step::Replace => {
                self.suspend();
                self.restore(make);
            }
        }
    }
}
