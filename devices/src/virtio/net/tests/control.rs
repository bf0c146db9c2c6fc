//! The control queue.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_MQ,
};

use super::*;
use crate::lock;
use crate::virtio::Budget;
use crate::virtio::net::control::Control;
use crate::virtio::net::device::{Settings, Shared};
use crate::virtio::net::mac::MacAddress;
use crate::virtio::net::taps::{IOCTLS, TapSettings, Taps};
use crate::virtio::queue::MAX_CHAIN;
use crate::virtio::rate_limit::Limit;
use crate::virtio::testing::wait_readable;

const ANSWER: u64 = FREE + 0x100;
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
const ALL: u64 =
    OFFLOADS | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR | 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;

struct Commands {
    driver: Driver,
    control: Control,
    taps: Taps,
    shared: Arc<Shared>,
    ioctls: Vec<Ioctls>,
}

impl Commands {
    fn new(features: u64) -> Self {
        Self::limited(features, IOCTLS)
    }

    fn limited(features: u64, limit: Limit) -> Self {
        let driver = Driver::new(16);
        let queue = ActiveQueue::take(&mut driver.activation(features), 0).unwrap();
        let (mut taps, mut ioctls) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (backend, _, one) = tap();
            taps.push(backend.tap().unwrap().clone());
            ioctls.push(one);
        }
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        let shared = Arc::new(Shared::new(Settings { mac, pairs: 1, offloads: OFFLOADS }, 3, None));
        let mut taps = Taps::new(taps, limit, shared.metrics.clone()).unwrap();
        taps.set(TapSettings { pairs: 1, offloads: OFFLOADS }).unwrap();
        let control = Control::new(queue, features, 3, shared.clone());
        Self { driver, control, taps, shared, ioctls }
    }

    /// Gives a command and takes its answer.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.driver.write(FREE, bytes);
        self.driver.write(ANSWER, &[0xee]);
        let length = u32::try_from(bytes.len()).unwrap();
        // As Linux does it: class and command, then the data, then the answer.
        let split = length.min(2);
        self.driver.add(&[(FREE, split, 0), (FREE + 2, length - split, 0), (ANSWER, 1, WRITE)]);
        self.control.turn(&mut self.taps);
        assert_eq!(self.driver.take_used().len(), 1);
        self.driver.read(ANSWER, 1)[0]
    }

    fn ioctls(&self, tap: usize) -> Vec<String> {
        std::mem::take(&mut lock(&self.ioctls[tap]))
    }
}

fn offloads(bits: u64) -> Vec<u8> {
    [&[5, 0][..], &bits.to_le_bytes()].concat()
}

