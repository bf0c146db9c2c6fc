//! From the guest to the backend.

use super::*;

#[test]
fn a_packet_goes_as_it_is_from_wherever_it_lies() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    let bytes = packet(100);
    rig.tx.write(FREE, &bytes[..5]);
    rig.tx.write(FREE + 0x100, &bytes[5..60]);
    rig.tx.write(FREE + 0x200, &bytes[60..]);
    let head = rig.tx.add(&[(FREE, 5, 0), (FREE + 0x100, 55, 0), (FREE + 0x200, 52, 0)]);
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    assert_eq!(take_all(&wire), [bytes]);
    assert_eq!(rig.tx.take_used(), [(u32::from(head), 0)]);
    assert_eq!((rig.metrics.tx_packets.get(), rig.metrics.tx_bytes.get()), (1, 100));
}

#[test]
fn what_is_no_packet_is_given_back() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    let rows: &[&[(u64, u32, u16)]] =
        &[&[(FREE, 25, 0)], &[], &[(FREE, 2000, WRITE)], &[(FREE, 0x2_0000, 0)], &[(FREE, 12, 0)]];
    for buffers in rows {
        if buffers.is_empty() {
            rig.tx.add(&[(FREE, 0, 0)]);
        } else {
            rig.tx.add(buffers);
        }
    }
    rig.tx.write(FREE, &packet(14));
    rig.tx.add(&[(FREE, 26, 0)]);
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    assert_eq!(take_all(&wire), [packet(14)]);
    assert_eq!(rig.tx.take_used().len(), rows.len() + 1);
    assert_eq!(rig.metrics.tx_errors.get(), rows.len() as u64);
    assert!(!rig.tx.counters.broken());
}

#[test]
fn a_packet_that_the_host_refuses_is_lost_and_no_more() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    drop(wire);
    rig.tx.write(FREE, &packet(60));
    rig.tx.add(&[(FREE, 72, 0)]);
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    assert_eq!((rig.tx.take_used().len(), rig.metrics.tx_errors.get()), (1, 1));
}

#[test]
fn a_packet_waits_for_a_backend_that_is_full() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    rig.tx.write(FREE, &packet(60_000));
    let mut sent = 0;
    loop {
        rig.tx.add(&[(FREE, 60_012, 0)]);
        sent += 1;
        if rig.transmit.turn(&mut rig.backend).unwrap() {
            break;
        }
    }
    assert_eq!(rig.tx.take_used().len() + 1, sent);
    assert_eq!(rig.metrics.tx_stalls.get(), 1);
    let before = take_all(&wire).len();
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    assert_eq!(before + take_all(&wire).len(), sent);
    assert_eq!(rig.tx.take_used().len(), 1);
}

#[test]
fn what_is_discarded_is_given_back() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    for _ in 0..3 {
        rig.tx.add(&[(FREE, 72, 0)]);
    }
    rig.transmit.discard();
    assert_eq!(rig.tx.take_used().len(), 3);
    assert!(take_all(&wire).is_empty());
}

#[test]
fn of_a_packet_that_was_sent_the_driver_is_told_with_the_next_one_that_it_receives() {
    let (mut rig, wire) = Rig::with_tap(true, SHORT);
    rig.tx.add(&[(FREE, 72, 0)]);
    rig.transmit.turn(&mut rig.backend).unwrap();
    assert_eq!((rig.tx.used_count(), rig.tx.counters.used()), (1, 0));
    assert!(rig.transmit.owes_signal());
    rig.rx.add(&[(FREE + 0x1000, 2000, WRITE)]);
    wire.send(&packet(60)).unwrap();
    rig.receive(true).unwrap();
    assert_eq!((rig.rx.used_count(), rig.tx.counters.used()), (1, 1));
    assert!(!rig.transmit.owes_signal());
    rig.transmit.signal();
    assert_eq!(rig.tx.counters.used(), 1);
}

#[test]
fn of_many_packets_that_were_sent_the_driver_is_told_at_once() {
    for (turns, packets, length) in [(1, 16, 72), (1, 2, 65_548), (2, 1, 72)] {
        let (mut rig, wire) = Rig::with_tap(true, LONG);
        for turn in 0..turns {
            assert_eq!(rig.tx.counters.used(), 0, "turn {turn}");
            for _ in 0..packets {
                rig.tx.add(&[(FREE, length, 0)]);
            }
            assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
            assert_eq!(take_all(&wire).len(), packets);
        }
        assert_eq!(rig.tx.counters.used(), 1);
        assert!(!rig.transmit.owes_signal());
    }
}

#[test]
fn a_broken_queue_owes_no_signal() {
    let (mut rig, _wire) = Rig::with_tap(true, SHORT);
    rig.tx.add(&[(FREE, 72, 0)]);
    rig.tx.add(&[(u64::MAX, 72, 0)]);
    rig.transmit.turn(&mut rig.backend).unwrap();
    assert!(rig.tx.counters.broken() && !rig.transmit.owes_signal());
}
