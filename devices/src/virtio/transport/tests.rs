use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_INT_CONFIG as INT_CONFIG, VIRTIO_MMIO_INT_VRING as INT_VRING, VIRTIO_MMIO_STATUS,
};
use virtio_queue::QueueT;

use super::*;
use crate::metrics::Metrics;
use crate::virtio::events::drain;
use crate::virtio::mailbox::DEADLINE;
use crate::virtio::mmio::tests::{RINGS, Rig};
use crate::virtio::{ActivateError, CallError, QueueState, StopError};
use crate::{BusDevice, Section, Suspend, SuspendError};

const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

crate::metrics! {
    struct ProbeMetrics { notifications, }
}

/// Records the calls it gets.
pub(crate) struct Probe {
    pub(crate) active: Option<Activation>,
    pub(crate) resets: usize,
    pub(crate) notified: Vec<u16>,
    pub(crate) woken: Vec<usize>,
    pub(crate) config: [u8; 12],
    pub(crate) wake: EventFd,
    pub(crate) refuse: bool,
    /// It does not stop.
    pub(crate) stuck: bool,
    /// The queue whose notifier it reads itself.
    pub(crate) own: Option<u16>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            active: None,
            resets: 0,
            notified: Vec::new(),
            woken: Vec::new(),
            config: *b"config space",
            wake: EventFd::new(EFD_NONBLOCK).unwrap(),
            refuse: false,
            stuck: false,
            own: None,
        }
    }
}

impl Probe {
    fn stop(&self) -> Result<(), StopError> {
        if self.stuck { Err(CallError::NotAnswered(DEADLINE).into()) } else { Ok(()) }
    }
}

impl VirtioDevice for Probe {
    type State = [u8; 12];
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        // Bit 40 is the transport's (RING_RESET): it must not get through.
        1 << 63 | 1 << 40 | 1 << 3
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn config_space(&self) -> Vec<u8> {
        self.config.to_vec()
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (place, value) in self.config.iter_mut().skip(usize::try_from(offset).unwrap()).zip(data) {
            *place = *value;
        }
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(self.active.is_none(), "activated twice");
        for queue in activation.queues.iter().flatten() {
            assert!(queue.is_valid(&*activation.memory));
        }
        if self.refuse {
            return Err(ActivateError::QueueMissing(0));
        }
        self.active = Some(activation);
        Ok(())
    }
    fn reset(&mut self) -> Result<(), StopError> {
        self.stop()?;
        self.active = None;
        self.resets += 1;
        Ok(())
    }
    fn suspend(&mut self) -> Result<Vec<Option<Queue>>, StopError> {
        self.stop()?;
        Ok(self.active.take().map_or_else(Vec::new, |activation| activation.queues))
    }
    fn resume(&mut self, activation: Option<Activation>, state: [u8; 12]) -> Result<(), ActivateError> {
        self.config = state;
        activation.map_or(Ok(()), |activation| self.activate(activation))
    }
    fn queue_notified(&mut self, index: u16) {
        self.notified.push(index);
    }
    fn reads_notifier(&self, index: u16) -> bool {
        self.own == Some(index)
    }
    fn wake_fds(&self) -> Vec<RawFd> {
        vec![self.wake.as_raw_fd()]
    }
    fn woken(&mut self, index: usize) {
        drain(&self.wake);
        self.woken.push(index);
    }
    fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::new(ProbeMetrics::default())
    }
    fn state(&self) -> [u8; 12] {
        self.config
    }
}

/// The signals of a device without queues.
fn signals_of(lines: Lines) -> Signals {
    Signals::new(lines, Arc::new([]), RegisterPages::new(1).unwrap().page(0).unwrap())
}

fn interrupt_status(signals: &Signals) -> u32 {
    signals.state().interrupt_status
}

#[test]
fn an_interrupt_that_others_raise_says_used_buffers_until_the_reset() {
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let signals = signals_of(Lines::shared(line.clone()));
    assert_eq!(interrupt_status(&signals), 0);
    signals.queue_eventfd(0).unwrap().write(1).unwrap();
    assert_eq!(line.read().unwrap(), 1);
    for _ in 0..2 {
        assert_eq!(interrupt_status(&signals), INT_VRING);
        signals.acknowledge(INT_VRING);
    }
    signals.config_changed(b"space");
    assert_eq!(interrupt_status(&signals), 3);
    signals.acknowledge(3);
    assert_eq!(interrupt_status(&signals), 1);
    signals.reset();
    assert_eq!(interrupt_status(&signals), 0);
    // A line that is not an eventfd stays what it is.
    let signals = signals_of(Lines::shared(Arc::new(AtomicUsize::new(0))));
    assert!(signals.queue_eventfd(0).is_none());
    assert_eq!(interrupt_status(&signals), 0);
}

