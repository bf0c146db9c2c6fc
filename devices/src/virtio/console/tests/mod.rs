//! What a driver and a user see of a console.

mod suspend;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{GuestAddress, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Console, ConsoleSink, SentPart, WindowSize};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Driver, FREE, WRITE, wait_readable};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// What was output, and how much more may be.
struct Screen {
    shown: Vec<u8>,
    room: usize,
}

#[derive(Clone)]
struct Sink(Arc<Mutex<Screen>>, Arc<EventFd>);

impl Sink {
    fn new(room: usize) -> Self {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self(Arc::new(Mutex::new(Screen { shown: Vec::new(), room })), event)
    }
    fn shown(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap().shown)
    }
    fn make_room(&self, room: usize) {
        self.0.lock().unwrap().room = room;
        self.1.write(1).unwrap();
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut screen = self.0.lock().unwrap();
        screen.shown.extend(bytes);
        screen.room = screen.room.saturating_sub(bytes.len());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ConsoleSink for Sink {
    fn room(&mut self) -> usize {
        self.0.lock().unwrap().room
    }
    fn room_fd(&self) -> RawFd {
        self.1.as_raw_fd()
    }
    fn acknowledge(&mut self) {
        let _ = self.1.read();
    }
}

const SIZE: WindowSize = WindowSize { columns: 132, rows: 43 };

fn started(sink: &Sink) -> (Console, Driver, Driver) {
    let drivers = Driver::several(&[16, 16]);
    let mut console = Console::new(Box::new(sink.clone()), SIZE).unwrap();
    assert_eq!(console.input_room(), 0, "no driver reads");
    console.activate(Driver::activation_of(&drivers, 1 << VIRTIO_F_VERSION_1)).unwrap();
    let [receive, transmit] = drivers.try_into().unwrap_or_else(|_| panic!("two queues"));
    (console, receive, transmit)
}

/// Waits until the console asks whether anybody listens.
fn wait_for_question(console: &mut Console) {
    wait_readable(console.wake_fds()[1]);
    console.woken(1);
}

/// A console whose driver has said that it listens.
fn heard(sink: &Sink) -> (Console, Driver, Driver) {
    let (mut console, mut receive, transmit) = started(sink);
    console.drained().unwrap().read().expect("a driver works");
    console.input(b"?");
    let question = receive.add(&[(FREE, 1, WRITE)]);
    wait_for_question(&mut console);
    let first = receive.add(&[(FREE, 1, WRITE)]);
    console.queue_notified(RECEIVE);
    assert_eq!(receive.take_used(), [(question.into(), 0), (first.into(), 1)]);
    assert_eq!(receive.read(FREE, 1), b"?");
    receive.write(FREE, &[0]);
    console.drained().unwrap().read().expect("there is room again");
    (console, receive, transmit)
}

#[test]
fn output_is_shown_whatever_its_layout() {
    let sink = Sink::new(usize::MAX);
    let (mut console, _, mut driver) = started(&sink);
    driver.write(FREE, b"hello, world");
    let first = driver.add(&[(FREE, 5, 0), (FREE + 100, 0, 0), (FREE + 5, 2, 0)]);
    let second = driver.add(&[(FREE + 7, 5, 0), (FREE + 1000, 64, WRITE)]);
    console.queue_notified(TRANSMIT);
    assert_eq!(sink.shown(), b"hello, world");
    assert_eq!(driver.take_used(), [(first.into(), 0), (second.into(), 0)]);
    assert_eq!(driver.read(FREE + 1000, 64), [0; 64], "it has nothing to write there");
    let mut counts = Vec::new();
    console.metrics().visit(&mut |name, count| counts.push((name, count)));
    assert!(counts.contains(&("output_bytes", 12)), "{counts:?}");
}

#[test]
fn output_waits_for_room_and_goes_on_where_it_stopped() {
    let sink = Sink::new(4);
    let (mut console, _, mut driver) = started(&sink);
    driver.write(FREE, b"hello, world");
    let first = driver.add(&[(FREE, 7, 0)]);
    let second = driver.add(&[(FREE + 7, 5, 0)]);
    console.queue_notified(TRANSMIT);
    assert_eq!((sink.shown(), driver.used_count()), (b"hell".to_vec(), 0));
    assert_eq!(console.state().sending, Some(SentPart { head: crate::virtio::Head(first), sent: 4 }));
    // Without room, nothing brings it on.
    console.queue_notified(TRANSMIT);
    assert!(sink.shown().is_empty() && !driver.counters.take_again());
    sink.make_room(100);
    wait_readable(console.wake_fds()[0]);
    console.woken(0);
    assert_eq!(sink.shown(), b"o, world");
    assert_eq!(driver.take_used(), [(first.into(), 0), (second.into(), 0)]);
    assert_eq!(console.state().sending, None);
    assert!(sink.1.read().is_err(), "the device has read its event");
}

/// Gives a driver a region that is for system calls only, as a file of persistent memory is.
fn add_dma_only(driver: &mut Driver) -> u64 {
    let start = GuestAddress(0x4000_0000);
    let region = GuestRegionMmap::from_range(start, 0x1000, None).unwrap();
    driver.dma = Some(Arc::new(driver.memory.insert_region(Arc::new(region)).unwrap()));
    start.0
}

#[test]
fn buffers_that_are_not_in_ram_need_a_reset_and_neither_lose_nor_repeat_a_byte() {
    let sink = Sink::new(usize::MAX);
    let mut drivers = Driver::several(&[16, 16]);
    let file = add_dma_only(&mut drivers[0]);
    let mut console = Console::new(Box::new(sink.clone()), SIZE).unwrap();
    console.activate(Driver::activation_of(&drivers, 1 << VIRTIO_F_VERSION_1)).unwrap();
    drivers[1].write(FREE, b"seen");
    let seen = drivers[1].add(&[(FREE, 4, 0)]);
    drivers[1].add(&[(FREE, 4, 0), (file, 4, 0)]);
    for _ in 0..3 {
        console.queue_notified(TRANSMIT);
    }
    assert!(drivers[0].counters.broken());
    assert!(b"seenseen".starts_with(&sink.shown()[..]));
    assert_eq!(drivers[1].take_used(), [(seen.into(), 0)]);
    assert!(!drivers[0].counters.take_again(), "it does not come again");
    assert_eq!(console.state().sending, None);
}

#[test]
fn typed_bytes_wait_where_the_drivers_buffer_is_not_in_ram() {
    let sink = Sink::new(usize::MAX);
    let mut drivers = Driver::several(&[16, 16]);
    let file = add_dma_only(&mut drivers[0]);
    let mut console = Console::new(Box::new(sink), SIZE).unwrap();
    console.activate(Driver::activation_of(&drivers, 1 << VIRTIO_F_VERSION_1)).unwrap();
    console.input(b"typed");
    drivers[0].add(&[(FREE, 1, WRITE)]);
    wait_for_question(&mut console);
    // The driver listens, and offers such a buffer.
    for _ in 0..2 {
        drivers[0].add(&[(file, 16, WRITE)]);
    }
    console.queue_notified(RECEIVE);
    assert!(drivers[0].counters.broken());
    assert_eq!(console.state().typed, b"typed");
}

#[test]
fn endless_output_leaves_others_their_turn() {
    let sink = Sink::new(usize::MAX);
    let (mut console, _, mut driver) = started(&sink);
    // 64 times the same 128 KiB.
    let head = driver.add_indirect(FREE, &[(0x1_0000, 0x2_0000, 0); 64]);
    let mut shown = 0;
    let mut turns = 0;
    console.queue_notified(TRANSMIT);
    while driver.counters.take_again() {
        let now = sink.shown().len();
        assert!(now <= 256 << 10, "{now} bytes at once");
        shown += now;
        turns += 1;
        console.queue_notified(TRANSMIT);
    }
    assert!(turns > 10);
    assert_eq!(shown + sink.shown().len(), 64 * 0x2_0000);
    assert_eq!(driver.take_used(), [(head.into(), 0)]);
}

#[test]
fn what_is_typed_waits_for_buffers() {
    let (mut console, mut driver, _) = heard(&Sink::new(0));
    let drained = console.drained().unwrap();
    let room = console.input_room();
    let typed = vec![b'a'; room + 10];
    assert_eq!(console.input(&typed), room);
    assert_eq!((console.input_room(), console.input(b"more")), (0, 0));
    assert_eq!(console.state().typed, typed[..room]);
    assert!(drained.read().is_err());
    let small = driver.add(&[(FREE, 3, WRITE), (FREE + 10, 7, WRITE)]);
    let large = driver.add(&[(FREE + 100, 4096, WRITE)]);
    let unused = driver.add(&[(FREE + 0x2000, 4096, WRITE)]);
    console.queue_notified(RECEIVE);
    let rest = u32::try_from(room - 10).unwrap();
    assert_eq!(driver.take_used(), [(small.into(), 10), (large.into(), rest)]);
    assert_eq!(driver.read(FREE, 3), b"aaa");
    drained.read().expect("there is room again");
    assert_eq!(console.input_room(), room);
    assert_eq!(console.input(b"x"), 1);
    assert_eq!(driver.take_used(), [(unused.into(), 1)]);
    assert_eq!(driver.read(FREE + 0x2000, 2), b"x\0");
}

#[test]
fn a_reset_keeps_what_is_typed_for_the_next_driver() {
    let (mut console, ..) = started(&Sink::new(0));
    console.input(b"typed");
    console.reset().unwrap();
    assert_eq!(console.input(b"lost"), 0);
    let mut drivers = Driver::several(&[16, 16]);
    console.activate(Driver::activation_of(&drivers, 0)).unwrap();
    let question = drivers[0].add(&[(FREE, 100, WRITE)]);
    console.queue_notified(RECEIVE);
    wait_for_question(&mut console);
    let head = drivers[0].add(&[(FREE, 100, WRITE)]);
    console.queue_notified(RECEIVE);
    assert_eq!(drivers[0].take_used(), [(question.into(), 0), (head.into(), 5)]);
    assert_eq!(drivers[0].read(FREE, 5), b"typed");
}

/// A driver that was asked three times and has one more buffer, while `typed` waits; with its buffers.
fn asked(event_idx: bool) -> (Console, Driver, Vec<u32>) {
    let mut drivers = Driver::several(&[16, 16]);
    drivers[0].event_idx = event_idx;
    let mut console = Console::new(Box::new(Sink::new(0)), SIZE).unwrap();
    console.activate(Driver::activation_of(&drivers, 0)).unwrap();
    let mut driver = drivers.remove(0);
    console.input(b"typed");
    let heads: Vec<u32> = (0..4).map(|_| driver.add(&[(FREE, 100, WRITE)]).into()).collect();
    console.queue_notified(RECEIVE);
    assert_eq!(driver.used_count(), 0, "nothing goes unasked");
    for head in &heads[..3] {
        wait_for_question(&mut console);
        // What became of it does not show.
        console.queue_notified(RECEIVE);
        assert_eq!(driver.take_used(), [(*head, 0)]);
    }
    (console, driver, heads)
}

/// As Linux does until it knows its console.
#[test]
fn what_is_typed_is_not_for_a_driver_that_throws_buffers_away() {
    for event_idx in [false, true] {
        let (mut console, mut driver, heads) = asked(event_idx);
        if event_idx {
            assert_eq!(
                driver.available_event(),
                4,
                "it is notified of the next buffer, not of the one that it has"
            );
        }
        driver.add(&[(FREE, 100, WRITE)]);
        console.queue_notified(RECEIVE);
        assert_eq!(driver.used_count(), 0, "there may be more answers");
        // There are none.
        wait_for_question(&mut console);
        assert_eq!(driver.take_used(), [(heads[3], 5)]);
        assert_eq!(driver.read(FREE, 6), b"typed\0");
    }
}

/// As Linux does with a console that no program has open yet.
#[test]
fn a_driver_that_reads_late_is_told_until_it_has_read_all() {
    for event_idx in [false, true] {
        let (mut console, mut driver, heads) = asked(event_idx);
        for answers in 1..=2 {
            driver.add(&[(FREE, 100, WRITE)]);
            let told = driver.counters.used();
            console.queue_notified(RECEIVE);
            assert_eq!((driver.counters.used(), driver.used_count()), (told + 1, 0));
            assert!(!event_idx || driver.available_event() == 4 + answers);
        }
        driver.add(&[(FREE, 100, WRITE)]);
        console.queue_notified(RECEIVE);
        assert_eq!(driver.take_used(), [(heads[3], 5)]);
    }
}

#[test]
fn a_driver_that_never_answers_is_believed_in_after_some_time() {
    let (mut console, mut driver, _) = started(&Sink::new(0));
    console.input(b"typed");
    let heads: Vec<u32> = (0..6).map(|_| driver.add(&[(FREE, 100, WRITE)]).into()).collect();
    for _ in 0..6 {
        wait_for_question(&mut console);
    }
    let questions = heads[..5].iter().map(|head| (*head, 0));
    assert_eq!(driver.take_used(), questions.chain([(heads[5], 5)]).collect::<Vec<_>>());
}

#[test]
fn the_window_is_in_the_config_space_and_its_change_is_told() {
    let (mut console, mut receive, transmit) = started(&Sink::new(0));
    let size = |console: &Console| {
        let mut space = [0xff; 16];
        console.read_config(0, &mut space);
        assert_eq!(space[12..], [0xff; 4], "the config space ends");
        (u16::from_le_bytes([space[0], space[1]]), u16::from_le_bytes([space[2], space[3]]))
    };
    let told = || transmit.counters.config_changed.swap(0, Ordering::SeqCst);
    assert_eq!((size(&console), told()), ((132, 43), 1), "a driver that begins to work is told");
    receive.add(&[(FREE, 1, WRITE)]);
    console.queue_notified(RECEIVE);
    wait_for_question(&mut console);
    assert_eq!(told(), 0);
    receive.add(&[(FREE, 1, WRITE)]);
    console.queue_notified(RECEIVE);
    assert_eq!((told(), receive.take_used()), (1, vec![(0, 0)]), "and told again once it listens");
    console.resize(SIZE);
    assert_eq!(told(), 0);
    console.resize(WindowSize { columns: 80, rows: 24 });
    assert_eq!(told(), 1);
    assert_eq!(size(&console), (80, 24));
    let mut row = [0];
    console.read_config(2, &mut row);
    assert_eq!(row, [24]);
}

#[test]
fn a_driver_in_distress_outputs_by_the_config_space() {
    let sink = Sink::new(0);
    let mut console = Console::new(Box::new(sink.clone()), SIZE).unwrap();
    console.write_config(8, &u32::from(b'!').to_le_bytes());
    console.write_config(0, b"x");
    console.write_config(8, b"");
    console.write_config(u64::MAX, b"x");
    assert_eq!(sink.shown(), b"!");
}

#[test]
fn both_queues_have_to_be_there() {
    for missing in [RECEIVE, TRANSMIT] {
        let drivers = Driver::several(&[16, 16]);
        let mut activation = Driver::activation_of(&drivers, 0);
        activation.queues[usize::from(missing)] = None;
        assert!(Console::new(Box::new(Sink::new(0)), SIZE).unwrap().activate(activation).is_err());
    }
}

proptest! {
    /// Chains of any layout, an output that stalls at any place, and typing in between.
    #[test]
    fn bytes_arrive_in_order_and_only_where_they_may(
        chains in prop::collection::vec(prop::collection::vec((0..0x4000u16, 0..3000u16), 1..4), 1..5),
        rooms in prop::collection::vec(1..4000usize, 1..20),
        buffers in prop::collection::vec((0x1_0000u64..0x1_4000, 0..300u32, any::<bool>()), 1..8),
        typed in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let sink = Sink::new(0);
        let (mut console, mut receive, mut transmit) = heard(&sink);
        let pattern: Vec<u8> = (0..0x8000u32).map(|at| (at % 253) as u8).collect();
        transmit.write(FREE, &pattern);
        let mut expected = Vec::<u8>::new();
        for chain in &chains {
            let buffers: Vec<_> = chain.iter().map(|&(at, length)| (FREE + u64::from(at), length.into(), 0)).collect();
            for &(at, length) in chain {
                expected.extend(&pattern[at.into()..][..length.into()]);
            }
            transmit.add(&buffers);
        }
        let mut shown = Vec::new();
        console.queue_notified(TRANSMIT);
        for room in rooms {
            sink.make_room(room);
            console.woken(0);
            let now = sink.shown();
            prop_assert!(now.len() <= room);
            shown.extend(now);
        }
        sink.make_room(usize::MAX);
        console.woken(0);
        shown.extend(sink.shown());
        prop_assert!(shown == expected);
        prop_assert_eq!(usize::from(transmit.used_count()), chains.len());

        for &(at, length, write) in &buffers {
            receive.add(&[(at, length, if write { WRITE } else { 0 })]);
        }
        console.input(&typed);
        console.queue_notified(RECEIVE);
        let inside = |at: u64| {
            buffers.iter().any(|&(start, length, write)| write && (start..start + u64::from(length)).contains(&at))
        };
        for (at, byte) in (0x1_0000..).zip(receive.read(0x1_0000, 0x6000)) {
            prop_assert!(byte == 0 || inside(at), "wrote to {at:#x}");
        }
        let written: u32 = receive.take_used().iter().map(|(_, written)| written).sum();
        let room: u32 = buffers.iter().filter(|(_, _, write)| *write).map(|(_, length, _)| length).sum();
        prop_assert_eq!(written, room.min(u32::try_from(typed.len()).unwrap()));
    }
}
