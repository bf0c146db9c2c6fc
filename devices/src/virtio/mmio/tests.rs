use std::sync::atomic::{AtomicUsize, Ordering};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use proptest::prelude::*;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_queue::QueueT;

use super::*;
use crate::lock;
use crate::virtio::transport::tests::Probe;
use crate::virtio::{Activation, QueueState, testing};

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

pub(crate) struct Rig {
    pub(crate) transport: MmioTransport<Probe>,
    pub(crate) line: Arc<AtomicUsize>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with_page(RegisterPages::new(1).unwrap().page(0).unwrap())
    }

    pub(crate) fn with_page(page: RegisterPage) -> Self {
        let line = Arc::new(AtomicUsize::new(0));
        let (device, memory) = (Probe::default(), testing::memory());
        let transport = MmioTransport::with_page(device, memory, line.clone(), page).unwrap();
        Self { transport, line }
    }

    pub(crate) fn read(&self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, register: u32, value: u32) {
        self.transport.write(u64::from(register), &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_STATUS)
    }

    /// Sets status `bit` besides those that are set.
    pub(crate) fn set_status(&self, bit: u32) {
        self.write(reg::VIRTIO_MMIO_STATUS, self.status() | bit);
    }

    pub(crate) fn accept_features(&self, features: u64) {
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(half & 0xffff_ffff).unwrap());
        }
    }

    pub(crate) fn set_up_queue(&self, index: u32, size: u32, [table, available, used]: [u64; 3]) {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, table),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.write(low, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(low + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub(crate) fn negotiate(&self, features: u64) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(DRIVER);
        self.accept_features(features);
        self.set_status(FEATURES_OK);
    }

    /// Brings the device up with one valid queue.
    pub(crate) fn start(&self) {
        self.negotiate(1 << 32 | 1 << 29 | 1 << 3);
        self.set_up_queue(0, 16, RINGS);
        self.set_status(DRIVER_OK);
    }

    /// The features that the transport offers.
    pub(crate) fn offered(&self) -> u64 {
        let half = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Puts the active queue `index` where `state` says.
    pub(crate) fn move_queue(&self, index: usize, state: QueueState) {
        let mut device = lock(self.transport.device());
        let queues = &mut device.active.as_mut().unwrap().queues;
        queues[index].as_mut().unwrap().set_state(state);
    }

    pub(crate) fn active<T>(&self, look: impl FnOnce(&Activation) -> T) -> Option<T> {
        lock(self.transport.device()).active.as_ref().map(look)
    }
}

pub(crate) const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];

#[test]
fn the_device_is_found_by_its_registers() {
    let rig = Rig::new();
    assert_eq!(rig.read(reg::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(rig.read(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_VENDOR_ID).to_le_bytes(), *b"MVM\0");
    for (select, features) in [(0, 1 << 3 | 1 << 28 | 1 << 29), (1, 1 << 31 | 1), (2, 0), (u32::MAX, 0)] {
        rig.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        assert_eq!(rig.read(reg::VIRTIO_MMIO_DEVICE_FEATURES), features);
    }
    for (select, size) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        rig.write(reg::VIRTIO_MMIO_QUEUE_SEL, select);
        assert_eq!(rig.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), size);
    }
    // No shared memory region, no queue reset.
    for register in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(rig.read(register), u32::MAX);
    }
    assert_eq!(rig.read(0xc0), 0);
}

#[test]
fn control_registers_take_aligned_words_only() {
    let rig = Rig::new();
    for (offset, length) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0, 0), (0, 3)] {
        let mut data = vec![0xff; length];
        rig.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; length]);
    }
    rig.transport.write(u64::from(reg::VIRTIO_MMIO_STATUS), &[1]);
    rig.transport.write(u64::from(reg::VIRTIO_MMIO_STATUS), &[1; 8]);
    assert_eq!(rig.status(), 0);
}

