//! Frames over a stream socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;
use crate::virtio::net::backend::BackendError;
use crate::virtio::net::stream::Stream;

/// The rig, and the other end of the socket.
fn rig(longest: usize) -> (Rig, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    (Rig::new(Backend::Stream(Stream::new(near).unwrap()), true, longest), far)
}

fn frame(length: usize) -> Vec<u8> {
    packet(length)[HEADER..].to_vec()
}

/// As it goes over the socket.
fn framed(length: usize) -> Vec<u8> {
    [&u32::try_from(length).unwrap().to_be_bytes()[..], &frame(length)].concat()
}

/// As the guest gets it: the header is zero but for the count of buffers.
fn given(length: usize, buffers: u16) -> Vec<u8> {
    let mut packet = received(length, buffers);
    packet[..HEADER - 2].fill(0);
    packet
}

fn read_all(far: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // It ends where there is nothing for now.
    let _ = far.read_to_end(&mut bytes);
    bytes
}

#[test]
fn frames_come_in_whatever_parts() {
    let (mut rig, mut far) = rig(LONG);
    for index in 0..3 {
        rig.rx.add(&[(FREE + 0x1000 * index, 0x1000, WRITE)]);
    }
    rig.rx.write(FREE, &[0xee; 12]);
    let bytes = [framed(60), framed(5000)].concat();
    for byte in &bytes {
        far.write_all(&[*byte]).unwrap();
        assert_eq!(rig.receive(true).unwrap(), Wait::Packet);
    }
    let used = rig.rx.take_used();
    assert_eq!(used.iter().map(|(_, length)| *length).collect::<Vec<_>>(), [72, 4096, 916]);
    assert_eq!(rig.rx.read(FREE, 72), given(60, 1));
    assert_eq!(rig.rx.read(FREE + 0x1000, 5012), given(5000, 2));
}

#[test]
fn frames_that_come_together_are_taken_apart() {
    let (mut rig, mut far) = rig(LONG);
    for index in 0..5 {
        rig.rx.add(&[(FREE + 0x1000 * index, 0x1000, WRITE)]);
    }
    far.write_all(&[framed(60), framed(1), framed(1514), framed(99)].concat()).unwrap();
    assert_eq!(rig.receive(true).unwrap(), Wait::Packet);
    let lengths: Vec<_> = rig.rx.take_used().iter().map(|(_, length)| *length).collect();
    assert_eq!(lengths, [72, 13, 1526, 111]);
    assert_eq!(rig.rx.read(FREE + 0x3000, 111), given(99, 1));
}

#[test]
fn a_frame_waits_for_buffers_as_long_as_it_takes() {
    let (mut rig, mut far) = rig(LONG);
    rig.rx.add(&[(FREE, 1000, WRITE)]);
    far.write_all(&framed(1500)).unwrap();
    assert_eq!(rig.receive(true).unwrap(), Wait::MoreBuffers);
    rig.rx.add(&[(FREE + 1000, 1000, WRITE)]);
    assert_eq!(rig.receive(true).unwrap(), Wait::Packet);
    assert_eq!(rig.rx.read(FREE, 1512), given(1500, 2));
}

#[test]
fn a_frame_without_room_is_thrown_away_and_the_next_is_not() {
    let (mut rig, mut far) = rig(LONG);
    rig.rx.add(&[(FREE, 1000, WRITE)]);
    far.write_all(&framed(9000)).unwrap();
    far.write_all(&framed(900)).unwrap();
    assert_eq!(rig.receive(false).unwrap(), Wait::Packet);
    assert_eq!(rig.metrics.rx_errors.get(), 1);
    assert_eq!(rig.rx.take_used(), [(0, 912)]);
    assert_eq!(rig.rx.read(FREE, 912), given(900, 1));
}

#[test]
fn a_length_that_no_frame_has_is_the_end() {
    for length in [0, 65_537, u32::MAX] {
        let (mut rig, mut far) = rig(LONG);
        rig.rx.add(&[(FREE, 4000, WRITE)]);
        far.write_all(&length.to_be_bytes()).unwrap();
        assert!(matches!(rig.receive(true), Err(BackendError::Closed(_))));
    }
}

#[test]
fn the_end_of_the_other_side_is_seen_in_both_directions() {
    let (mut rig, far) = rig(LONG);
    drop(far);
    rig.rx.add(&[(FREE, 4000, WRITE)]);
    assert!(matches!(rig.receive(true), Err(BackendError::Closed(_))));
    rig.tx.add(&[(FREE, 100, 0)]);
    assert!(matches!(rig.transmit.turn(&mut rig.backend), Err(BackendError::Closed(_))));
}

#[test]
fn a_packet_goes_behind_its_length_and_without_its_header() {
    let (mut rig, mut far) = rig(LONG);
    let bytes = packet(100);
    rig.tx.write(FREE, &bytes);
    rig.tx.add(&[(FREE, 5, 0), (FREE + 5, 107, 0)]);
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    assert_eq!(read_all(&mut far), framed(100));
    rig.tx.add(&[(FREE, 12 + 65_537, 0)]);
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    assert_eq!((read_all(&mut far).len(), rig.metrics.tx_errors.get()), (0, 1));
}

/// A packet of IPv4, header included.
fn packet_to(destination: [u8; 4]) -> Vec<u8> {
    let mut packet = packet(60);
    packet[HEADER + 12..HEADER + 14].copy_from_slice(&[0x08, 0]);
    packet[HEADER + 30..HEADER + 34].copy_from_slice(&destination);
    packet
}

