//! How much is on its way.

use std::io::Write;

use proptest::prelude::*;

use super::guest::{GUEST_BUFFER, header, pattern, read_exactly};
use super::*;

#[test]
pub(super) fn the_guest_may_send_what_it_was_told_and_hears_when_there_is_room_again() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    guest.send(Header { op: op::REQUEST, ..header(80, 1025) }, b"");
    let room = guest.expect(op::RESPONSE, 0).buf_alloc as usize;
    let mut host = listener.accept().unwrap().0;
    // The host does not read. Its socket takes some, of which the guest hears; the rest waits in the device.
    let (mut sent, mut known) = (0, 0);
    let bytes = pattern(0x1_0000);
    while sent < known + room {
        let piece = &bytes[..bytes.len().min(known + room - sent)];
        guest.send(Header { op: op::RW, ..header(80, 1025) }, piece);
        sent += piece.len();
        guest.send(Header { op: op::CREDIT_REQUEST, ..header(80, 1025) }, b"");
        let update = guest.expect(op::CREDIT_UPDATE, 0);
        assert_eq!(update.buf_alloc as usize, room);
        known = update.fwd_cnt as usize;
    }
    assert!(guest.metric("tx_stalls") > 0);
    // Now the host reads, and everything is there.
    let mut read = 0;
    while read < sent {
        let count = bytes.len().min(sent - read);
        assert!(read_exactly(&mut host, count) == bytes[..count]);
        read += count;
    }
    while known + room / 2 < sent {
        known = guest.expect(op::CREDIT_UPDATE, 0).fwd_cnt as usize;
    }
    guest.send(Header { op: op::RW, ..header(80, 1025) }, b"more");
    assert_eq!(read_exactly(&mut host, 4), b"more");
}

#[test]
pub(super) fn what_the_host_has_sent_is_read_to_many_buffers_at_once() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    // All of it is there when the device looks.
    let saved = guest.suspend();
    let bytes = pattern(GUEST_BUFFER as usize);
    host.write_all(&bytes).unwrap();
    guest.resume(&saved);
    // The device may signal before it has filled them all.
    while guest.drivers[0].used_count() < 8 {
        assert!(guest.wait());
    }
    let filled = guest.drivers[0].used_count();
    assert!(guest.read(bytes.len()) == bytes);
    // The rest of a turn is counted when the queue is given back.
    guest.suspend();
    let calls = guest.drivers[0].meter.largest_turn().host_calls;
    assert!((1..=3).contains(&calls), "{calls} calls for {filled} buffers");
}

#[test]
pub(super) fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    guest.send(Header { op: op::REQUEST, ..header(80, 1025) }, b"");
    let room = guest.expect(op::RESPONSE, 0).buf_alloc as usize;
    let _host = listener.accept().unwrap().0;
    let mut reset = false;
    // Of each, the guest is told; it goes on regardless until the socket and the device are full.
    for _ in 0..(4 * room) / 0x1_0000 {
        guest.send(Header { op: op::RW, ..header(80, 1025) }, &pattern(0x1_0000));
        if guest.metric("reset_connections") > 0 {
            reset = true;
            break;
        }
    }
    assert!(reset);
}

#[test]
pub(super) fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    let bytes = pattern(GUEST_BUFFER as usize + 1000);
    host.write_all(&bytes).unwrap();
    let mut read = guest.read(GUEST_BUFFER as usize);
    assert_eq!(read.len(), GUEST_BUFFER as usize);
    guest.expect(op::CREDIT_REQUEST, 0);
    guest.expect_silence();
    guest.send(Header { op: op::CREDIT_UPDATE, fwd_cnt: 600, ..header(80, 1025) }, b"");
    read.extend(guest.read(600));
    guest.expect(op::CREDIT_REQUEST, 0);
    guest.send(Header { op: op::CREDIT_UPDATE, fwd_cnt: GUEST_BUFFER, ..header(80, 1025) }, b"");
    read.extend(guest.read(400));
    assert!(read == bytes);
    assert_eq!(guest.metric("credit_stalls"), 2);
}

#[test]
pub(super) fn the_end_needs_no_room() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    host.write_all(&pattern(GUEST_BUFFER as usize)).unwrap();
    guest.read(GUEST_BUFFER as usize);
    drop(host);
    let (mut last, _) = guest.receive();
    if last.op == op::CREDIT_REQUEST {
        last = guest.receive().0;
    }
    assert_eq!((last.op, last.flags & shutdown::RECEIVE), (op::SHUTDOWN, shutdown::RECEIVE));
    if last.flags != shutdown::BOTH {
        guest.expect(op::SHUTDOWN, shutdown::BOTH);
    }
}

