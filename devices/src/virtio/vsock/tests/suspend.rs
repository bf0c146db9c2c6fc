//! Suspending and resuming, the device itself and another one in its place.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::guest::{GUEST_BUFFER, expect_end, header, pattern, read_exactly};
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::machine::{Machine, Step, steps};
use crate::virtio::testing::{FREE, WRITE, dump};
use crate::virtio::vsock::{Vsock, VsockListener};

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];
/// The event queue.
const EVENT: usize = 2;

#[test]
pub(super) fn a_suspended_device_touches_nothing_and_goes_on_with_its_connections() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    let saved = guest.suspend();
    let before = dump(&guest.drivers[0].memory);
    // All that can happen does: data, the end of a direction, a new connection, a notification.
    host.write_all(b"from the host").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let mut process = guest.dial("CONNECT 52\n");
    guest.post(Header { op: op::RW, len: 5, ..header(80, 1025) }, b"hello");
    let posted = dump(&guest.drivers[0].memory);
    // What does not happen has no event: the time for it is what is given.
    std::thread::sleep(Duration::from_millis(50));
    assert!(dump(&guest.drivers[0].memory) == posted && posted != before);
    guest.resume(&saved);
    assert_eq!(read_exactly(&mut host, 5), b"hello");
    let mut requests = Vec::new();
    let mut data = Vec::new();
    let mut ended = false;
    while !ended || requests.is_empty() {
        let (header, payload) = guest.receive();
        match header.op {
            op::RW => data.extend(payload),
            op::SHUTDOWN => ended = true,
            op::REQUEST => requests.push(header),
            op => panic!("operation {op}"),
        }
    }
    assert_eq!((data.as_slice(), requests[0].dst_port), (&b"from the host"[..], 52));
    guest.send(Header { op: op::RESPONSE, ..header(requests[0].src_port, 52) }, b"");
    assert_eq!(read_exactly(&mut process, 3), b"OK ");
    assert!(!guest.device.state().reset_event, "its connections are there");
}

#[test]
pub(super) fn no_time_passes_for_a_suspended_device() {
    let mut guest = Guest::new();
    let mut silent = guest.dial("");
    // It has been accepted before the packet is answered.
    guest.expect_silence();
    let saved = guest.suspend();
    // Time is what is tested: longer than a process has for its line.
    std::thread::sleep(Duration::from_millis(2200));
    guest.resume(&saved);
    silent.write_all(b"CONNECT 52\n").unwrap();
    guest.expect(op::REQUEST, 0);
}

#[test]
pub(super) fn a_device_in_its_place_tells_the_driver_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    host.write_all(b"lost").unwrap();
    assert_eq!(guest.read(4), b"lost");
    let event = guest.drivers[EVENT].add(&[(FREE, 8, WRITE)]);
    guest.drivers[EVENT].write(FREE, &[0xff; 8]);
    let saved = guest.suspend();
    guest.replace_device();
    expect_end(&mut host);
    guest.resume(&saved);
    while guest.drivers[EVENT].used_count() == 0 {
        assert!(guest.wait());
    }
    assert_eq!(guest.drivers[EVENT].take_used(), [(event.into(), 4)]);
    assert_eq!(guest.drivers[EVENT].read(FREE, 8), [&TRANSPORT_RESET[..], &[0xff; 4]].concat());
    assert!(!guest.device.state().reset_event, "it was told");
    give_event_buffer(&mut guest);
    // What it still sends over an old connection has no other end.
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"x");
    guest.expect(op::RST, 0);
    let mut host = guest.connect(80, 1026);
    guest.send(Header { op: op::RW, ..header(80, 1026) }, b"new");
    assert_eq!(read_exactly(&mut host, 3), b"new");
}

/// Gives the device a buffer for an event, as Linux does once it has ended its connections.
fn give_event_buffer(guest: &mut Guest) {
    guest.drivers[EVENT].add(&[(FREE, 8, WRITE)]);
    guest.drivers[EVENT].notifier.write(1).unwrap();
}

#[test]
pub(super) fn a_driver_gets_no_packet_until_it_has_ended_its_connections() {
    let mut guest = Guest::new();
    give_event_buffer(&mut guest);
    let saved = guest.suspend();
    guest.replace_device();
    guest.resume(&saved);
    let mut process = guest.dial("CONNECT 52\n");
    while guest.drivers[EVENT].used_count() == 0 {
        assert!(guest.wait());
    }
    for _ in 0..2 {
        // What does not happen has no event: the time for it is what is given.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(guest.drivers[0].used_count(), 0);
        // It waits over a suspension too.
        let saved = guest.suspend();
        guest.resume(&saved);
    }
    give_event_buffer(&mut guest);
    let request = guest.expect(op::REQUEST, 0);
    guest.send(Header { op: op::RESPONSE, ..header(request.src_port, 52) }, b"");
    assert_eq!(read_exactly(&mut process, 3), b"OK ");
}

