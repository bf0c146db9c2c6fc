//! A driver that obeys no rule: nothing outside of what it offered changes, and nothing panics.

use proptest::prelude::*;

use super::*;
use crate::virtio::Budget;
use crate::virtio::net::stream::{CALLS, Stream};
use crate::virtio::queue::MAX_CHAIN;
use crate::virtio::testing::{NEXT, dump};

/// A buffer: mostly in memory, sometimes at its bounds or outside.
fn buffer() -> impl Strategy<Value = (u64, u32, u16)> {
    let address = prop_oneof![
        8 => FREE..0x2_0000_u64,
        1 => 0x3_f000..0x4_1000_u64,
        1 => Just(0x100_0000_u64),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![6 => 0..3000_u32, 2 => 0..20_u32, 1 => any::<u32>()];
    (
        address,
        length,
        prop_oneof![6 => Just(WRITE), 1 => Just(0), 1 => any::<u16>().prop_map(|flags| flags & !NEXT)],
    )
}

fn chains() -> impl Strategy<Value = Vec<Vec<(u64, u32, u16)>>> {
    prop::collection::vec(prop::collection::vec(buffer(), 1..5), 1..12)
}

/// The addresses where two dumps of memory differ.
fn changes(before: &[(u64, Vec<u8>)], after: &[(u64, Vec<u8>)]) -> Vec<u64> {
    const PIECE: usize = 512;
    let mut changes = Vec::new();
    for ((start, old), (_, new)) in before.iter().zip(after) {
        for ((at, old), new) in (*start..).step_by(PIECE).zip(old.chunks(PIECE)).zip(new.chunks(PIECE)) {
            if old != new {
                let bytes = (at..).zip(old.iter().zip(new));
                changes.extend(bytes.filter(|(_, (old, new))| old != new).map(|(at, _)| at));
            }
        }
    }
    changes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_packet_goes_to_nothing_but_what_was_offered(
        chains in chains(),
        lengths in prop::collection::vec(0..4000_usize, 1..6),
        mergeable: bool,
    ) {
        let (mut rig, wire) = Rig::with_tap(mergeable, SHORT);
        for chain in &chains {
            rig.rx.add(chain);
        }
        for length in &lengths {
            wire.send(&packet(*length)).unwrap();
        }
        let before = dump(&rig.rx.memory);
        for wait in [true, false] {
            rig.receive(wait).unwrap();
        }
        let used_ring = rig.rx.used_ring();
        let offered = |at: u64| {
            let mut all = chains.iter().flatten();
            used_ring.contains(&at)
                || all.any(|&(start, length, flags)| {
                    flags & WRITE != 0 && at >= start && at - start < u64::from(length)
                })
        };
        for at in changes(&before, &dump(&rig.rx.memory)) {
            prop_assert!(offered(at), "wrote to {at:#x}");
        }
    }

    #[test]
    fn buffers_that_overlap_nothing_have_the_packets_whole(
        sizes in prop::collection::vec(12..1500_u32, 1..16),
        lengths in prop::collection::vec(0..3000_usize, 1..6),
    ) {
        let (mut rig, wire) = Rig::with_tap(true, SHORT);
        let place = |index: usize| FREE + 0x800 * index as u64;
        for (index, size) in sizes.iter().enumerate() {
            rig.rx.add(&[(place(index), *size, WRITE)]);
        }
        for length in &lengths {
            wire.send(&packet(*length)).unwrap();
        }
        while rig.receive(false).unwrap() != Wait::Buffers
            && rig.metrics.rx_packets.get() + rig.metrics.rx_errors.get() < lengths.len() as u64 {}
        let mut used = rig.rx.take_used().into_iter();
        let mut got = Vec::new();
        while let Some((head, length)) = used.next() {
            let mut whole = rig.rx.read(place(head as usize), length as usize);
            let count = u16::from_le_bytes([whole[10], whole[11]]);
            for (head, length) in used.by_ref().take(usize::from(count) - 1) {
                whole.extend(rig.rx.read(place(head as usize), length as usize));
            }
            prop_assert_eq!(&whole, &received(whole.len() - HEADER, count));
            got.push(whole.len() - HEADER);
        }
        // Those that came, in their order; the others were too long for what was left.
        let mut rest = lengths.iter();
        for length in &got {
            prop_assert!(rest.any(|other| other == length), "{lengths:?} {got:?}");
        }
        prop_assert_eq!(got.len() as u64, rig.metrics.rx_packets.get());
    }

    #[test]
    fn what_is_sent_is_what_the_driver_says_or_nothing(chains in chains()) {
        let (mut rig, wire) = Rig::with_tap(true, LONG);
        for chain in &chains {
            let readable: Vec<_> = chain.iter().map(|(at, length, flags)| (*at, *length, flags ^ WRITE)).collect();
            rig.tx.add(&readable);
        }
        let before = dump(&rig.tx.memory);
        rig.transmit.turn(&mut rig.backend).unwrap();
        let sent = take_all(&wire);
        prop_assert!(sent.iter().all(|packet| (26..=LONG).contains(&packet.len())));
        let used = rig.tx.take_used();
        prop_assert!(used.iter().all(|(_, length)| *length == 0));
        let (packets, errors) = (rig.metrics.tx_packets.get(), rig.metrics.tx_errors.get());
        prop_assert_eq!((sent.len() as u64, used.len() as u64), (packets, packets + errors));
        let used_ring = rig.tx.used_ring();
        for at in changes(&before, &dump(&rig.tx.memory)) {
            prop_assert!(used_ring.contains(&at), "wrote to {at:#x}");
        }
    }
}

/// What a turn has cost, beyond its budget at most the last chain and what the backend takes for one packet.
fn assert_within_budget(rig: &Rig) {
    let spent = rig.rx.meter.largest_turn();
    let budget = Budget::TURN;
    assert!(spent.descriptors < budget.descriptors + u64::from(MAX_CHAIN), "{spent:?}");
    assert!(spent.bytes < budget.bytes + LONG as u64, "{spent:?}");
    assert!(spent.host_calls <= budget.host_calls + 2 * CALLS, "{spent:?}");
}

#[test]
fn long_chains_end_a_turn_by_their_descriptors() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    // As many descriptors as a chain can have, nearly all of them empty.
    let table = 0x2_0000;
    let buffers: Vec<_> = (0..1024).map(|index| (FREE, if index == 0 { 12 } else { 0 }, WRITE)).collect();
    for _ in 0..16 {
        rig.rx.add_indirect(table, &buffers);
        rig.tx.add_indirect(
            table + 0x4000,
            &buffers.iter().map(|(at, length, _)| (*at, *length, 0)).collect::<Vec<_>>(),
        );
    }
    wire.send(&packet(60)).unwrap();
    let _ = rig.receive(true).unwrap();
    rig.transmit.turn(&mut rig.backend).unwrap();
    // The next turns begin: now those before are counted.
    let _ = rig.receive(true).unwrap();
    rig.transmit.turn(&mut rig.backend).unwrap();
    assert!(rig.rx.meter.turns() >= 2);
    assert_within_budget(&rig);
    assert!(rig.tx.counters.take_again(), "the rest is for later turns");
}