#[test]
fn a_driver_that_is_not_there_yet_is_not_interrupted_for_a_reset() {
    let line = Arc::new(AtomicUsize::new(0));
    let signals = signals_of(Lines::shared(line.clone()));
    signals.needs_reset();
    assert_eq!(signals.status(), NEEDS_RESET);
    assert_eq!(line.load(Ordering::SeqCst), 0);
}

#[test]
fn queues_may_have_interrupts_of_their_own() {
    let counters: [_; 3] = std::array::from_fn(|_| Arc::new(AtomicUsize::new(0)));
    let line = |index: usize| -> Arc<dyn crate::Interrupt> { counters[index].clone() };
    let signals = signals_of(Lines::separate(line(0), vec![line(1), line(2)]));
    signals.queue_used(1);
    signals.queues_used(0, 1);
    signals.config_changed(b"space");
    assert_eq!(counters.each_ref().map(|counter| counter.load(Ordering::SeqCst)), [1, 1, 2]);
}

#[test]
fn a_device_that_does_not_stop_needs_a_reset_until_it_does() {
    let rig = Rig::new();
    rig.start();
    lock(rig.transport.device()).stuck = true;
    for _ in 0..2 {
        rig.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(rig.status(), NEEDS_RESET);
        // It still has the old queues: no others are set up.
        rig.start();
        assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), NEEDS_RESET);
        assert!(rig.active(|_| ()).is_some());
    }
    lock(rig.transport.device()).stuck = false;
    rig.start();
    assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK);
}

#[test]
fn a_suspended_device_goes_on_where_it_was() {
    let rig = Rig::new();
    rig.start();
    let position = QueueState { next_available: 7, next_used: 5, signalled: 4, broken: false };
    rig.move_queue(0, position);
    rig.transport.suspend().unwrap();
    assert!(rig.active(|_| ()).is_none());
    rig.transport.suspend().unwrap();
    let before = rig.line.load(Ordering::SeqCst);
    rig.transport.resume().unwrap();
    let state = rig.active(|activation| {
        assert!(activation.queues[1].is_none());
        activation.queues[0].as_ref().unwrap().state()
    });
    assert_eq!(state, Some(position));
    // It looks at the queue, and the driver does.
    assert_eq!(rig.transport.queue_notifiers()[0].read().unwrap(), 1);
    assert!(rig.transport.queue_notifiers()[1].read().is_err());
    assert_eq!(rig.line.load(Ordering::SeqCst), before + 1);
    rig.transport.resume().unwrap();
    assert_eq!(rig.line.load(Ordering::SeqCst), before + 1);
}

#[test]
fn a_device_that_does_not_stop_is_not_suspended() {
    let rig = Rig::new();
    rig.start();
    lock(rig.transport.device()).stuck = true;
    assert!(matches!(rig.transport.suspend(), Err(SuspendError::Stop { .. })));
    assert!(matches!(rig.transport.save(), Err(SuspendError::NotSuspended(_))));
    assert!(rig.active(|_| ()).is_some());
}

#[test]
fn a_new_device_goes_on_from_a_saved_state() {
    let rig = Rig::new();
    rig.start();
    let position = QueueState { next_available: 9, next_used: 9, signalled: 8, broken: true };
    rig.move_queue(0, position);
    let interrupt = rig.active(|activation| activation.interrupt.clone()).unwrap();
    interrupt.config_changed(b"config space");
    rig.transport.write(0x100, b"CONF");
    rig.transport.suspend().unwrap();
    let saved = rig.transport.save().unwrap();

    let other = Rig::new();
    other.transport.restore(&saved).unwrap();
    assert!(other.active(|_| ()).is_none());
    assert!(matches!(other.transport.restore(&saved), Err(SuspendError::InUse(_))));
    other.transport.resume().unwrap();
    assert_eq!(other.status(), rig.status());
    assert_eq!(other.read(0x60), INT_VRING | INT_CONFIG);
    assert!(other.read(0xfc) >= rig.read(0xfc), "the config generation");
    assert_eq!(other.line.load(Ordering::SeqCst), 2);
    assert_eq!(&lock(other.transport.device()).config, b"CONFig space");
    other.active(|activation| {
        let queue = activation.queues[0].as_ref().unwrap();
        assert_eq!(queue.state(), position);
        assert_eq!((queue.size(), queue.desc_table()), (16, RINGS[0]));
        assert_eq!(activation.features, 1 << 32 | 1 << 29 | 1 << 3);
    });
    // What comes out of it is what went in, but for what is signalled again.
    other.transport.suspend().unwrap();
    let signalled_again = |section: Section| {
        let mut state: serde_json::Value = serde_json::from_slice(&section.bytes).unwrap();
        let fields = state.as_object_mut().unwrap();
        (fields.remove("interrupt_status").unwrap(), fields.remove("config_generation").unwrap(), state)
    };
    let (before, after) = (signalled_again(saved), signalled_again(other.transport.save().unwrap()));
    assert_eq!((before.0.as_u64(), after.0.as_u64()), (Some(2), Some(3)));
    assert!(after.1.as_u64() >= before.1.as_u64());
    assert_eq!(before.2, after.2);
}