#[test]
pub(super) fn a_driver_that_never_gives_an_event_buffer_back_gets_its_packets_later() {
    let mut guest = Guest::new();
    give_event_buffer(&mut guest);
    let saved = guest.suspend();
    guest.replace_device();
    guest.resume(&saved);
    let _process = guest.dial("CONNECT 52\n");
    while guest.drivers[0].used_count() == 0 {
        assert!(guest.wait());
    }
    guest.expect(op::REQUEST, 0);
}

#[test]
pub(super) fn a_driver_without_an_event_buffer_is_told_once_it_has_one() {
    let mut guest = Guest::new();
    for _ in 0..2 {
        let saved = guest.suspend();
        guest.replace_device();
        guest.resume(&saved);
        guest.expect_silence();
        assert!(guest.device.state().reset_event, "also where it is saved again before that");
    }
    guest.drivers[EVENT].add(&[(FREE, 8, WRITE)]);
    guest.drivers[EVENT].notifier.write(1).unwrap();
    while guest.drivers[EVENT].used_count() == 0 {
        assert!(guest.wait());
    }
    assert!(!guest.device.state().reset_event);
    guest.expect_silence();
    assert_eq!(guest.drivers[EVENT].used_count(), 1, "it is told once");
}

#[test]
pub(super) fn a_reset_while_it_is_suspended_ends_everything() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    guest.suspend();
    guest.device_reset();
    expect_end(&mut host);
    guest.device.resume(None, guest.device.state()).unwrap();
    guest.activate();
    guest.give_buffers();
    guest.expect_silence();
    assert!(!guest.device.state().reset_event, "this driver never had any");
}