#[test]
pub(super) fn what_the_guest_has_no_buffers_for_waits_at_the_host() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(80);
    guest.send(Header { op: op::REQUEST, ..header(80, 1025) }, b"");
    let mut host = listener.accept().unwrap().0;
    host.write_all(&pattern(50_000)).unwrap();
    // Something else that the device does, and then it is not looking for buffers over and over.
    guest.send(Header { op: op::RST, ..header(81, 1025) }, b"");
    assert!(guest.metric("rx_stalls") < 10);
    guest.give_buffers();
    guest.expect(op::RESPONSE, 0);
    assert_eq!(guest.read(50_000), pattern(50_000));
}

#[test]
pub(super) fn connections_take_turns() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(80);
    let mut hosts = Vec::new();
    for port in 0..3 {
        guest.send(Header { op: op::REQUEST, ..header(80, port) }, b"");
        hosts.push(listener.accept().unwrap().0);
    }
    // The host may have taken a connection before the device knows of it.
    while guest.metric("opened_connections") < 3 {
        std::thread::yield_now();
    }
    for host in &mut hosts {
        host.write_all(&pattern(20_000)).unwrap();
    }
    guest.give_buffers();
    let mut ports = Vec::new();
    while ports.len() < 12 {
        let (packet, _) = guest.receive();
        if packet.op == op::RW {
            ports.push(packet.dst_port);
        }
    }
    for turn in ports.chunks(3) {
        let mut turn = turn.to_vec();
        turn.sort_unstable();
        assert_eq!(turn, [0, 1, 2], "{ports:?}");
    }
}

#[test]
pub(super) fn answers_that_the_guest_has_no_buffers_for_stop_its_questions() {
    let mut guest = Guest::without_buffers();
    for port in 0..256 {
        guest.send(Header { op: op::RW, ..header(80, port) }, b"");
    }
    // From here on, packets stay in the queue.
    for port in 256..260 {
        guest.post(Header { op: op::RW, ..header(80, port) }, b"");
    }
    assert_eq!(guest.drivers[1].used_count(), 0);
    guest.give_buffers();
    let mut last = 0;
    for _ in 0..260 {
        last = guest.expect(op::RST, 0).dst_port;
    }
    assert_eq!(last, 259);
    assert_eq!(guest.metric("tx_packets"), 260);
}

/// A count as packets have it.
fn low(count: usize) -> u32 {
    u32::try_from(count).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A host that reads at a pace of its own, so that the device now keeps bytes and now doesn't.
    #[test]
    fn bytes_arrive_in_their_order_at_any_pace(
        steps in prop::collection::vec((0..100_000_usize, 0..90_000_usize, 0..5000_usize), 1..20),
    ) {
        let mut guest = Guest::new();
        let listener = guest.listen(80);
        guest.send(Header { op: op::REQUEST, ..header(80, 1025) }, b"");
        let room = guest.expect(op::RESPONSE, 0).buf_alloc as usize;
        let mut host = listener.accept().unwrap().0;
        let bytes = pattern(2 << 20);
        let (mut sent, mut known, mut read) = (0, 0, 0);
        let (mut host_sent, mut guest_read) = (0, 0);
        for (send, take, answer) in steps {
            let send = send.min(known + room - sent);
            guest.send(Header { op: op::RW, fwd_cnt: low(guest_read), ..header(80, 1025) }, &bytes[sent..sent + send]);
            sent += send;
            let take = take.min(sent - read);
            prop_assert!(read_exactly(&mut host, take) == bytes[read..read + take]);
            read += take;
            // The guest hears of its room, and gets what the host writes in the meantime.
            host.write_all(&bytes[host_sent..host_sent + answer]).unwrap();
            host_sent += answer;
            let asked = Header { op: op::CREDIT_REQUEST, fwd_cnt: low(guest_read), ..header(80, 1025) };
            guest.send(asked, b"");
            let mut updated = false;
            while !updated || guest_read < host_sent {
                let (packet, payload) = guest.receive();
                prop_assert!(payload == bytes[guest_read..guest_read + payload.len()]);
                guest_read += payload.len();
                known = packet.fwd_cnt as usize;
                updated |= packet.op == op::CREDIT_UPDATE;
            }
        }
        guest.send(Header { op: op::SHUTDOWN, flags: shutdown::BOTH, ..header(80, 1025) }, b"");
        let rest = read_exactly(&mut host, sent - read);
        prop_assert!(rest == bytes[read..sent]);
        super::guest::expect_end(&mut host);
    }
}
