//! A device that is suspended in the middle of traffic, and one that goes on from its state.

mod careful;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::net::sockopt::set_socket_send_buffer_size;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MQ,
};

use super::*;
use crate::lock;
use crate::virtio::net::config::{NetLimits, NetSettings};
use crate::virtio::net::device::{Net, NetState};
use crate::virtio::net::mac::MacAddress;
use crate::virtio::net::stream::Stream;
use crate::virtio::rate_limit::Limit;
use crate::virtio::testing::dump;
use crate::virtio::{Activation, QueueState, VirtioDevice};

const FEATURES: u64 =
    1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR | 1 << VIRTIO_NET_F_MRG_RXBUF;
const SIZE: u16 = 16;
/// Where the buffers are: those of the receive queue, then those of the transmit queue.
const RX_BUFFERS: u64 = FREE;
const TX_BUFFERS: u64 = FREE + 0x1_0000;
const BUFFER: u32 = 0x1000;

fn settings(limits: NetLimits) -> NetSettings {
    NetSettings { mac: MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap(), mtu: None, limits }
}

/// The host's end of a network, and a way to make another backend on it.
enum Host {
    Datagrams {
        near: UnixDatagram,
        far: UnixDatagram,
    },
    Bytes {
        near: UnixStream,
        far: UnixStream,
        /// What was sent by frames and not written yet.
        unwritten: VecDeque<u8>,
        /// What was read and is not a whole frame.
        read: Vec<u8>,
    },
}

impl Host {
    fn datagrams() -> Self {
        let (near, far) = UnixDatagram::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        Self::Datagrams { near, far }
    }

    fn bytes() -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        // So that a frame goes in parts.
        set_socket_send_buffer_size(&near, 4096).unwrap();
        far.set_nonblocking(true).unwrap();
        Self::Bytes { near, far, unwritten: VecDeque::new(), read: Vec::new() }
    }

    fn backend(&self) -> Backend {
        match self {
            Self::Datagrams { near, .. } => {
                Backend::Tap(Tap::of_socket(near.try_clone().unwrap(), Ioctls::default()))
            }
            Self::Bytes { near, .. } => Backend::Stream(Stream::new(near.try_clone().unwrap()).unwrap()),
        }
    }

    /// Sends a frame; false if there is no room for it now.
    fn send(&mut self, frame: &[u8]) -> bool {
        match self {
            Self::Datagrams { far, .. } => far.send(&[&[0; HEADER][..], frame].concat()).is_ok(),
            Self::Bytes { unwritten, .. } => {
                unwritten.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
                unwritten.extend(frame);
                true
            }
        }
    }

    /// Writes up to `count` bytes of the frames that were sent.
    fn write(&mut self, count: usize) {
        if let Self::Bytes { far, unwritten, .. } = self {
            let here = unwritten.len().min(count);
            let bytes: Vec<u8> = unwritten.iter().copied().take(here).collect();
            if let Ok(written) = far.write(&bytes) {
                unwritten.drain(..written);
            }
        }
    }

    /// Reads the frames that have come, or about `count` bytes of them.
    fn read(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        match self {
            Self::Datagrams { far, .. } => {
                frames.extend(take_all(far).into_iter().map(|packet| packet[HEADER..].to_vec()));
            }
            Self::Bytes { far, read, .. } => {
                let mut part = vec![0; count];
                match far.read(&mut part) {
                    Ok(length) => read.extend(&part[..length]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                while let Some(length) = read.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize)
                    && let Some(frame) = read.get(4..4 + length)
                {
                    frames.push(frame.to_vec());
                    read.drain(..4 + length);
                }
            }
        }
        frames
    }
}

/// A device with its driver and its host, and what both have sent and received.
struct Model {
    host: Host,
    net: Option<Net>,
    drivers: Vec<Driver>,
    /// Chains that were made available and not given back.
    open: [u16; 2],
    to_guest: Vec<Vec<u8>>,
    at_guest: Vec<Vec<u8>>,
    to_host: Vec<Vec<u8>>,
    at_host: Vec<Vec<u8>>,
}

