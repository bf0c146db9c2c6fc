//! The control queue.

use std::sync::Mutex;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_MQ,
};

use super::super::control::{Control, Taps};
use super::super::device::NetState;
use super::super::mac::MacAddress;
use super::*;
use crate::lock;

const ANSWER: u64 = FREE + 0x100;
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
const ALL: u64 =
    OFFLOADS | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR | 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;

struct Commands {
    driver: Driver,
    control: Control,
    state: Arc<Mutex<NetState>>,
    told: Vec<Told>,
}

impl Commands {
    fn new(features: u64) -> Self {
        let driver = Driver::new(16);
        let queue = ActiveQueue::take(&mut driver.activation(features), 0).unwrap();
        let (mut taps, mut told) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (backend, _, one) = tap();
            taps.push(backend.tap().unwrap().clone());
            told.push(one);
        }
        let mut taps = Taps::new(taps);
        taps.attach(1).unwrap();
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        let state = Arc::new(Mutex::new(NetState { mac, pairs: 1, offloads: OFFLOADS }));
        let taps = Arc::new(Mutex::new(taps));
        let control = Control::new(queue, (features, 3), taps, state.clone(), Arc::default());
        Self { driver, control, state, told }
    }

    /// Gives a command and takes its answer.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.driver.write(FREE, bytes);
        self.driver.write(ANSWER, &[0xee]);
        let length = u32::try_from(bytes.len()).unwrap();
        // As Linux does it: class and command, then the data, then the answer.
        let split = length.min(2);
        self.driver.add(&[(FREE, split, 0), (FREE + 2, length - split, 0), (ANSWER, 1, WRITE)]);
        self.control.turn();
        assert_eq!(self.driver.take_used().len(), 1);
        self.driver.read(ANSWER, 1)[0]
    }

    fn told(&self, tap: usize) -> Vec<String> {
        std::mem::take(&mut lock(&self.told[tap]))
    }
}

fn offloads(bits: u64) -> Vec<u8> {
    [&[5, 0][..], &bits.to_le_bytes()].concat()
}

#[test]
fn the_driver_can_change_its_address() {
    let mut commands = Commands::new(ALL);
    assert_eq!(commands.command(&[1, 1, 2, 3, 4, 5, 6, 7]), 0);
    assert_eq!(lock(&commands.state).mac.to_string(), "02:03:04:05:06:07");
    // Those of a group, and none.
    assert_eq!(commands.command(&[1, 1, 3, 3, 4, 5, 6, 7]), 1);
    assert_eq!(commands.command(&[1, 1, 0, 0, 0, 0, 0, 0]), 1);
    assert_eq!(lock(&commands.state).mac.to_string(), "02:03:04:05:06:07");
}

#[test]
fn the_driver_chooses_by_how_many_queues_packets_come() {
    let mut commands = Commands::new(ALL);
    assert_eq!(commands.told(2), ["attached false"]);
    assert_eq!(commands.told(1), ["attached false"]);
    assert_eq!(commands.command(&[4, 0, 3, 0]), 0);
    assert_eq!(
        (commands.told(1), commands.told(2)),
        (vec!["attached true".into()], vec!["attached true".into()])
    );
    assert_eq!(commands.command(&[4, 0, 2, 0]), 0);
    assert_eq!(commands.told(2), ["attached false"]);
    assert_eq!(lock(&commands.state).pairs, 2);
    for wrong in [0, 4, 0xff] {
        assert_eq!(commands.command(&[4, 0, wrong, 0]), 1);
    }
    // The first one stays attached.
    assert_eq!(commands.told(0), [""; 0]);
    assert_eq!(lock(&commands.state).pairs, 2);
}

#[test]
fn the_driver_chooses_what_it_takes_of_what_it_has_negotiated() {
    let mut commands = Commands::new(ALL);
    assert_eq!(commands.command(&offloads(1 << VIRTIO_NET_F_GUEST_CSUM)), 0);
    assert_eq!(commands.command(&offloads(OFFLOADS)), 0);
    assert_eq!(commands.command(&offloads(0)), 0);
    // Segments without checksums are no segments.
    assert_eq!(commands.command(&offloads(1 << VIRTIO_NET_F_GUEST_TSO4)), 0);
    assert_eq!(commands.told(0), ["offloads 0x1", "offloads 0x3", "offloads 0x0", "offloads 0x0"]);
    for wrong in [1 << VIRTIO_NET_F_GUEST_UFO, 1 << 63, 1 << VIRTIO_NET_F_MQ] {
        assert_eq!(commands.command(&offloads(wrong)), 1);
    }
    assert_eq!(lock(&commands.state).offloads, 1 << VIRTIO_NET_F_GUEST_TSO4);
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
fn a_command_that_cannot_be_answered_breaks_the_device() {
    let mut commands = Commands::new(ALL);
    commands.driver.write(FREE, &[4, 0, 1, 0]);
    commands.driver.add(&[(FREE, 4, 0)]);
    commands.control.turn();
    assert!(commands.driver.counters.broken());
}