#[test]
fn the_driver_can_change_its_address() {
    let mut commands = Commands::new(ALL);
    assert_eq!(commands.command(&[1, 1, 2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(lock(&commands.shared.settings).mac.to_string(), "02:03:04:05:06:07");
    // Those of a group, and none.
    assert_eq!(commands.command(&[1, 1, 3, 3, 4, 5, 6, 7]), 1);
    assert_eq!(commands.command(&[1, 1, 0, 0, 0, 0, 0, 0]), 1);
    assert_eq!(lock(&commands.shared.settings).mac.to_string(), "02:03:04:05:06:07");
}

#[test]
fn the_driver_chooses_by_how_many_queues_packets_come() {
    let mut commands = Commands::new(ALL);
    assert_eq!(commands.ioctls(2), ["attached false"]);
    assert_eq!(commands.ioctls(1), ["attached false"]);
    assert_eq!(commands.command(&[4, 0, 3, 0]), 0);
    assert_eq!(
        (commands.ioctls(1), commands.ioctls(2)),
        (vec!["attached true".into()], vec!["attached true".into()])
    );
    assert_eq!(commands.command(&[4, 0, 2, 0]), 0);
    assert_eq!(commands.ioctls(2), ["attached false"]);
    assert_eq!(lock(&commands.shared.settings).pairs, 2);
    for wrong in [0, 4, 0xff] {
        assert_eq!(commands.command(&[4, 0, wrong, 0]), 1);
    }
    // The first one stays attached.
    assert_eq!(commands.ioctls(0), ["offloads 0x3"]);
    assert_eq!(lock(&commands.shared.settings).pairs, 2);
}

#[test]
fn the_driver_chooses_what_it_takes_of_what_it_has_negotiated() {
    let mut commands = Commands::new(ALL);
    assert_eq!(commands.command(&offloads(1 << VIRTIO_NET_F_GUEST_CSUM)), 0);
    assert_eq!(commands.command(&offloads(OFFLOADS)), 0);
    assert_eq!(commands.command(&offloads(0)), 0);
    // Segments need checksums.
    assert_eq!(commands.command(&offloads(1 << VIRTIO_NET_F_GUEST_TSO4)), 0);
    assert_eq!(commands.ioctls(0), ["offloads 0x3", "offloads 0x1", "offloads 0x3", "offloads 0x0"]);
    for wrong in [1 << VIRTIO_NET_F_GUEST_UFO, 1 << 63, 1 << VIRTIO_NET_F_MQ] {
        assert_eq!(commands.command(&offloads(wrong)), 1);
    }
    assert_eq!(lock(&commands.shared.settings).offloads, 1 << VIRTIO_NET_F_GUEST_TSO4);
}

#[test]
fn what_is_no_command_gets_an_error() {
    let mut commands = Commands::new(ALL);
    for bytes in [
        &[][..],
        &[1],
        &[1, 1],
        &[1, 1, 2, 3, 4, 5, 6],
        &[4, 0, 1],
        &[5, 0, 1, 0, 0, 0],
        &[0, 0, 1],
        &[1, 0, 0, 0, 0, 0],
        &[2, 0, 1, 0],
        &[0xff; 16],
    ] {
        assert_eq!(commands.command(bytes), 1, "{bytes:?}");
    }
    assert!(!commands.driver.counters.broken());
}

#[test]
fn what_was_not_negotiated_is_no_command() {
    let mut commands = Commands::new(0);
    for bytes in [&[1, 1, 2, 3, 4, 5, 6, 7][..], &[4, 0, 1, 0], &offloads(0)] {
        assert_eq!(commands.command(bytes), 1);
    }
}

#[test]
fn a_command_without_room_for_an_answer_breaks_the_device() {
    let mut commands = Commands::new(ALL);
    commands.driver.write(FREE, &[4, 0, 1, 0]);
    commands.driver.add(&[(FREE, 4, 0)]);
    commands.control.turn(&mut commands.taps);
    assert!(commands.driver.counters.broken());
}

/// A limit that gives nothing back while a test runs.
fn ioctls_at_once(burst: u64) -> Limit {
    Limit { per_second: 1.try_into().unwrap(), burst: burst.try_into().unwrap() }
}

#[test]
fn commands_that_change_nothing_cause_no_ioctl() {
    let mut commands = Commands::limited(ALL, ioctls_at_once(1));
    let before = commands.shared.metrics.tap_ioctls.get();
    for _ in 0..1000 {
        assert_eq!(commands.command(&[4, 0, 1, 0]), 0);
        assert_eq!(commands.command(&offloads(OFFLOADS)), 0);
    }
    assert_eq!(commands.shared.metrics.tap_ioctls.get(), before);
    assert_eq!(commands.shared.metrics.control_operations.get(), 2000);
}

#[test]
fn commands_that_change_the_tap_wait_for_the_limit_in_the_queue() {
    const BURST: u64 = 6;
    let mut commands = Commands::limited(ALL, ioctls_at_once(BURST));
    let before = commands.shared.metrics.tap_ioctls.get();
    let mut done = 0_u64;
    while !commands.taps.is_waiting() {
        let offloads = offloads(if done.is_multiple_of(2) { 0 } else { OFFLOADS });
        commands.driver.write(FREE, &offloads);
        commands.driver.add(&[(FREE, 10, 0), (ANSWER, 1, WRITE)]);
        commands.control.turn(&mut commands.taps);
        done += commands.driver.take_used().len() as u64;
    }
    assert_eq!((done, commands.shared.metrics.tap_ioctls.get() - before), (BURST, BURST));
    // Those behind it wait, too, and all of them are done when the timer says so.
    commands.driver.write(FREE + 0x200, &[1, 1, 2, 3, 4, 5, 6, 7]);
    commands.driver.add(&[(FREE + 0x200, 8, 0), (ANSWER + 1, 1, WRITE)]);
    wait_readable(commands.taps.timer().unwrap());
    commands.taps.timer_expired();
    commands.control.turn(&mut commands.taps);
    assert_eq!(commands.driver.take_used().len(), 2);
    assert_eq!(lock(&commands.shared.settings).mac.to_string(), "02:03:04:05:06:07");
    assert_eq!(commands.shared.metrics.tap_ioctls.get() - before, BURST + 1);
}

#[test]
fn a_command_that_takes_several_ioctls_pays_for_them_afterwards() {
    let mut commands = Commands::limited(ALL, ioctls_at_once(1));
    assert_eq!(commands.command(&[4, 0, 3, 0]), 0);
    let after = commands.shared.metrics.tap_ioctls.get();
    commands.driver.write(FREE, &[4, 0, 1, 0]);
    commands.driver.add(&[(FREE, 4, 0), (ANSWER, 1, WRITE)]);
    commands.control.turn(&mut commands.taps);
    assert!(commands.taps.is_waiting() && commands.driver.take_used().is_empty());
    assert_eq!(commands.shared.metrics.tap_ioctls.get(), after);
}

#[test]
fn a_turn_of_commands_ends_by_its_descriptors() {
    let mut commands = Commands::new(ALL);
    // The command, hundreds of empty buffers, and the answer.
    commands.driver.write(FREE, &[4, 0, 1, 0]);
    let mut buffers = vec![(FREE, 4, 0)];
    buffers.extend((0..1000).map(|_| (FREE, 0, 0)));
    buffers.push((ANSWER, 1, WRITE));
    for _ in 0..16 {
        commands.driver.add_indirect(0x2_0000, &buffers);
    }
    let mut turns = 0;
    let mut answered = 0;
    while answered < 16 {
        commands.control.turn(&mut commands.taps);
        answered += commands.driver.take_used().len();
        turns += 1;
        assert_eq!(commands.driver.counters.take_again(), answered < 16);
    }
    commands.control.turn(&mut commands.taps);
    let (spent, budget) = (commands.driver.meter.largest_turn(), Budget::TURN);
    assert!(turns > 2 && spent.descriptors < budget.descriptors + u64::from(MAX_CHAIN), "{turns} {spent:?}");
}
