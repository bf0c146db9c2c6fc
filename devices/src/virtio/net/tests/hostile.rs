//! A driver that obeys no rule: nothing outside of what it offered changes, and nothing panics.

use proptest::prelude::*;

use super::super::super::testing::{NEXT, dump};
use super::*;

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
