//! From the backend to the guest.

use super::*;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MTU;

#[test]
fn a_packet_comes_with_its_header() {
    for mergeable in [false, true] {
        let (mut rig, wire) = Rig::with_tap(mergeable, SHORT);
        let head = rig.rx.add(&[(FREE, 2000, WRITE)]);
        rig.rx.add(&[(FREE + 0x1000, 2000, WRITE)]);
        wire.send(&packet(100)).unwrap();
        assert_eq!(rig.receive(true).unwrap(), Wait::Packet);
        assert_eq!(rig.rx.take_used(), [(u32::from(head), 112)]);
        assert_eq!(rig.rx.read(FREE, 112), received(100, 1));
        assert_eq!(rig.rx.read(FREE + 112, 8), [0; 8]);
        assert_eq!(rig.rx.counters.used(), 1);
        assert_eq!((rig.metrics.rx_packets.get(), rig.metrics.rx_bytes.get()), (1, 100));
    }
}

#[test]
fn a_long_packet_goes_to_several_buffers_and_the_next_to_what_is_left() {
    let (mut rig, wire) = Rig::with_tap(true, SHORT);
    // The third is longer than what is left; the last belongs to the next packet.
    let places = [(FREE, 700), (FREE + 0x1000, 300), (FREE + 0x2000, 800), (FREE + 0x3000, 1000)];
    let heads = places.map(|(at, length)| u32::from(rig.rx.add(&[(at, length, WRITE)])));
    wire.send(&packet(1188)).unwrap();
    wire.send(&packet(50)).unwrap();
    assert_eq!(rig.receive(true).unwrap(), Wait::MoreBuffers);
    assert_eq!(rig.rx.take_used(), [(heads[0], 700), (heads[1], 300), (heads[2], 200)]);
    let whole = [rig.rx.read(FREE, 700), rig.rx.read(FREE + 0x1000, 300), rig.rx.read(FREE + 0x2000, 200)];
    assert_eq!(whole.concat(), received(1188, 3));
    assert_eq!(rig.rx.read(FREE + 0x2000 + 200, 600), [0; 600]);
    // No packet has to wait for a driver that gives no more buffers: what is there is enough for the packet that comes.
    assert_eq!(rig.receive(false).unwrap(), Wait::Buffers);
    assert_eq!(rig.rx.take_used(), [(heads[3], 62)]);
    assert_eq!(rig.rx.read(FREE + 0x3000, 62), received(50, 1));
}

#[test]
fn a_packet_of_64_kib_goes_to_many_buffers() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    for index in 0..16 {
        rig.rx.add(&[(FREE + index * 0x1400, 0x1400, WRITE)]);
    }
    wire.send(&packet(65_549)).unwrap();
    assert_eq!(rig.receive(true).unwrap(), Wait::MoreBuffers);
    let used = rig.rx.take_used();
    assert_eq!(used.iter().map(|(_, length)| length).sum::<u32>(), 65_561);
    assert_eq!(used.len(), 13);
    assert_eq!(rig.rx.read(FREE, 65_561), received(65_549, 13));
    assert_eq!(rig.rx.counters.used(), 1);
}

#[test]
fn a_packet_that_is_too_long_is_lost_and_the_next_is_not() {
    for mergeable in [false, true] {
        let (mut rig, wire) = Rig::with_tap(mergeable, SHORT);
        let head = rig.rx.add(&[(FREE, 200, WRITE)]);
        wire.send(&packet(189)).unwrap();
        wire.send(&packet(188)).unwrap();
        assert_eq!(rig.receive(false).unwrap(), Wait::Buffers);
        assert_eq!(rig.rx.take_used(), [(u32::from(head), 200)]);
        assert_eq!(rig.rx.read(FREE, 200), received(188, 1));
        assert_eq!(rig.metrics.rx_errors.get(), 1);
        assert_eq!(rig.rx.read(FREE + 200, 8), [0; 8]);
    }
}

#[test]
fn without_buffers_packets_wait() {
    let (mut rig, wire) = Rig::with_tap(true, SHORT);
    wire.send(&packet(60)).unwrap();
    assert_eq!(rig.receive(true).unwrap(), Wait::Buffers);
    assert_eq!(rig.receive(false).unwrap(), Wait::Buffers);
    assert_eq!(rig.metrics.rx_stalls.get(), 2);
    rig.rx.add(&[(FREE, 4000, WRITE)]);
    assert_eq!(rig.receive(true).unwrap(), Wait::Buffers);
    assert_eq!(rig.rx.take_used().len(), 1);
}

#[test]
fn a_driver_that_has_given_half_of_its_ring_is_not_waited_for() {
    let (mut rig, wire) = Rig::with_tap(true, LONG);
    for index in 0..8 {
        rig.rx.add(&[(FREE + index * 0x1000, 1536, WRITE)]);
    }
    wire.send(&packet(60)).unwrap();
    wire.send(&packet(60)).unwrap();
    assert_eq!(rig.receive(true).unwrap(), Wait::MoreBuffers);
    assert_eq!(rig.rx.take_used().len(), 1);
}