/// Packets of all kinds, of a driver that does not wait for their answers.
fn submit(machine: &mut Machine<Vsock>, number: u8) {
    const RECEIVE: u64 = 0x1_0000;
    let guest_port = 1025 + u32::from(number % 3);
    let op = [op::REQUEST, op::RW, op::SHUTDOWN, op::CREDIT_REQUEST, op::RST, op::RESPONSE]
        [usize::from(number) % 6];
    let packet = Header { op, len: if op == op::RW { 100 } else { 0 }, ..header(80, guest_port) };
    // All packets that wait say the same of themselves, but for their ports.
    let at = FREE + 64 * u64::from(number % 18);
    machine.drivers[1].write(at, &packet.encode());
    machine.submit(1, &[(at, 44, 0), (RECEIVE, packet.len, 0)]);
    if machine.outstanding(0) < 16 {
        machine.submit(0, &[(RECEIVE, 4096, WRITE)]);
    }
    if machine.outstanding(EVENT) == 0 {
        machine.submit(EVENT, &[(FREE + 0x2000, 8, WRITE)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whether it is suspended itself or another takes its place, each packet is taken once, and so is the event that
    /// says that another is there.
    #[test]
    fn every_chain_comes_back_once_over_a_suspend(steps in steps()) {
        let directory = TempDir::new().unwrap();
        let hosts = UnixListener::bind(directory.path().join("v_80")).unwrap();
        hosts.set_nonblocking(true).unwrap();
        let path = directory.path().join("v");
        let make = || Vsock::new(CID, VsockListener::open(&path).unwrap(), 100).unwrap();
        let mut machine = Machine::new(make(), 0);
        let mut replaced = false;
        for step in steps {
            replaced |= matches!(step, Step::Replace);
            // A device's listener would be in the way of the next one's.
            machine.step(step, make, submit);
            while let Ok((mut stream, _)) = hosts.accept() {
                let _ = stream.write_all(b"from the host");
            }
        }
        machine.finish(&[1]);
        if replaced {
            machine.submit(EVENT, &[(FREE + 0x2000, 8, WRITE)]);
            machine.wait_until(|machine| machine.answers.iter().any(|answer| answer.queue == EVENT));
        }
        let events = machine.answers.iter().filter(|answer| answer.queue == EVENT).count();
        prop_assert_eq!(events > 0, replaced);
        prop_assert!(machine.status() & VIRTIO_CONFIG_S_NEEDS_RESET == 0);
    }
}

/// What happens between two looks at the other side.
#[derive(Clone, Debug)]
enum Action {
    GuestSends(usize),
    HostSends(usize),
    GuestReceives,
    HostReads(usize),
    Suspend,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let length = 1..3000_usize;
    prop::collection::vec(
        prop_oneof![
            3 => length.clone().prop_map(Action::GuestSends),
            3 => length.clone().prop_map(Action::HostSends),
            2 => Just(Action::GuestReceives),
            2 => length.prop_map(Action::HostReads),
            3 => Just(Action::Suspend),
        ],
        1..25,
    )
}

/// Both directions of a connection, as both ends see them.
struct Traffic {
    guest: Guest,
    host: UnixStream,
    guest_sent: Vec<u8>,
    host_read: Vec<u8>,
    host_sent: Vec<u8>,
    guest_received: Vec<u8>,
    /// What the guest may have sent, by what it heard.
    allowed: usize,
}

impl Traffic {
    fn new() -> Self {
        let mut guest = Guest::new();
        let listener = guest.listen(80);
        guest.send(Header { op: op::REQUEST, ..header(80, 1025) }, b"");
        let allowed = guest.expect(op::RESPONSE, 0).buf_alloc as usize;
        let host = listener.accept().unwrap().0;
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let [guest_sent, host_read, host_sent, guest_received] = [(); 4].map(|()| Vec::new());
        Self { guest, host, guest_sent, host_read, host_sent, guest_received, allowed }
    }

    fn header(&self, op: u16) -> Header {
        let fwd_cnt = u32::try_from(self.guest_received.len()).unwrap();
        Header { op, fwd_cnt, ..header(80, 1025) }
    }

    /// Receives the next packet.
    fn receive(&mut self) {
        let (packet, payload) = self.guest.receive();
        self.allowed = (packet.fwd_cnt + packet.buf_alloc) as usize;
        match packet.op {
            op::RW => {
                self.guest_received.extend(payload);
                let update = self.header(op::CREDIT_UPDATE);
                self.guest.send(update, b"");
            }
            op::CREDIT_REQUEST | op::CREDIT_UPDATE => {}
            op => panic!("operation {op}"),
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::GuestSends(length) => {
                let bytes = pattern(self.guest_sent.len() + length).split_off(self.guest_sent.len());
                if self.guest_sent.len() + length <= self.allowed {
                    let packet = self.header(op::RW);
                    // It may be suspended before it has taken the packet.
                    self.guest.post(Header { len: u32::try_from(length).unwrap(), ..packet }, &bytes);
                    while self.guest.drivers[1].used_count() == 0 {
                        assert!(self.guest.wait());
                    }
                    self.guest.drivers[1].take_used();
                    self.guest_sent.extend(bytes);
                }
            }
            Action::HostSends(length) => {
                // No more than its socket takes, or it would wait for the guest.
                if self.host_sent.len() + length <= self.guest_received.len() + GUEST_BUFFER as usize {
                    let bytes = pattern(self.host_sent.len() + length).split_off(self.host_sent.len());
                    self.host.write_all(&bytes).unwrap();
                    self.host_sent.extend(bytes);
                }
            }
            Action::GuestReceives if self.guest_received.len() < self.host_sent.len() => self.receive(),
            Action::HostReads(length) if self.host_read.len() < self.guest_sent.len() => {
                let mut bytes = vec![0; length];
                let count = self.host.read(&mut bytes).unwrap();
                self.host_read.extend(&bytes[..count]);
            }
            Action::GuestReceives | Action::HostReads(_) => {}
            Action::Suspend => {
                let saved = self.guest.suspend();
                let before = dump(&self.guest.drivers[0].memory);
                self.act(&Action::HostSends(100));
                assert!(dump(&self.guest.drivers[0].memory) == before, "it is suspended");
                self.guest.resume(&saved);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// However often it is suspended in the middle of traffic, every byte comes once and in its place, and every chain
    /// is given back once: the test's driver would find a head that it does not wait for.
    #[test]
    fn no_byte_is_lost_or_doubled_by_suspending(actions in actions()) {
        let mut traffic = Traffic::new();
        actions.iter().for_each(|action| traffic.act(action));
        while traffic.guest_received.len() < traffic.host_sent.len() {
            traffic.receive();
        }
        let left = traffic.guest_sent.len() - traffic.host_read.len();
        let rest = read_exactly(&mut traffic.host, left);
        traffic.host_read.extend(rest);
        prop_assert!(traffic.guest_received == traffic.host_sent);
        prop_assert!(traffic.host_read == traffic.guest_sent);
    }
}
