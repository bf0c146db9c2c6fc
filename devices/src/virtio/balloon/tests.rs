use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::device::{Balloon, BalloonState};
use super::handle::{BalloonHandle, TargetError};
use super::ranges::{Discarded, PAGE, Ranges};
use super::statistics::Statistics;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::machine::{Machine, steps};
use crate::virtio::testing::{Driver, FREE, REGIONS, WRITE, dump, wait_readable};

const MIB: u64 = 1 << 20;
const RAM: u64 = 1 << 30;
const ALL: u64 = 0b10_0110;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;

fn drivers() -> Vec<Driver> {
    let drivers = Driver::several(&[64, 64, 64, 64]);
    for (at, size) in REGIONS.iter().take(3) {
        // All but the page with the first queue's descriptors and those with its rings.
        let at = (*at).max(FREE);
        drivers[0].write(at, &vec![0xff; size - usize::try_from(at % 0x4_0000).unwrap()]);
    }
    drivers
}

fn started(drivers: &[Driver]) -> Balloon {
    let mut balloon = Balloon::new(RAM).unwrap();
    balloon.activate(Driver::activation_of(drivers, ALL)).unwrap();
    balloon
}

fn counts(balloon: &Balloon) -> Vec<(&'static str, u64)> {
    let mut counts = Vec::new();
    balloon.metrics().visit(&mut |name, count| counts.push((name, count)));
    counts.retain(|(_, count)| *count > 0);
    counts
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// The addresses of the pages that are all zeros, of those above the rings.
fn zero_pages(driver: &Driver) -> BTreeSet<u64> {
    let mut zero = BTreeSet::new();
    for (at, bytes) in dump(&driver.memory).into_iter().take(3) {
        let pages = (at..).step_by(4096).zip(bytes.chunks(4096));
        zero.extend(pages.filter(|(at, page)| *at > FREE && page.iter().all(|b| *b == 0)).map(|(at, _)| at));
    }
    zero
}

#[test]
fn inflated_pages_are_the_hosts_and_no_others() {
    let mut drivers = drivers();
    let mut balloon = started(&drivers);
    // In two regions, in no order, across buffers; then pages that no region has.
    let pages = numbers(&[0x41, 0x40, 0x3f, 0x1000, 0x101f, 0x30, 0x1020, 0x80, u32::MAX]);
    let (first, second) = pages.split_at(9);
    drivers[INFLATE].write(FREE, first);
    drivers[INFLATE].write(FREE + 100, second);
    let head = drivers[INFLATE].add(&[(FREE, 9, 0), (FREE + 100, 27, 0)]);
    balloon.queue_notified(0);
    assert_eq!(drivers[INFLATE].take_used(), [(head.into(), 0)]);
    let expected = [0x30_000, 0x3f_000, 0x40_000, 0x41_000, 0x100_0000, 0x101_f000];
    assert_eq!(zero_pages(&drivers[INFLATE]), BTreeSet::from(expected));
    assert_eq!(counts(&balloon), [("inflated_bytes", 6 * PAGE), ("refused_bytes", 3 * PAGE)]);

    drivers[DEFLATE].write(FREE, &pages);
    drivers[DEFLATE].add(&[(FREE, 36, 0)]);
    balloon.queue_notified(1);
    assert_eq!(drivers[DEFLATE].used_count(), 1);
    assert!(!drivers[0].counters.broken());
}

#[test]
fn reported_ranges_are_the_hosts_as_far_as_they_are_whole_pages_of_memory() {
    let mut drivers = drivers();
    let mut balloon = started(&drivers);
    drivers[REPORTING].add(&[
        (0x3_e000, 0x4000, WRITE),
        (0x2_0001, 0x2fff, WRITE),
        (0x100_0800, 0x100, WRITE),
    ]);
    // What the driver made readable is not reported.
    drivers[REPORTING].add(&[(0x5_0000, 0x1000, 0), (0x6_0000, 0x1000, WRITE)]);
    balloon.queue_notified(3);
    let expected = [0x2_1000, 0x2_2000, 0x3_e000, 0x3_f000, 0x4_0000, 0x4_1000, 0x6_0000];
    assert_eq!(zero_pages(&drivers[0]), BTreeSet::from(expected));
    assert_eq!(counts(&balloon), [("reported_bytes", 7 * PAGE)]);
}

#[test]
fn a_report_of_memory_that_is_not_there_breaks_the_queue_and_frees_nothing() {
    let mut drivers = drivers();
    let mut balloon = started(&drivers);
    drivers[REPORTING].add(&[(0x2_0000, 0x1000, WRITE), (0x8_0000, 0x1000, WRITE)]);
    balloon.queue_notified(3);
    assert!(drivers[0].counters.broken());
    assert_eq!(zero_pages(&drivers[0]), BTreeSet::new());
}

#[test]
fn shared_memory_leaves_its_file() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let file = FileOffset::new(file, 0);
    let memory =
        GuestMemoryMmap::<()>::from_ranges_with_files([(GuestAddress(0), 1 << 20, Some(file.clone()))])
            .unwrap();
    memory.write_slice(&vec![0xff; 1 << 20], GuestAddress(0)).unwrap();
    let before = file.file().metadata().unwrap().blocks();
    let mut ranges = Ranges::default();
    ranges.push_buffer(GuestAddress(0x8_0000), 0x4_0000);
    let discarded = Discarded { bytes: 0x4_0000, refused: 0, host_calls: 1 };
    assert_eq!(ranges.discard_some(&memory), discarded);
    assert_eq!(before - file.file().metadata().unwrap().blocks(), 0x4_0000 / 512);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x8_0000)).unwrap(), 0);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0xc_0000)).unwrap(), u64::MAX);
}