#[test]
fn a_stream_that_comes_byte_by_byte_ends_a_turn_by_its_calls() {
    use std::io::Write;
    let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
    let backend = Backend::Stream(Stream::new(near).unwrap());
    let mut rig = Rig::new(backend, true, LONG);
    // The other side writes a byte for each call of the device, and never less: no call finds nothing.
    let feeder = std::thread::spawn(move || {
        let frame = [&3000_u32.to_be_bytes()[..], &[7; 3000]].concat();
        for byte in frame.repeat(20) {
            if far.write_all(&[byte]).is_err() {
                return;
            }
        }
    });
    for index in 0..16 {
        rig.rx.add(&[(FREE + 0x1000 * index, 0x1000, WRITE)]);
    }
    while rig.metrics.rx_packets.get() < 16 {
        assert_ne!(rig.receive(true).unwrap(), Wait::Forever);
    }
    assert_within_budget(&rig);
    drop(rig);
    feeder.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_turn_costs_more_than_its_budget(
        chains in prop::collection::vec((1..1024_usize, 0..0x1_0000_u32), 1..16), packets in 0..8_usize,
    ) {
        let (mut rig, wire) = Rig::with_tap(true, LONG);
        for (count, length) in chains {
            let part = length / u32::try_from(count).unwrap();
            let buffers: Vec<_> = (0..count).map(|_| (FREE, part, WRITE)).collect();
            rig.rx.add_indirect(0x2_0000, &buffers);
            let readable: Vec<_> = buffers.iter().map(|(at, length, _)| (*at, *length, 0)).collect();
            rig.tx.add_indirect(0x3_0000, &readable);
        }
        for _ in 0..packets {
            let _ = wire.send(&packet(1500));
        }
        for wait in [true, false, false] {
            let _ = rig.receive(wait);
            let _ = rig.transmit.turn(&mut rig.backend);
            take_all(&wire);
        }
        assert_within_budget(&rig);
    }
}