impl Model {
    fn new(host: Host, event_idx: bool) -> Self {
        let mut net = Net::new(settings(NetLimits::default()), vec![host.backend()]).unwrap();
        let mut drivers = Driver::several(&[SIZE, SIZE, SIZE]);
        drivers.iter_mut().for_each(|driver| driver.event_idx = event_idx);
        net.activate(Driver::activation_of(&drivers, FEATURES)).unwrap();
        let (open, [to_guest, at_guest, to_host, at_host]) = ([0; 2], [(); 4].map(|()| Vec::new()));
        Self { host, net: Some(net), drivers, open, to_guest, at_guest, to_host, at_host }
    }

    /// A frame that is like no other.
    fn frame(&self, length: usize) -> Vec<u8> {
        let number = self.to_guest.len() + self.to_host.len();
        let numbers = u32::try_from(number).unwrap().to_be_bytes();
        numbers.into_iter().cycle().take(length.max(14)).collect()
    }

    fn host_sends(&mut self, length: usize) {
        let frame = self.frame(length);
        if self.host.send(&frame) {
            self.to_guest.push(frame);
        }
    }

    fn guest_sends(&mut self, length: usize) {
        self.take_used();
        if self.open[1] == SIZE {
            return;
        }
        let frame = self.frame(length);
        let driver = &mut self.drivers[1];
        let place = TX_BUFFERS + u64::from(BUFFER) * (self.to_host.len() as u64 % u64::from(SIZE));
        driver.write(place, &[&[0; HEADER][..], &frame].concat());
        driver.add(&[(place, u32::try_from(HEADER + frame.len()).unwrap(), 0)]);
        driver.notifier.write(1).unwrap();
        self.open[1] += 1;
        self.to_host.push(frame);
    }

    /// The driver makes buffers available, one chain each.
    fn give_buffers(&mut self, count: u16) {
        self.take_used();
        for _ in 0..count.min(SIZE - self.open[0]) {
            let driver = &mut self.drivers[0];
            let place = RX_BUFFERS + u64::from(BUFFER) * u64::from(driver.next_descriptor());
            driver.add(&[(place, BUFFER, WRITE)]);
            self.open[0] += 1;
        }
        self.drivers[0].notifier.write(1).unwrap();
    }

    /// Takes what the device has given back. Each chain comes back once: more than are open would not.
    fn take_used(&mut self) {
        for (head, length) in self.drivers[0].take_used() {
            self.open[0] = self.open[0].checked_sub(1).expect("a chain came back twice");
            let place = RX_BUFFERS + u64::from(BUFFER) * u64::from(head);
            self.at_guest.push(self.drivers[0].read(place, length as usize)[HEADER..].to_vec());
        }
        for _ in self.drivers[1].take_used() {
            self.open[1] = self.open[1].checked_sub(1).expect("a chain came back twice");
        }
    }

    fn host_reads(&mut self, count: usize) {
        self.at_host.extend(self.host.read(count));
    }

    /// Suspends the device, and goes on with it or with a `new` one that has its state.
    fn suspend(&mut self, new: bool) {
        let mut net = self.net.take().unwrap();
        let queues = net.suspend().unwrap();
        let before = dump(&self.drivers[0].memory);
        // It stays quiet, whatever host and driver do.
        self.host_sends(100);
        self.host.write(60);
        self.drivers.iter().for_each(|driver| driver.notifier.write(1).unwrap());
        let positions: Vec<_> =
            queues.iter().map(|queue| queue.as_ref().map(|queue| queue.state())).collect();
        let bytes = serde_json::to_vec(&(net.state(), positions)).unwrap();
        let (state, positions): (NetState, Vec<Option<QueueState>>) = serde_json::from_slice(&bytes).unwrap();
        if new {
            net = Net::new(settings(NetLimits::default()), vec![self.host.backend()]).unwrap();
        }
        assert!(dump(&self.drivers[0].memory) == before, "a suspended device wrote to memory");
        net.resume(Some(resumed(&self.drivers, FEATURES, &positions)), state).unwrap();
        self.drivers.iter().for_each(|driver| driver.notifier.write(1).unwrap());
        self.net = Some(net);
    }