#[test]
fn nothing_goes_to_the_host_itself() {
    let (mut rig, mut far) = rig(LONG);
    for (at, destination) in [(0, [192, 0, 2, 1]), (0x100, [127, 0, 0, 1]), (0x200, [192, 0, 2, 2])] {
        rig.tx.write(FREE + at, &packet_to(destination));
        // The address lies in several buffers.
        rig.tx.add(&[(FREE + at, 43, 0), (FREE + at + 43, 2, 0), (FREE + at + 45, 27, 0)]);
    }
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    let framed = |destination| [&60_u32.to_be_bytes()[..], &packet_to(destination)[HEADER..]].concat();
    assert_eq!(read_all(&mut far), [framed([192, 0, 2, 1]), framed([192, 0, 2, 2])].concat());
    assert_eq!((rig.tx.take_used().len(), rig.metrics.tx_errors.get()), (3, 1));
}

#[test]
fn where_a_packet_goes_cannot_be_changed_after_it_was_looked_at() {
    let (mut rig, mut far) = rig(LONG);
    let honest = packet_to([192, 0, 2, 1]);
    rig.tx.write(FREE, &honest);
    let mut count = 0;
    loop {
        rig.tx.add(&[(FREE, 72, 0)]);
        count += 1;
        if rig.transmit.turn(&mut rig.backend).unwrap() {
            break;
        }
    }
    // The last one waits for the socket.
    rig.tx.write(FREE, &packet_to([127, 0, 0, 1]));
    let mut bytes = read_all(&mut far);
    assert_eq!(bytes.len(), 64 * (count - 1), "nothing of it has gone");
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    bytes.extend(read_all(&mut far));
    assert!(bytes.chunks(64).all(|sent| sent[4..58] == honest[HEADER..][..54]));
    assert_eq!(bytes.len(), 64 * count);
}

/// Has the driver send until the socket is full in the middle of a frame, and gives the count of frames.
fn fill(rig: &mut Rig) -> usize {
    rig.tx.write(FREE, &packet(50_001));
    let mut sent = 0;
    loop {
        rig.tx.add(&[(FREE, 50_013, 0)]);
        sent += 1;
        if rig.transmit.turn(&mut rig.backend).unwrap() {
            return sent;
        }
    }
}

#[test]
fn a_frame_that_went_in_part_goes_on_where_it_stopped() {
    let (mut rig, mut far) = rig(LONG);
    let sent = fill(&mut rig);
    assert_eq!(rig.tx.take_used().len(), sent - 1);
    let mut bytes = read_all(&mut far);
    assert_ne!(bytes.len() % 50_005, 0, "the frame has not begun");
    assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
    assert_eq!(rig.tx.take_used().len(), 1);
    bytes.extend(read_all(&mut far));
    assert!(bytes == framed(50_001).repeat(sent));
}

#[test]
fn a_frame_that_has_begun_is_ended_though_the_device_is_reset() {
    let (mut old, mut far) = rig(LONG);
    let sent = fill(&mut old);
    // The other side is in the middle of a frame, too.
    old.rx.add(&[(FREE + 0x2_0000, 0x1000, WRITE)]);
    far.write_all(&framed(1000)[..500]).unwrap();
    assert_eq!(old.receive(true).unwrap(), Wait::Packet);
    let Rig { tx, transmit, receive, mut backend, .. } = old;
    transmit.stop(&mut backend);
    receive.stop(&mut backend);
    // The guest has other things there from now on.
    tx.write(FREE, &[0xee; 50_013]);

    let mut new = Rig::new(backend, true, LONG);
    let mut bytes = read_all(&mut far);
    new.tx.write(FREE, &packet(60));
    new.tx.add(&[(FREE, 72, 0)]);
    assert!(!new.transmit.turn(&mut new.backend).unwrap());
    bytes.extend(read_all(&mut far));
    assert!(bytes == [framed(50_001).repeat(sent), framed(60)].concat());

    new.rx.add(&[(FREE, 0x1000, WRITE)]);
    far.write_all(&framed(1000)[500..]).unwrap();
    far.write_all(&framed(70)).unwrap();
    assert_eq!(new.receive(true).unwrap(), Wait::Packet);
    assert_eq!(new.rx.take_used(), [(0, 82)]);
    assert_eq!(new.rx.read(FREE, 82), given(70, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_that_is_sent_is_received(
        frames in prop::collection::vec((1..3000usize, 500..2000u32), 1..12),
        parts in prop::collection::vec(1..4000usize, 1..30),
    ) {
        let (mut rig, mut far) = rig(SHORT);
        let bytes: Vec<u8> = frames.iter().flat_map(|(length, _)| framed(*length)).collect();
        let (mut at, mut got, mut buffers) = (0, Vec::new(), 0);
        let mut parts = parts.iter().cycle();
        while got.len() < frames.len() {
            let end = bytes.len().min(at + parts.next().unwrap());
            far.write_all(&bytes[at..end]).unwrap();
            at = end;
            // One after another, so that what a packet went to is known: buffers of one size, a page apart.
            let wait = rig.receive(true).unwrap();
            if matches!(wait, Wait::Buffers | Wait::MoreBuffers) {
                let size = frames[got.len()].1;
                rig.rx.add(&[(FREE + 0x1000 * (buffers % 16), size, WRITE)]);
                buffers += 1;
            }
            let mut used = rig.rx.take_used().into_iter();
            while let Some((head, length)) = used.next() {
                let place = |head: u32| FREE + 0x1000 * u64::from(head);
                let mut whole = rig.rx.read(place(head), length as usize);
                let count = u16::from_le_bytes([whole[10], whole[11]]);
                for (head, length) in used.by_ref().take(usize::from(count) - 1) {
                    whole.extend(rig.rx.read(place(head), length as usize));
                }
                prop_assert_eq!(&whole[HEADER..], &frame(frames[got.len()].0)[..]);
                got.push(whole);
            }
        }
    }
}