#[test]
fn a_turn_frees_a_bounded_amount() {
    const BIG: u64 = 1 << 32;
    let mut drivers = drivers();
    let ranges = REGIONS.into_iter().chain([(BIG, 256 << 20)]);
    let ranges: Vec<_> = ranges.map(|(at, size)| (GuestAddress(at), size)).collect();
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    drivers.iter_mut().for_each(|driver| driver.memory = memory.clone());
    let mut balloon = started(&drivers);
    for index in 0..3 {
        drivers[REPORTING].add(&[(BIG + index * 64 * MIB, 64 << 20, WRITE)]);
    }
    drivers[0].counters.take_again();
    for done in 1..=3 {
        balloon.queue_notified(3);
        assert_eq!(drivers[REPORTING].used_count(), done);
        assert!(drivers[0].counters.take_again(), "the rest is for another turn");
    }
    balloon.queue_notified(3);
    assert!(!drivers[0].counters.take_again());
}

#[test]
fn without_the_feature_of_statistics_the_reporting_queue_is_the_third() {
    let mut drivers = drivers();
    let mut balloon = Balloon::new(RAM).unwrap();
    balloon.activate(Driver::activation_of(&drivers[..3], ALL & !2)).unwrap();
    drivers[2].add(&[(0x2_0000, 0x1000, WRITE)]);
    balloon.queue_notified(2);
    assert_eq!(counts(&balloon), [("reported_bytes", PAGE)]);
}

fn config(balloon: &Balloon) -> [u8; 16] {
    let mut space = [0xaa; 16];
    balloon.read_config(0, &mut space);
    space
}

#[test]
fn the_target_is_in_the_config_space_and_its_change_is_signalled() {
    let drivers = drivers();
    let balloon = Arc::new(Mutex::new(started(&drivers)));
    let handle = BalloonHandle::new(balloon.clone());
    let signals = || drivers[0].counters.config_changed.load(Ordering::SeqCst);
    assert_eq!(handle.set_target(256 * MIB + 5), Ok(()));
    assert_eq!(handle.set_target(256 * MIB), Ok(()));
    assert_eq!((handle.target(), signals()), (256 * MIB, 1));
    assert_eq!(
        config(&balloon.lock().unwrap()),
        [0, 0, 1, 0, 0, 0, 0, 0, 170, 170, 170, 170, 170, 170, 170, 170]
    );

    // The driver says how far it is, 32 bits at once; the target is not its to write.
    balloon.lock().unwrap().write_config(4, &[0, 0x80, 0, 0]);
    balloon.lock().unwrap().write_config(0, &[1, 1, 1, 1]);
    balloon.lock().unwrap().write_config(8, &[1]);
    balloon.lock().unwrap().write_config(u64::MAX, &[1, 1]);
    assert_eq!((handle.target(), handle.actual()), (256 * MIB, 128 * MIB));
    let state = balloon.lock().unwrap().state();
    assert_eq!(state, BalloonState { target_pages: 65536, actual_pages: 32768, ..Default::default() });

    let most = RAM - 64 * MIB;
    assert_eq!(handle.largest_target(), most);
    assert_eq!(handle.set_target(most), Ok(()));
    for asked in [most + 1, RAM, u64::MAX] {
        assert_eq!(handle.set_target(asked), Err(TargetError { asked, most }));
    }
    assert_eq!(handle.target(), most);

    // A reset empties the balloon, and the target stays.
    balloon.lock().unwrap().reset().unwrap();
    assert_eq!((handle.target(), handle.actual()), (most, 0));
    assert_eq!(handle.set_target(0), Ok(()), "without a driver to tell");
}