    /// Goes on until all has arrived, and checks that.
    fn finish(mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while (self.at_guest.len(), self.at_host.len()) != (self.to_guest.len(), self.to_host.len())
            || self.open[1] > 0
        {
            self.give_buffers(SIZE);
            self.host.write(1 << 16);
            self.host_reads(1 << 16);
            assert!(
                Instant::now() < deadline,
                "{} of {} packets are at the guest, {} of {} at the host",
                self.at_guest.len(),
                self.to_guest.len(),
                self.at_host.len(),
                self.to_host.len()
            );
            std::thread::yield_now();
        }
        assert!(self.at_guest == self.to_guest && self.at_host == self.to_host);
        // Nothing comes twice, later.
        drop(self.net.take());
        self.take_used();
        assert_eq!((self.at_guest.len(), self.host.read(1 << 16).len()), (self.to_guest.len(), 0));
    }
}

/// The activation of a device that goes on where another was.
fn resumed(drivers: &[Driver], features: u64, positions: &[Option<QueueState>]) -> Activation {
    let mut activation = Driver::activation_of(drivers, features);
    assert_eq!(activation.queues.len(), positions.len());
    for (queue, position) in activation.queues.iter_mut().zip(positions) {
        match position {
            Some(position) => queue.as_mut().unwrap().set_state(*position),
            None => *queue = None,
        }
    }
    activation
}