#[test]
fn a_header_may_be_split() {
    let (mut rig, wire) = Rig::with_tap(true, SHORT);
    let buffers = [(FREE, 3, WRITE), (FREE + 0x100, 8, WRITE), (FREE + 0x200, 2000, WRITE)];
    rig.rx.add(&buffers);
    wire.send(&packet(60)).unwrap();
    rig.receive(true).unwrap();
    let whole = [rig.rx.read(FREE, 3), rig.rx.read(FREE + 0x100, 8), rig.rx.read(FREE + 0x200, 61)].concat();
    assert_eq!(whole, received(60, 1));
}

#[test]
fn a_buffer_without_room_for_a_header_breaks_the_device() {
    for buffer in [(FREE, 11, WRITE), (FREE, 2000, 0)] {
        let (mut rig, wire) = Rig::with_tap(true, SHORT);
        rig.rx.add(&[buffer]);
        wire.send(&packet(60)).unwrap();
        assert_eq!(rig.receive(true).unwrap(), Wait::Buffers);
        assert!(rig.rx.counters.broken());
        assert_eq!(rig.rx.used_count(), 0);
    }
}

#[test]
fn a_turn_ends_while_there_are_packets() {
    let (mut rig, wire) = Rig::with_tap(false, SHORT);
    let mut count = 0;
    let mut turns = 0;
    while count < 200 {
        for _ in 0..16 {
            rig.rx.add(&[(FREE, 2000, WRITE)]);
        }
        while wire.send(&packet(60)).is_ok() {}
        let wait = rig.receive(true).unwrap();
        assert!(matches!(wait, Wait::Buffers | Wait::No | Wait::Packet));
        count += rig.rx.take_used().len();
        turns += 1;
    }
    assert!(turns > 3);
}

#[test]
fn of_the_first_packet_of_a_turn_the_driver_is_told_at_once_and_of_the_others_together() {
    let (mut rig, wire) = Rig::with_tap(false, SHORT);
    for _ in 0..10 {
        rig.rx.add(&[(FREE, 2000, WRITE)]);
    }
    for (packets, interrupts) in [(1, 1), (8, 3)] {
        for _ in 0..packets {
            wire.send(&packet(60)).unwrap();
        }
        assert_eq!(rig.receive(true).unwrap(), Wait::Packet);
        assert_eq!(rig.rx.take_used().len(), packets);
        assert_eq!(rig.rx.counters.used(), interrupts);
    }
}

#[test]
fn a_driver_that_knows_of_no_checksums_sees_no_flags() {
    for checksums in [false, true] {
        let (backend, wire, _) = tap();
        let features = if checksums { 1 << VIRTIO_NET_F_GUEST_CSUM } else { 0 };
        let mut rig = Rig::with_mode(backend, ReceiveMode::new(features, None, SHORT));
        rig.rx.add(&[(FREE, 2000, WRITE)]);
        wire.send(&packet(100)).unwrap();
        rig.receive(true).unwrap();
        let mut expected = received(100, 1);
        expected[0] = u8::from(checksums);
        assert_eq!(rig.rx.read(FREE, 112), expected);
    }
}

#[test]
fn what_is_longer_than_the_mtu_does_not_come_unless_it_is_to_be_segmented() {
    let (none, tcp, ecn) = (0, 1, 0x80);
    let most = 1400 + FRAME_OVERHEAD;
    for (features, kind, length, comes) in [
        (1 << VIRTIO_NET_F_MTU, none, most, true),
        (1 << VIRTIO_NET_F_MTU, none, most + 1, false),
        (1 << VIRTIO_NET_F_MTU, ecn, most + 1, false),
        (1 << VIRTIO_NET_F_MTU, tcp, most + 1, true),
        (0, none, most + 1, true),
    ] {
        let (backend, wire, _) = tap();
        let mut rig = Rig::with_mode(backend, ReceiveMode::new(features, Some(1400), SHORT));
        let head = u32::from(rig.rx.add(&[(FREE, 4000, WRITE)]));
        let mut long = packet(length);
        long[1] = kind;
        wire.send(&long).unwrap();
        rig.receive(true).unwrap();
        let all = u32::try_from(HEADER + length).unwrap();
        assert_eq!(rig.rx.take_used(), if comes { vec![(head, all)] } else { vec![] }, "{kind} {length}");
        // The buffer is there for the next one.
        wire.send(&packet(60)).unwrap();
        rig.receive(true).unwrap();
        assert_eq!(rig.rx.take_used(), if comes { vec![] } else { vec![(head, 72)] });
    }
}