#[test]
fn a_small_guest_keeps_all_it_has() {
    let handle = BalloonHandle::new(Arc::new(Mutex::new(Balloon::new(32 * MIB).unwrap())));
    assert_eq!(handle.set_target(PAGE), Err(TargetError { asked: PAGE, most: 0 }));
    assert_eq!(handle.set_target(0), Ok(()));
}

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn statistics_come_when_asked_for_and_their_buffer_waits() {
    let mut drivers = drivers();
    let balloon = Arc::new(Mutex::new(Balloon::new(RAM).unwrap()));
    let handle = BalloonHandle::new(balloon.clone());
    assert_eq!(handle.refresh_statistics(Duration::ZERO), None);
    // As Linux does: the buffer comes before DRIVER_OK.
    drivers[STATISTICS].write(FREE, &[entry(4, 100), entry(5, 200), vec![4, 0, 1]].concat());
    drivers[STATISTICS].add(&[(FREE, 23, 0)]);
    balloon.lock().unwrap().activate(Driver::activation_of(&drivers, ALL)).unwrap();
    assert!(drivers[0].counters.take_again(), "the device looks by itself");
    balloon.lock().unwrap().queue_notified(2);
    let expected = Statistics { free_memory: Some(100), total_memory: Some(200), ..Default::default() };
    assert_eq!(handle.statistics().unwrap().1, expected);
    assert_eq!(drivers[STATISTICS].used_count(), 0, "the device keeps the buffer");

    // A timer asks for the next ones.
    handle.set_statistics_interval(Duration::from_millis(1)).unwrap();
    let [timer] = balloon.lock().unwrap().wake_fds()[..] else { panic!("one timer") };
    wait_readable(timer);
    handle.set_statistics_interval(Duration::ZERO).unwrap();
    balloon.lock().unwrap().woken(0);
    assert_eq!(drivers[STATISTICS].take_used().len(), 1);
    balloon.lock().unwrap().woken(0);
    assert_eq!(drivers[STATISTICS].used_count(), 0, "the driver has the only buffer");

    // Somebody waits for them.
    let waiting = std::thread::spawn({
        let handle = handle.clone();
        move || handle.refresh_statistics(Duration::from_secs(10)).unwrap().1
    });
    drivers[STATISTICS].write(FREE, &entry(4, 300));
    drivers[STATISTICS].add(&[(FREE, 10, 0)]);
    // It may not wait yet, and then is answered by the buffer that comes after its request.
    while !waiting.is_finished() {
        balloon.lock().unwrap().queue_notified(2);
        if drivers[STATISTICS].take_used().len() == 1 {
            drivers[STATISTICS].add(&[(FREE, 10, 0)]);
        }
    }
    let expected = Statistics { free_memory: Some(300), ..expected };
    assert_eq!(waiting.join().unwrap(), expected, "what was left out is as it was");
}

#[test]
fn a_driver_with_two_buffers_of_statistics_gets_the_older_one_back() {
    let mut drivers = drivers();
    let mut balloon = started(&drivers);
    let heads: Vec<_> = (0..3).map(|_| drivers[STATISTICS].add(&[(FREE, 10, 0)])).collect();
    balloon.queue_notified(2);
    let older: Vec<_> = heads[..2].iter().map(|head| (u32::from(*head), 0)).collect();
    assert_eq!(drivers[STATISTICS].take_used(), older);
}

/// A report of 4 GiB in one chain.
fn huge_report() -> Vec<Driver> {
    let mut drivers = Driver::several(&[64, 64, 64, 64]);
    let huge = (0x1_0000_0000, 4 << 30);
    let ranges: Vec<_> = REGIONS.iter().chain([&huge]).map(|&(at, size)| (GuestAddress(at), size)).collect();
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    drivers.iter_mut().for_each(|driver| driver.memory = memory.clone());
    drivers[REPORTING].add(&[(huge.0, u32::MAX, WRITE)]);
    drivers
}

const REPORTED: u64 = (4 << 30) - PAGE;

#[test]
fn a_report_of_4_gib_takes_many_turns_each_of_which_is_small() {
    let drivers = huge_report();
    let mut balloon = started(&drivers);
    assert!(drivers[STATISTICS].counters.take_again());
    let mut turns = 0;
    while drivers[REPORTING].used_count() == 0 {
        balloon.queue_notified(REPORTING.try_into().unwrap());
        turns += 1;
        assert_eq!(drivers[REPORTING].counters.take_again(), drivers[REPORTING].used_count() == 0);
    }
    assert_eq!(counts(&balloon), [("reported_bytes", REPORTED)]);
    assert_eq!(turns, REPORTED.div_ceil(64 * MIB));
    let largest = drivers[REPORTING].meter.largest_turn();
    assert!(largest.bytes <= 64 * MIB && largest.host_calls <= 16, "{largest:?}");
}