#[test]
fn the_config_space_is_read_and_written_in_any_width() {
    let rig = Rig::new();
    for width in [1, 2, 4, 8] {
        let mut data = vec![0; width];
        rig.transport.read(CONFIG as u64 + 2, &mut data);
        assert_eq!(data, b"config space"[2..2 + width]);
    }
    rig.transport.write(CONFIG as u64 + 7, b"SP");
    let mut data = [0xff; 8];
    rig.transport.read(CONFIG as u64 + 7, &mut data);
    assert_eq!(&data, b"SPace\0\0\0");
    rig.transport.read(MMIO_LENGTH - 1, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn a_driver_that_keeps_to_the_order_gets_a_working_device() {
    let rig = Rig::new();
    rig.start();
    assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let state = rig.active(|activation| {
        assert_eq!(activation.features, 1 << 32 | 1 << 29 | 1 << 3);
        assert!(activation.queues[1].is_none());
        let queue = activation.queues[0].as_ref().unwrap();
        assert!(queue.event_idx_enabled());
        (queue.size(), queue.desc_table(), queue.avail_ring(), queue.used_ring())
    });
    assert_eq!(state, Some((16, 0x1000, 0x2000, 0x3000)));
}

#[test]
fn features_are_refused_unless_offered_and_modern() {
    let rig = Rig::new();
    for (features, taken) in
        [(0, false), (1 << 3, false), (1 << 32, true), (1 << 32 | 1 << 4, false), (1 << 32 | 1 << 40, false)]
    {
        rig.negotiate(features);
        assert_eq!(rig.status() & FEATURES_OK != 0, taken, "{features:#x}");
    }
}

#[test]
fn what_comes_out_of_turn_is_not_taken() {
    let rig = Rig::new();
    for bits in [DRIVER, FEATURES_OK, DRIVER_OK, DRIVER | DRIVER_OK, NEEDS_RESET, 16, 1 << 31] {
        rig.write(reg::VIRTIO_MMIO_STATUS, bits);
        assert_eq!(rig.status(), 0);
    }
    // Features before DRIVER, and after FEATURES_OK.
    rig.accept_features(1 << 32);
    rig.set_status(ACKNOWLEDGE);
    rig.set_status(DRIVER);
    rig.set_status(FEATURES_OK);
    assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER);
    // Queues before FEATURES_OK.
    rig.set_up_queue(0, 16, RINGS);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    rig.negotiate(1 << 32);
    rig.accept_features(1 << 32 | 1 << 3);
    rig.set_up_queue(0, 16, RINGS);
    // A ready queue keeps its parts.
    rig.write(reg::VIRTIO_MMIO_QUEUE_NUM, 8);
    rig.set_status(DRIVER_OK);
    rig.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    let size = rig.active(|activation| {
        assert_eq!(activation.features, 1 << 32);
        activation.queues[0].as_ref().unwrap().size()
    });
    assert_eq!(size, Some(16));
    // Bits don't go away.
    rig.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn an_invalid_queue_needs_a_reset_and_says_so() {
    let end = 0x8_0000;
    for (size, rings) in [
        (0, RINGS),
        (3, RINGS),
        (32, RINGS),
        (0x1_0010, RINGS),
        (16, [0x1008, 0x2000, 0x3000]),
        (16, [0x1000, 0x2001, 0x3000]),
        (16, [0x1000, 0x2000, 0x3002]),
        (16, [0x1000, 0, 0x3000]),
        (16, [u64::MAX - 15, 0x2000, 0x3000]),
        (16, [0x1000, end, 0x3000]),
        // Only the event index behind the ring lies outside.
        (16, [0x1000, end - 4 - 32, 0x3000]),
        (16, [0x1000, 0x2000, end - 4 - 128]),
    ] {
        let rig = Rig::new();
        rig.negotiate(1 << 32);
        rig.set_up_queue(0, size, rings);
        rig.set_status(DRIVER_OK);
        assert_ne!(rig.status() & NEEDS_RESET, 0, "{size} {rings:x?}");
        assert_eq!(rig.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), reg::VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(rig.line.load(Ordering::SeqCst), 1);
        assert!(rig.active(|_| ()).is_none());
        rig.start();
        assert!(rig.active(|_| ()).is_some());
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let rig = Rig::new();
    lock(rig.transport.device()).refuse = true;
    rig.start();
    assert_ne!(rig.status() & NEEDS_RESET, 0);
}

#[test]
fn a_driver_that_failed_gets_nothing_until_it_resets() {
    let rig = Rig::new();
    rig.start();
    rig.set_status(FAILED);
    assert!(rig.active(|_| ()).is_none());
    rig.set_status(DRIVER_OK);
    assert!(rig.active(|_| ()).is_none());
    rig.start();
    assert!(rig.active(|_| ()).is_some());
}

#[test]
fn a_reset_clears_all_but_the_config_generation() {
    let rig = Rig::new();
    rig.start();
    let interrupt = rig.active(|activation| activation.interrupt.clone()).unwrap();
    interrupt.config_changed(b"another space");
    let generation = rig.read(reg::VIRTIO_MMIO_CONFIG_GENERATION);
    rig.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    rig.write(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(lock(rig.transport.device()).resets, 2);
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(generation > 0 && rig.read(reg::VIRTIO_MMIO_CONFIG_GENERATION) >= generation);
    assert!(rig.transport.queue_notifiers()[1].read().is_err());
}

#[test]
fn interrupts_say_why_until_they_are_acknowledged() {
    let rig = Rig::new();
    rig.start();
    let interrupt = rig.active(|activation| activation.interrupt.clone()).unwrap();
    interrupt.queue_used(0);
    interrupt.queue_used(0);
    assert_eq!(rig.line.load(Ordering::SeqCst), 2);
    interrupt.config_changed(b"another space");
    assert_eq!(rig.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    rig.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    rig.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    // One is for all queues.
    interrupt.queues_used(0, 1);
    assert_eq!(rig.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    interrupt.needs_reset();
    interrupt.needs_reset();
    assert_eq!(rig.line.load(Ordering::SeqCst), 5);
}

#[test]
fn notifications_and_wake_ups_reach_the_device_through_the_event_loop() {
    let rig = Rig::new();
    let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
    events.add_subscriber(Box::new(rig.transport.events()));
    for index in [1, 1, 2, 0xffff, 0x1_0000] {
        rig.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, index);
    }
    rig.transport.queue_notifiers()[0].write(1).unwrap();
    lock(rig.transport.device()).wake.write(1).unwrap();
    assert_eq!(events.run_with_timeout(0).unwrap(), 3);
    assert_eq!(events.run_with_timeout(0).unwrap(), 0);
    let mut device = lock(rig.transport.device());
    device.notified.sort_unstable();
    assert_eq!((&device.notified[..], &device.woken[..]), (&[0, 1][..], &[0][..]));
}

#[test]
fn the_event_loop_leaves_a_queue_alone_that_the_device_reads_notifier() {
    let rig = Rig::new();
    lock(rig.transport.device()).own = Some(0);
    let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
    events.add_subscriber(Box::new(rig.transport.events()));
    for index in [0, 1] {
        rig.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, index);
    }
    lock(rig.transport.device()).wake.write(1).unwrap();
    assert_eq!(events.run_with_timeout(0).unwrap(), 2);
    assert_eq!(lock(rig.transport.device()).notified, [1]);
    assert_eq!(lock(rig.transport.device()).woken, [0]);
    // It is there for the device, which finds it among what it is activated with.
    assert_eq!(rig.transport.queue_notifiers()[0].read().unwrap(), 1);
    rig.start();
    rig.transport.queue_notifiers()[0].write(1).unwrap();
    assert_eq!(rig.active(|activation| activation.notifiers[0].read().unwrap()), Some(1));
}

/// What a driver, in its right mind or not, does with the registers.
#[derive(Clone, Debug)]
enum Access {
    Read { offset: u64, length: usize },
    Write { offset: u64, value: Vec<u8> },
    Register { register: u32, value: u32 },
    AddStatus(u32),
    Negotiate(u64),
    Queue { index: u32, size: u32, rings: [u64; 3] },
    Start,
    Interrupt,
}

fn access() -> impl Strategy<Value = Access> {
    let offset =
        prop_oneof![3 => (0..0x40u64).prop_map(|word| word * 4), 1 => 0..MMIO_LENGTH, 1 => any::<u64>()];
    let bit = (0..32u32).prop_map(|bit| 1 << bit);
    let word = prop_oneof![0..20u32, bit.clone(), any::<u32>()];
    let address = prop_oneof![(0..0x9_0000u64).prop_map(|at| at & !15), 0..0x9_0000u64, any::<u64>()];
    prop_oneof![
        (offset.clone(), 0..9usize).prop_map(|(offset, length)| Access::Read { offset, length }),
        (offset, prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, value)| Access::Write { offset, value }),
        (0..0x40u32, word.clone()).prop_map(|(i, value)| Access::Register { register: i * 4, value }),
        bit.prop_map(Access::AddStatus),
        prop_oneof![Just(1 << 32), any::<u64>()].prop_map(Access::Negotiate),
        (0..3u32, word, [address.clone(), address.clone(), address])
            .prop_map(|(index, size, rings)| Access::Queue { index, size, rings }),
        Just(Access::Start),
        Just(Access::Interrupt),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_the_rules_of_the_status(
        accesses in prop::collection::vec(access(), 1..60),
    ) {
        let rig = Rig::new();
        for access in accesses {
            let before = rig.status();
            let resets = lock(rig.transport.device()).resets;
            match access {
                Access::Read { offset, length } => rig.transport.read(offset, &mut vec![0; length]),
                Access::Write { offset, value } => rig.transport.write(offset, &value),
                Access::Register { register, value } => rig.write(register, value),
                Access::AddStatus(bit) => rig.set_status(bit),
                Access::Negotiate(features) => rig.negotiate(features),
                Access::Queue { index, size, rings } => rig.set_up_queue(index, size, rings),
                Access::Start => rig.start(),
                Access::Interrupt => {
                    rig.active(|activation| activation.interrupt.queue_used(0));
                }
            }
            let status = rig.status();
            let was_reset = lock(rig.transport.device()).resets > resets;
            prop_assert!(was_reset || before & !status == 0, "lost bits of {before:#x}: {status:#x}");
            let has = |bit| status & bit != 0;
            prop_assert!(!has(DRIVER) || has(ACKNOWLEDGE));
            prop_assert!(!has(FEATURES_OK) || has(DRIVER));
            prop_assert!(!has(DRIVER_OK) || has(FEATURES_OK));
            prop_assert!(!has(NEEDS_RESET) || has(DRIVER_OK));
            let live = has(DRIVER_OK) && !has(NEEDS_RESET) && !has(FAILED);
            prop_assert_eq!(rig.active(|_| ()).is_some(), live);
            if let Some(features) = rig.active(|activation| activation.features) {
                prop_assert_eq!(features & !rig.offered(), 0);
                prop_assert_ne!(features & 1 << 32, 0);
            }
        }
    }
}
