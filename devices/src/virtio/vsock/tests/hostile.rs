//! Drivers that keep to no rule.

use std::io::Write;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::guest::{DMA_ONLY, DMA_ONLY_SIZE, HEADER, header, read_exactly};
use super::*;
use crate::virtio::Budget;
use crate::virtio::testing::{FREE, NEXT, REGIONS, WRITE, dump};
use crate::virtio::vsock::header::LENGTH;

#[test]
fn a_packet_that_is_longer_than_its_buffers_resets_the_connection() {
    let mut guest = Guest::new();
    guest.connect(80, 1025);
    guest.post(Header { op: op::RW, len: 100, ..header(80, 1025) }, b"short");
    let mut last = guest.receive().0;
    // The host's end went out of scope, too.
    while last.op == op::SHUTDOWN {
        last = guest.receive().0;
    }
    assert_eq!(last.op, op::RST);
    assert_eq!(guest.metric("invalid_packets"), 1);
}

#[test]
fn a_packet_without_a_whole_header_is_given_back() {
    let mut guest = Guest::new();
    for length in [1, HEADER - 1] {
        guest.drivers[1].add(&[(FREE, length, 0)]);
        guest.drivers[1].notifier.write(1).unwrap();
        assert!(guest.wait());
        assert_eq!(guest.drivers[1].take_used().len(), 1);
    }
    assert_eq!(guest.metric("invalid_packets"), 2);
    guest.expect_silence();
}

#[test]
fn a_buffer_without_room_for_a_packet_needs_a_reset() {
    let mut guest = Guest::without_buffers();
    guest.drivers[0].add(&[(FREE, HEADER, WRITE)]);
    guest.post(Header { op: op::RW, ..header(80, 1025) }, b"");
    while guest.wait() {}
    // It ends nevertheless, and begins anew.
    guest.device_reset();
    guest.activate();
    guest.give_buffers();
    guest.expect_silence();
}

#[test]
fn a_receive_buffer_that_is_not_in_ram_needs_one_reset_and_the_thread_ends() {
    let mut guest = Guest::without_buffers();
    let buffer = u32::try_from(DMA_ONLY_SIZE).unwrap();
    // REQUEST goes to RAM; what the host wrote behind its line would go to the file.
    guest.drivers[0].add(&[(FREE, 4096, WRITE)]);
    guest.drivers[0].add(&[(FREE + 0x1000, HEADER, WRITE), (DMA_ONLY, buffer, WRITE)]);
    guest.drivers[0].notifier.write(1).unwrap();
    let _host = guest.dial("CONNECT 7\nhello");
    while guest.drivers[0].used_count() == 0 {
        assert!(guest.wait());
    }
    let request = Header::decode(guest.drivers[0].read(FREE, LENGTH).try_into().unwrap());
    assert_eq!(request.op, op::REQUEST);
    guest.post(Header { op: op::RESPONSE, ..header(request.src_port, 7) }, b"");
    while guest.wait() {}
    // Whatever comes then, it asks no second time.
    for _ in 0..100 {
        guest.drivers[0].notifier.write(1).unwrap();
    }
    guest.device_reset();
    assert_eq!(guest.signal.resets_asked.load(Ordering::SeqCst), 1);
    guest.activate();
    guest.give_buffers();
    guest.expect_silence();
}

#[test]
fn a_packet_that_is_not_in_ram_needs_one_reset() {
    let mut guest = Guest::new();
    let _host = guest.connect(80, 1025);
    guest.drivers[1].write(FREE, &Header { op: op::RW, len: 3, ..header(80, 1025) }.encode());
    guest.drivers[1].add(&[(FREE, HEADER, 0), (DMA_ONLY, 3, 0)]);
    guest.drivers[1].notifier.write(1).unwrap();
    while guest.wait() {}
    guest.device_reset();
    assert_eq!(guest.signal.resets_asked.load(Ordering::SeqCst), 1);
    guest.activate();
    guest.give_buffers();
    guest.expect_silence();
}

/// A guest that asks for connections as fast as it can, and processes of the host that connect as fast as they can.
#[test]
fn a_flood_of_connections_is_served_in_turns_of_bounded_cost() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    listener.set_nonblocking(true).unwrap();
    let mut kept = Vec::new();
    for round in 0..40_u32 {
        kept.extend((0..20).map(|_| guest.dial("CONNECT 1\n")));
        for port in 0..4 {
            guest.post(Header { op: op::REQUEST, ..header(80, 2000 + 4 * round + port) }, b"");
        }
        while guest.drivers[1].used_count() < 4 {
            assert!(guest.wait());
        }
        guest.drivers[1].take_used();
        while let Ok((stream, _)) = listener.accept() {
            kept.push(stream);
        }
    }
    guest.device_reset();
    let meter = &guest.drivers[0].meter;
    let (largest, budget) = (meter.largest_turn(), Budget::TURN);
    assert!((1..=budget.host_calls + 3).contains(&largest.host_calls), "{largest:?}");
    assert!(meter.turns() > 40, "what was done was counted");
}