#[test]
fn a_report_at_work_goes_back_when_the_device_is_suspended() {
    let mut drivers = huge_report();
    let mut balloon = started(&drivers);
    balloon.queue_notified(REPORTING.try_into().unwrap());
    balloon.suspend().unwrap();
    assert_eq!(drivers[REPORTING].take_used(), [(0, 0)]);
    let expected = [("reported_bytes", 64 * MIB), ("refused_bytes", REPORTED - 64 * MIB)];
    assert_eq!(counts(&balloon), expected);
}

proptest! {
    #[test]
    fn nothing_is_lost_or_answered_twice_over_a_suspend(steps in steps()) {
        let make = || Balloon::new(RAM).unwrap();
        let mut machine = Machine::new(make(), ALL);
        let (mut target, mut interval) = (0, Duration::ZERO);
        for step in steps {
            machine.step(step, make, |machine, number| match usize::from(number) % 6 {
                INFLATE => {
                    let page = 0x20 + u64::from(number % 0x10);
                    machine.drivers[INFLATE].write(FREE + page * 4, &page.to_le_bytes());
                    machine.submit(INFLATE, &[(FREE + page * 4, 4, 0)]);
                }
                DEFLATE => drop(machine.submit(DEFLATE, &[(FREE, 64, 0)])),
                REPORTING => drop(machine.submit(REPORTING, &[(0x3_0000, 0x2000, WRITE)])),
                STATISTICS if machine.outstanding(STATISTICS) == 0 => {
                    machine.submit(STATISTICS, &[(FREE + 0x800, 10, 0)]);
                }
                STATISTICS => machine.device().request_statistics(),
                _ => {
                    (target, interval) = (u64::from(number) * MIB, Duration::from_secs(number.into()));
                    machine.device().set_target(target).unwrap();
                    machine.device().set_statistics_interval(interval).unwrap();
                }
            });
        }
        machine.finish(&[INFLATE, DEFLATE, REPORTING]);
        // The buffer of statistics comes back once new ones are wanted, whichever device took it.
        if machine.outstanding(STATISTICS) > 0 {
            machine.device().request_statistics();
            machine.finish(&[STATISTICS]);
        }
        prop_assert_eq!(machine.device().target(), target);
        prop_assert_eq!(machine.device().statistics_interval(), interval);
    }

    /// Whatever pages are named, those of the queue itself among them: a page is as it was, or zero where it was named.
    #[test]
    fn only_named_pages_change(
        pages in prop::collection::vec(prop_oneof![0_u32..0x90, 0xff0_u32..0x1030, any::<u32>()], 0..300),
        cut in 0_u32..4,
    ) {
        let mut drivers = drivers();
        let mut balloon = started(&drivers);
        let bytes = numbers(&pages);
        drivers[INFLATE].write(FREE, &bytes);
        let length = u32::try_from(bytes.len()).unwrap().saturating_sub(cut);
        drivers[INFLATE].add(&[(FREE, length, 0)]);
        let before = dump(&drivers[INFLATE].memory);
        let used = drivers[INFLATE].used_ring();
        balloon.queue_notified(0);
        let named: BTreeSet<_> = pages.iter().map(|page| u64::from(*page) * PAGE).collect();
        for ((at, before), (_, after)) in before.into_iter().zip(dump(&drivers[INFLATE].memory)) {
            for (at, (before, after)) in (at..).step_by(4096).zip(before.chunks(4096).zip(after.chunks(4096))) {
                let zeroed = named.contains(&at) && after.iter().all(|byte| *byte == 0);
                let rings = at < used.end && used.start < at + PAGE;
                prop_assert!(before == after || zeroed || rings, "page {at:#x}");
            }
        }
    }

    #[test]
    fn arbitrary_chains_on_arbitrary_queues_do_no_harm(
        chains in prop::collection::vec(
            (0_usize..4, prop::collection::vec((0_u64..0x9_0000, 0_u32..0x2_0000, 0_u16..4), 1..6)),
            1..20,
        ),
    ) {
        let mut drivers = drivers();
        let mut balloon = started(&drivers);
        for (queue, buffers) in chains {
            let buffers: Vec<_> =
                buffers.into_iter().map(|(at, length, flags)| (at.max(FREE), length, flags & WRITE)).collect();
            drivers[queue].add(&buffers);
            balloon.queue_notified(u16::try_from(queue).unwrap());
            balloon.request_statistics();
        }
        balloon.queue_notified(4);
        balloon.reset().unwrap();
        prop_assert!(balloon.state().actual_pages == 0);
    }
}