/// A device whose registers the guest reads itself.
fn shown() -> (RegisterPages, Rig) {
    let pages = RegisterPages::new(2).unwrap();
    pages.shown();
    let rig = Rig::with_page(pages.page(1).unwrap());
    (pages, rig)
}

/// What a guest reads at `offset` of the second page.
fn guest_reads(pages: &RegisterPages, offset: usize) -> u32 {
    use vm_memory::VolatileMemory;
    pages
        .region()
        .get_slice(LENGTH + offset, 4)
        .unwrap()
        .get_atomic_ref::<AtomicU32>(0)
        .unwrap()
        .load(Ordering::SeqCst)
}

#[test]
fn the_page_that_a_guest_reads_has_what_the_registers_have() {
    let (pages, rig) = shown();
    let check = |when: &str| {
        for offset in (0..0x110).step_by(4) {
            assert_eq!(guest_reads(&pages, offset as usize), rig.read(offset), "{when}: {offset:#x}");
        }
    };
    check("at first");
    assert_eq!(guest_reads(&pages, 0), u32::from_le_bytes(*b"virt"));
    for (select, features) in [(0, 1 << 3 | 1 << 28 | 1 << 29), (1, 1 << 31 | 1), (2, 0)] {
        rig.write(0x14, select);
        assert_eq!(guest_reads(&pages, 0x10), features);
    }
    for (select, size) in [(0, 16), (1, 8), (2, 0)] {
        rig.write(0x30, select);
        assert_eq!(guest_reads(&pages, 0x34), size);
    }
    rig.start();
    check("with a driver");
    assert_eq!(guest_reads(&pages, 0x44), 1, "the selected queue is ready");
    let interrupt = rig.active(|activation| activation.interrupt.clone()).unwrap();
    let generation = guest_reads(&pages, 0xfc);
    interrupt.config_changed(b"other");
    check("changed");
    assert_eq!(guest_reads(&pages, 0x100), u32::from_le_bytes(*b"othe"));
    assert_eq!(guest_reads(&pages, 0xfc), generation + 2, "before and after the change");
    interrupt.config_updated(b"other");
    assert_eq!(guest_reads(&pages, 0xfc), generation + 2, "no change");
    rig.transport.write(0x104, b"R");
    check("written");
    interrupt.needs_reset();
    assert_ne!(guest_reads(&pages, 0x70) & NEEDS_RESET, 0);
    rig.write(VIRTIO_MMIO_STATUS, 0);
    check("reset");
    assert_eq!((guest_reads(&pages, 0x44), guest_reads(&pages, 0x70)), (0, 0));
}

#[test]
fn the_interrupt_status_that_a_guest_reads_says_used_buffers_while_there_is_a_driver() {
    let (pages, rig) = shown();
    assert_eq!(guest_reads(&pages, 0x60), 0);
    for _ in 0..2 {
        rig.start();
        let interrupt = rig.active(|activation| activation.interrupt.clone()).unwrap();
        interrupt.queue_used(0);
        assert_eq!(guest_reads(&pages, 0x60), INT_VRING);
        interrupt.config_changed(b"other");
        assert_eq!(guest_reads(&pages, 0x60), INT_VRING | INT_CONFIG);
        // What reaches the transport of what the driver writes.
        rig.write(0x64, INT_VRING | INT_CONFIG);
        assert_eq!(guest_reads(&pages, 0x60), INT_VRING);
        rig.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(guest_reads(&pages, 0x60), 0);
    }
    // A device that goes on in another VM says so as well.
    rig.start();
    rig.transport.suspend().unwrap();
    let (pages, other) = shown();
    other.transport.restore(&rig.transport.save().unwrap()).unwrap();
    other.transport.resume().unwrap();
    other.write(0x64, INT_VRING);
    assert_eq!(guest_reads(&pages, 0x60), INT_VRING);
}