#[test]
fn a_header_in_pieces_is_a_header() {
    let mut guest = Guest::new();
    let mut host = guest.connect(80, 1025);
    let packet = Header { op: op::RW, len: 3, ..header(80, 1025) };
    let bytes = [packet.encode().as_slice(), b"abc"].concat();
    guest.drivers[1].write(FREE, &bytes);
    let pieces: Vec<(u64, u32, u16)> =
        [(0, 1), (1, 20), (21, 24), (45, 2)].map(|(at, length)| (FREE + at, length, 0)).to_vec();
    guest.drivers[1].add_indirect(FREE + 0x1000, &pieces);
    guest.drivers[1].notifier.write(1).unwrap();
    assert_eq!(read_exactly(&mut host, 3), b"abc");
}

/// How much memory is compared at once.
const CHUNK: usize = 4096;

#[derive(Clone, Debug)]
struct Chain {
    header: Header,
    garbage: Option<Vec<u8>>,
    buffers: Vec<(u64, u32, u16)>,
    transmit: bool,
}

/// Headers that are nearly right more often than not.
fn any_header() -> impl Strategy<Value = Header> {
    let port = prop_oneof![4 => 1024..1027_u32, 1 => any::<u32>()];
    let cid = |right: u64| prop_oneof![9 => Just(right), 1 => any::<u64>()];
    let numbers = (prop_oneof![0..5000_u32, any::<u32>()], any::<u32>(), any::<u32>());
    (cid(CID.into()), cid(HOST_CID), port, 79..82_u32, 0..9_u16, 0..4_u32, 0..3_u16, numbers).prop_map(
        |(src_cid, dst_cid, src_port, dst_port, op, flags, kind, (len, buf_alloc, fwd_cnt))| Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind: kind.min(1),
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

fn chains() -> impl Strategy<Value = Vec<Chain>> {
    let address = prop_oneof![
        8 => 0x1_0000..0x6_0000_u64,
        1 => Just(REGIONS[2].0 + REGIONS[2].1 as u64 - 20),
        1 => DMA_ONLY..DMA_ONLY + DMA_ONLY_SIZE as u64,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![0..60_u32, 0..6000_u32];
    let flags = prop_oneof![8 => Just(0), 4 => Just(WRITE), 1 => Just(NEXT | WRITE)];
    let buffers = prop::collection::vec((address, length, flags), 1..4);
    let garbage = prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), LENGTH));
    let chain = (any_header(), garbage, buffers, prop::bool::weighted(0.7)).prop_map(
        |(header, garbage, mut buffers, transmit)| {
            for (_, _, flags) in &mut buffers {
                // The two queues want them one way each.
                if *flags != NEXT | WRITE {
                    *flags = if transmit { 0 } else { WRITE };
                }
                *flags &= !NEXT;
            }
            Chain { header, garbage, buffers, transmit }
        },
    );
    prop::collection::vec(chain, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_a_driver_does_only_what_it_offered_is_written_and_the_device_ends(chains in chains()) {
        let mut guest = Guest::without_buffers();
        let listener = guest.listen(80);
        let mut writable = Vec::new();
        for Chain { header, garbage, buffers, transmit } in &chains {
            let bytes = garbage.clone().unwrap_or_else(|| header.encode().to_vec());
            let (at, length, _) = buffers[0];
            if *transmit && at < 0x6_0000 {
                guest.drivers[1].write(at, &bytes[..bytes.len().min(length as usize)]);
            }
            let queue = usize::from(*transmit);
            if !transmit {
                writable.extend(buffers.iter().map(|&(at, length, _)| at..at.saturating_add(length.into())));
            }
            guest.drivers[queue].add(buffers);
        }
        let before = dump(&guest.drivers[0].memory);
        let _host = guest.dial("CONNECT 1024\nHello");
        guest.drivers[0].notifier.write(1).unwrap();
        guest.drivers[1].notifier.write(1).unwrap();
        listener.set_nonblocking(true).unwrap();
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"Hello from the host");
        }
        let sent = chains.iter().filter(|chain| chain.transmit).count();
        while usize::from(guest.drivers[1].used_count()) < sent && guest.wait() {}
        guest.device_reset();
        // A turn ends with what spends the last of its budget: a chain, a read or write of a socket, a connection.
        let (largest, budget) = (guest.drivers[0].meter.largest_turn(), Budget::TURN);
        prop_assert!(largest.descriptors <= budget.descriptors + 16, "{largest:?}");
        prop_assert!(largest.bytes <= budget.bytes + 0x8_0000, "{largest:?}");
        prop_assert!(largest.host_calls <= budget.host_calls + 3, "{largest:?}");
        // Once for each queue at most.
        prop_assert!(guest.signal.resets_asked.load(Ordering::SeqCst) <= 2);
        let rings = [guest.drivers[0].used_ring(), guest.drivers[1].used_ring()];
        for ((start, old), (_, new)) in before.iter().zip(dump(&guest.drivers[0].memory)) {
            for (at, (old, new)) in (*start..).step_by(CHUNK).zip(old.chunks(CHUNK).zip(new.chunks(CHUNK))) {
                // Byte by byte only where something changed: there is much memory.
                for (at, (old, new)) in (at..).zip(old.iter().zip(new)).filter(|_| old != new) {
                    let allowed = writable.iter().chain(&rings).any(|range| range.contains(&at));
                    prop_assert!(*old == *new || allowed, "wrote to {at:#x}");
                }
            }
        }
    }
}