#[derive(Clone, Debug)]
enum Step {
    HostSends(usize),
    HostWrites(usize),
    HostReads(usize),
    GuestSends(usize),
    GiveBuffers(u16),
    Suspend { new: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (14..3000_usize).prop_map(Step::HostSends),
        4 => (1..3000_usize).prop_map(Step::HostWrites),
        2 => (1..3000_usize).prop_map(Step::HostReads),
        4 => (14..3000_usize).prop_map(Step::GuestSends),
        3 => (1..8_u16).prop_map(Step::GiveBuffers),
        3 => any::<bool>().prop_map(|new| Step::Suspend { new }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn each_packet_arrives_once_and_each_chain_comes_back_once(
        is_stream: bool, event_idx: bool, steps in prop::collection::vec(step(), 1..40),
    ) {
        let host = if is_stream { Host::bytes() } else { Host::datagrams() };
        let mut model = Model::new(host, event_idx);
        for step in steps {
            match step {
                Step::HostSends(length) => model.host_sends(length),
                Step::HostWrites(count) => model.host.write(count),
                Step::HostReads(count) => model.host_reads(count),
                Step::GuestSends(length) => model.guest_sends(length),
                Step::GiveBuffers(count) => model.give_buffers(count),
                Step::Suspend { new } => model.suspend(new),
            }
        }
        model.finish();
    }
}

#[test]
fn a_frame_that_went_in_part_is_in_the_state() {
    let mut model = Model::new(Host::bytes(), false);
    model.give_buffers(1);
    model.host_sends(1000);
    model.host.write(500);
    // The socket is full in the middle of a frame.
    let metrics = model.net.as_ref().unwrap().metrics();
    let stalls = || {
        let mut stalls = 0;
        metrics.visit(&mut |name, count| stalls += if name == "tx_stalls" { count } else { 0 });
        stalls
    };
    model.drivers[1].add(&[(TX_BUFFERS, 60_000, 0)]);
    model.drivers[1].notifier.write(1).unwrap();
    while stalls() == 0 {
        std::thread::yield_now();
    }
    let mut net = model.net.take().unwrap();
    net.suspend().unwrap();
    let state = serde_json::to_value(net.state()).unwrap();
    let stream = &state["stream"];
    assert_eq!(stream["incoming"]["Frame"]["length"], 1000, "{stream}");
    assert_eq!(stream["incoming"]["Frame"]["received"].as_array().unwrap().len(), 496);
    assert!(!stream["unsent"].as_array().unwrap().is_empty());
    net.resume(None, net.state()).unwrap();
    assert_eq!(serde_json::to_value(net.state()).unwrap(), state);
}

#[test]
fn another_connection_begins_with_a_whole_frame() {
    let mut model = Model::new(Host::bytes(), false);
    model.give_buffers(1);
    model.host_sends(1000);
    model.host.write(500);
    let positions = |net: &mut Net| {
        net.suspend()
            .unwrap()
            .iter()
            .map(|queue| queue.as_ref().map(|queue| queue.state()))
            .collect::<Vec<_>>()
    };
    let mut net = model.net.take().unwrap();
    let (positions, state) = (positions(&mut net), net.state());
    model.host = Host::bytes();
    let mut net = Net::new(settings(NetLimits::default()), vec![model.host.backend()]).unwrap();
    net.resume(Some(resumed(&model.drivers, FEATURES, &positions)), state).unwrap();
    model.net = Some(net);
    model.to_guest.clear();
    model.host_sends(900);
    model.guest_sends(800);
    model.finish();
}

#[test]
fn the_tap_is_set_up_again_and_the_drivers_settings_are_kept() {
    let taps = || (0..3).map(|_| tap()).map(|(backend, wire, ioctls)| (backend, (wire, ioctls)));
    let limit = |per_second: u64, burst: u64| {
        Some(Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
    };
    let receive = RateLimits { bandwidth: None, operations: limit(1, 10) };
    let limits = NetLimits { receive, transmit: RateLimits::default() };
    let features =
        FEATURES | 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
    let (backends, hosts): (Vec<_>, Vec<_>) = taps().unzip();
    let mut net = Net::new(settings(limits), backends).unwrap();
    let mut drivers = Driver::several(&[SIZE; 7]);
    net.activate(Driver::activation_of(&drivers, features)).unwrap();
    let counters = drivers[0].counters.clone();
    for (count, command) in [(1, vec![1, 1, 2, 0, 0, 0, 0, 9]), (2, vec![4, 0, 2, 0])] {
        let length = u32::try_from(command.len()).unwrap();
        drivers[6].write(FREE, &command);
        drivers[6].add(&[(FREE, length, 0), (FREE + 0x100, 1, WRITE)]);
        drivers[6].notifier.write(1).unwrap();
        counters.wait_until(|| drivers[6].used_count() == count);
        assert_eq!(drivers[6].read(FREE + 0x100, 1), [0]);
    }
    drivers[0].add(&[(FREE + 0x1000, 2000, WRITE)]);
    drivers[0].notifier.write(1).unwrap();
    hosts[0].0.send(&packet(60)).unwrap();
    counters.wait_until(|| drivers[0].used_count() == 1);

    let positions: Vec<_> =
        net.suspend().unwrap().iter().map(|queue| queue.as_ref().map(|queue| queue.state())).collect();
    let state = net.state();
    assert_eq!((state.mac.to_string().as_str(), state.pairs), ("02:00:00:00:00:09", 2));
    assert!(state.receive_limit.operations.is_some_and(|lack| !lack.is_zero()), "{state:?}");
    drop(net);

    let (backends, hosts): (Vec<_>, Vec<_>) = taps().unzip();
    let mut net = Net::new(settings(limits), backends).unwrap();
    net.resume(Some(resumed(&drivers, features, &positions)), state.clone()).unwrap();
    let ioctls = |pair: usize| lock(&hosts[pair].1).clone();
    assert_eq!(ioctls(0), ["offloads 0x3"]);
    assert_eq!(
        (ioctls(1), ioctls(2)),
        (vec!["attached false".into(), "attached true".into()], vec!["attached false".into()])
    );
    assert_eq!(&net.config_space()[..6], state.mac.bytes());
    // Both pairs work, and so does the control queue.
    for pair in 0..2 {
        drivers[2 * pair].add(&[(FREE + 0x1000, 2000, WRITE)]);
        drivers[2 * pair].notifier.write(1).unwrap();
        hosts[pair].0.send(&packet(70 + pair)).unwrap();
        let before = if pair == 0 { 1 } else { 0 };
        counters.wait_until(|| drivers[2 * pair].used_count() == before + 1);
    }
    drivers[6].write(FREE, &[4, 0, 3, 0]);
    drivers[6].add(&[(FREE, 4, 0), (FREE + 0x100, 1, WRITE)]);
    drivers[6].notifier.write(1).unwrap();
    counters.wait_until(|| drivers[6].used_count() == 3);
    assert_eq!(ioctls(2), ["attached false", "attached true"]);
}

#[test]
fn a_link_that_is_down_stays_so_on_its_backend_and_is_up_on_another() {
    let host = Host::bytes();
    let mut net = Net::new(settings(NetLimits::default()), vec![host.backend()]).unwrap();
    let drivers = Driver::several(&[SIZE; 3]);
    net.activate(Driver::activation_of(&drivers, FEATURES)).unwrap();
    drop(host);
    let counters = drivers[0].counters.clone();
    let changes = || counters.config_changed.load(std::sync::atomic::Ordering::SeqCst);
    counters.wait_until(|| changes() == 1);
    let positions = |net: &mut Net| {
        net.suspend()
            .unwrap()
            .iter()
            .map(|queue| queue.as_ref().map(|queue| queue.state()))
            .collect::<Vec<_>>()
    };
    let saved = positions(&mut net);
    let state = net.state();
    assert!(!state.link_is_up);
    net.resume(Some(resumed(&drivers, FEATURES, &saved)), state.clone()).unwrap();
    assert!(!net.link_is_up());
    assert_eq!(changes(), 1);

    let host = Host::bytes();
    let mut net = Net::new(settings(NetLimits::default()), vec![host.backend()]).unwrap();
    net.resume(Some(resumed(&drivers, FEATURES, &saved)), state).unwrap();
    assert!(net.link_is_up());
    assert_eq!(changes(), 2);
}

#[test]
fn a_state_that_no_such_device_can_have_is_refused() {
    let host = Host::bytes();
    let net = || Net::new(settings(NetLimits::default()), vec![host.backend()]).unwrap();
    let good = net().state();
    net().resume(None, good.clone()).unwrap();
    for bad in [
        NetState { pairs: 0, ..good.clone() },
        NetState { pairs: 2, ..good.clone() },
        NetState { offloads: 1 << VIRTIO_NET_F_GUEST_CSUM, ..good.clone() },
    ] {
        assert!(net().resume(None, bad.clone()).is_err(), "{bad:?}");
    }
    let mut one = net();
    one.suspend().unwrap();
    let mut value = serde_json::to_value(one.state()).unwrap();
    value["stream"]["unsent"] = vec![0; 70_000].into();
    assert!(net().resume(None, serde_json::from_value(value.clone()).unwrap()).is_err());
    value["stream"]["unsent"] = serde_json::json!([]);
    value["stream"]["incoming"] = serde_json::json!({"Frame": {"length": 5, "received": [1, 2, 3, 4, 5]}});
    assert!(net().resume(None, serde_json::from_value(value.clone()).unwrap()).is_err());
    value["mac"] = serde_json::json!([1, 0, 0, 0, 0, 0]);
    assert!(serde_json::from_value::<NetState>(value).is_err(), "a multicast address");
}