#[test]
fn a_page_of_its_own_is_for_each_device() {
    let pages = RegisterPages::new(2).unwrap();
    assert!(pages.page(2).is_none() && pages.page(usize::MAX).is_none());
    let first = pages.page(0).unwrap();
    first.set_config(&AtomicU32::new(0), &[0xff; 2 * LENGTH]);
    assert_eq!(guest_reads(&pages, 0), 0, "a config space ends with its page");
    let mut bytes = [7; 6];
    first.read(LENGTH as u64 - 3, &mut bytes);
    assert_eq!(bytes, [0xff, 0xff, 0xff, 0, 0, 0]);
    first.read(u64::MAX, &mut bytes[..1]);
    assert_eq!(bytes[0], 0);
}

#[test]
fn a_driver_that_reads_while_the_config_space_changes_finds_another_generation() {
    let page = RegisterPages::new(1).unwrap().page(0).unwrap();
    let generation = AtomicU32::new(0);
    let read = || {
        let mut space = [0; 64];
        page.read(CONFIG as u64, &mut space);
        space
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for value in 1..=5000u32 {
                page.set_config(&generation, &[value.to_le_bytes()[0]; 64]);
            }
        });
        let (mut torn, mut noticed) = (0, 0);
        while !writer.is_finished() {
            let before = generation.load(Ordering::SeqCst);
            let space = read();
            // An odd count is one that a change is at work behind; its interrupt is yet to come.
            let same = before.is_multiple_of(2) && generation.load(Ordering::SeqCst) == before;
            if space.iter().any(|byte| *byte != space[0]) {
                torn += 1;
                noticed += u32::from(!same);
            }
        }
        assert_eq!(torn, noticed);
    });
}

#[test]
fn a_device_without_a_driver_keeps_its_state_too() {
    let rig = Rig::new();
    rig.transport.write(0x100, b"C");
    rig.transport.suspend().unwrap();
    let saved = rig.transport.save().unwrap();
    let other = Rig::new();
    other.transport.restore(&saved).unwrap();
    other.transport.resume().unwrap();
    assert_eq!(&lock(other.transport.device()).config, b"Config space");
    assert_eq!((other.status(), other.line.load(Ordering::SeqCst)), (0, 0));
    other.start();
    assert!(other.active(|_| ()).is_some());
}

#[test]
fn a_device_that_cannot_go_on_needs_a_reset() {
    let rig = Rig::new();
    rig.start();
    rig.transport.suspend().unwrap();
    lock(rig.transport.device()).refuse = true;
    assert!(matches!(rig.transport.resume(), Err(SuspendError::Start { .. })));
    assert_ne!(rig.status() & NEEDS_RESET, 0);
    lock(rig.transport.device()).refuse = false;
    rig.start();
    assert_eq!(rig.status() & NEEDS_RESET, 0);
}

#[test]
fn a_driver_that_resets_or_starts_a_suspended_device_does_not_wake_it() {
    let rig = Rig::new();
    rig.start();
    rig.transport.suspend().unwrap();
    rig.start();
    assert!(rig.active(|_| ()).is_none());
    rig.transport.resume().unwrap();
    assert!(rig.active(|activation| activation.queues[0].is_some()).unwrap());
    rig.transport.suspend().unwrap();
    rig.write(VIRTIO_MMIO_STATUS, 0);
    rig.transport.resume().unwrap();
    assert!(rig.active(|_| ()).is_none());
}

proptest! {
    /// A snapshot may come from anywhere.
    #[test]
    fn no_saved_state_gives_a_device_what_a_driver_could_not(
        place in any::<prop::sample::Index>(), with in "[0-9]{1,9}|null|true|\\[\\]", cut in any::<bool>(),
    ) {
        let rig = Rig::new();
        rig.start();
        rig.transport.suspend().unwrap();
        let mut saved = rig.transport.save().unwrap();
        let text = String::from_utf8(saved.bytes).unwrap();
        // One of its values is another.
        let values: Vec<_> = text.match_indices(':').map(|(at, _)| at + 1).collect();
        let at = *place.get(&values);
        let end = text[at..].find([',', '}']).unwrap() + at;
        saved.bytes = format!("{}{with}{}", &text[..at], if cut { "" } else { &text[end..] }).into_bytes();
        let other = Rig::new();
        if other.transport.restore(&saved).is_ok()
            && other.transport.resume().is_ok()
            && let Some(features) = other.active(|activation| activation.features)
        {
            prop_assert_eq!(features & !other.offered(), 0);
        }
    }
}
