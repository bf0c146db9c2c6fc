//! Drivers that break rules.

use std::path::PathBuf;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_WRITE_ZEROES};

use super::*;
use crate::virtio::MAX_CHAIN;
use crate::virtio::block::config::{MAX_DATA, SEG_MAX, SIZE_MAX};
use crate::virtio::block::worker::BUDGET;
use crate::virtio::testing::{Descriptor, INDIRECT, NEXT, dump};

/// A directory in memory, where the host has one. What these tests show does not depend on the host's storage, but
/// their waits do: a test flushes a disk hundreds of times.
fn in_memory() -> PathBuf {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() { shared_memory.to_owned() } else { std::env::temp_dir() }
}

fn image(sectors: u8) -> tempfile::NamedTempFile {
    image_in(&in_memory(), sectors)
}

/// Where chains and indirect tables of a hostile driver point: few places, so that they meet.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..8u64).prop_map(|i| HEADERS + 16 * i),
        4 => (0..64u64).prop_map(|i| DATA + 100 * i),
        1 => (0..64u64).prop_map(|i| 0x4_0000 - 32 + i),
        1 => (0..64u64).prop_map(|i| 0x8_0000 - 32 + i),
        1 => 0..0x8_0000u64,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => prop::sample::select(vec![0u32, 1, 16, 32, 64, 512, 513, 1024]),
        1 => 0..5000u32,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let flags = prop_oneof![4 => prop::sample::select(vec![0, NEXT, WRITE, NEXT | WRITE, INDIRECT]), 1 => any::<u16>()];
    let next = prop_oneof![6 => 0..16u16, 1 => any::<u16>()];
    (address(), length(), flags, next).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

/// A header, its sector in the disk or not.
fn header() -> impl Strategy<Value = (u32, u64)> {
    let kind = prop_oneof![6 => prop::sample::select(vec![0u32, 1, 4, 8, 11, 13]), 1 => any::<u32>()];
    let sector = prop_oneof![3 => 0..10u64, 1 => any::<u64>(), 1 => Just(u64::MAX / 512)];
    (kind, sector)
}

#[derive(Clone, Debug)]
struct Attack {
    table: Vec<Descriptor>,
    indirect: Vec<Descriptor>,
    headers: Vec<(u32, u64)>,
    heads: Vec<u16>,
    index: Option<u16>,
}

fn attack() -> impl Strategy<Value = Attack> {
    let heads = prop::collection::vec(prop_oneof![8 => 0..16u16, 1 => any::<u16>()], 1..20);
    (
        prop::collection::vec(descriptor(), 16),
        prop::collection::vec(descriptor(), 8),
        prop::collection::vec(header(), 8),
        heads,
        prop::option::weighted(0.1, any::<u16>()),
    )
        .prop_map(|(table, indirect, headers, heads, index)| Attack {
            table,
            indirect,
            headers,
            heads,
            index,
        })
}

/// Lets the device do what it does until it has nothing more to do, and resets it.
fn run_dry(rig: &mut Rig) {
    for _ in 0..1000 {
        rig.notify();
        let state = rig.settle();
        if state.broken || state.next_available == rig.driver.available_index() {
            rig.block.reset().unwrap();
            return;
        }
    }
    panic!("the device doesn't come to an end");
}

/// All ranges that any descriptor, in any table that could be reached, lets the device write to.
fn writable(attack: &Attack) -> Vec<std::ops::Range<u64>> {
    let ranges = attack.table.iter().chain(&attack.indirect);
    ranges
        .filter(|d| d.flags & WRITE != 0)
        .map(|d| d.address..d.address.saturating_add(u64::from(d.length)))
        .collect()
}

fn lay_out(rig: &mut Rig, attack: &Attack) {
    for (i, &(kind, sector)) in attack.headers.iter().enumerate() {
        rig.requests = i as u64;
        rig.header(kind, sector);
    }
    for (i, &descriptor) in (0..).zip(&attack.indirect) {
        rig.driver.describe(DATA, i, descriptor);
    }
    for (i, &descriptor) in (0..).zip(&attack.table) {
        rig.driver.describe_own(i, descriptor);
    }
    for &head in &attack.heads {
        rig.driver.make_available(head);
    }
    if let Some(index) = attack.index {
        rig.driver.set_available_index(index);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_chains_write_only_where_they_may(attack in attack(), event_idx: bool) {
        for with in BOTH {
            let file = image(8);
            let before = content(file.path());
            let driver = if event_idx { Driver::with_event_idx(16) } else { Driver::new(16) };
            let mut rig = Rig::with_driver(with, file.path(), false, driver);
            lay_out(&mut rig, &attack);
            let memory = dump(&rig.driver.memory);
            run_dry(&mut rig);

            let mut allowed = writable(&attack);
            allowed.push(rig.driver.used_ring());
            // A descriptor in data that the device itself wrote can be anything.
            let tables_intact = !allowed.iter().any(|range| range.start < DATA + 128 && range.end > DATA)
                && attack.table.iter().all(|d| d.flags & INDIRECT == 0 || d.address == DATA);
            if tables_intact {
                for ((base, old), (_, new)) in memory.iter().zip(dump(&rig.driver.memory)) {
                    for (i, (old, new)) in old.iter().zip(&new).enumerate() {
                        let at = base + i as u64;
                        prop_assert!(old == new || allowed.iter().any(|range| range.contains(&at)), "wrote to {at:#x}");
                    }
                }
            }
            let after = content(file.path());
            prop_assert_eq!(after.len(), before.len());
        }
    }

    #[test]
    fn a_read_only_or_merely_reading_driver_changes_no_file(mut attack in attack(), read_only: bool) {
        if !read_only {
            for (kind, _) in &mut attack.headers {
                if matches!(*kind, VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) {
                    *kind = VIRTIO_BLK_T_IN;
                }
            }
            // Nor may it make headers of anything else.
            for descriptor in attack.table.iter_mut().chain(&mut attack.indirect) {
                descriptor.flags &= !INDIRECT;
                if descriptor.flags & WRITE == 0 {
                    descriptor.address = HEADERS + 16 * (descriptor.address % 8);
                    descriptor.length = 16;
                } else {
                    descriptor.address = DATA + descriptor.address % 0x1000;
                }
            }
        }
        for with in BOTH {
            let file = image(8);
            let before = content(file.path());
            let mut rig = Rig::with_driver(with, file.path(), read_only, Driver::new(16));
            lay_out(&mut rig, &attack);
            run_dry(&mut rig);
            prop_assert_eq!(content(file.path()), before);
        }
    }
}

/// Has a device with eight sectors take what `make` puts into its queue, and says whether it gave up.
fn breaks<T>(make: impl Fn(&mut Rig) -> T) -> bool {
    let broken = BOTH.map(|with| {
        let file = image(8);
        let mut rig = Rig::with_driver(with, file.path(), false, Driver::new(16));
        make(&mut rig);
        run_dry(&mut rig);
        // Whatever it was, the next driver finds a working device.
        let driver = Driver::new(16);
        rig.block.activate(driver.activation(0)).unwrap();
        let broken = rig.driver.counters.broken();
        rig.driver = driver;
        assert_eq!(rig.read(0, 512).0, 0);
        broken
    });
    assert_eq!(broken[0], broken[1]);
    broken[0]
}

#[test]
fn a_chain_that_cannot_be_answered_needs_a_reset() {
    // No status byte, no header, a short header.
    assert!(breaks(|rig| rig.driver.add(&[(HEADERS, 16, 0)])));
    assert!(breaks(|rig| rig.driver.add(&[(STATUSES, 1, WRITE)])));
    assert!(breaks(|rig| rig.driver.add(&[(HEADERS, 15, 0), (STATUSES, 1, WRITE)])));
    // A readable buffer after a writable one.
    assert!(breaks(|rig| rig.driver.add(&[(STATUSES, 1, WRITE), (HEADERS, 16, 0)])));
}

#[test]
fn a_chain_outside_of_memory_needs_a_reset() {
    for (at, length) in [(0x8_0000, 16), (0x7_fff8, 16), (u64::MAX, 16), (u64::MAX - 15, 16), (0, u32::MAX)] {
        assert!(breaks(|rig| rig.driver.add(&[(at, length, 0), (STATUSES, 1, WRITE)])));
    }
}

#[test]
fn a_loop_needs_a_reset() {
    let looped = Descriptor { address: HEADERS, length: 16, flags: NEXT, next: 0 };
    assert!(breaks(|rig| {
        rig.driver.describe_own(0, looped);
        rig.driver.make_available(0);
    }));
    // A loop of empty buffers in the largest of indirect tables.
    assert!(breaks(|rig| {
        rig.driver.describe(DATA, 0, Descriptor { length: 0, ..looped });
        rig.driver.add(&[(DATA, 16 * 0x7000, INDIRECT)]);
    }));
    assert!(breaks(|rig| {
        rig.driver.describe(DATA, 0, looped);
        rig.driver.add(&[(DATA, 16 * 0x7000, INDIRECT)]);
    }));
}

#[test]
fn a_chain_that_is_cut_off_needs_a_reset_though_it_has_all_parts() {
    assert!(breaks(|rig| {
        let (header, status) = rig.header(VIRTIO_BLK_T_IN, 0);
        let parts = [(header, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (status, 1, NEXT | WRITE, 99)];
        for (i, (address, length, flags, next)) in (0..).zip(parts) {
            rig.driver.describe_own(i, Descriptor { address, length, flags, next });
        }
        rig.driver.make_available(0);
    }));
}

#[test]
fn an_indirect_table_that_is_none_needs_a_reset() {
    // Inside another table, of no whole descriptors, empty, outside of memory.
    assert!(breaks(|rig| {
        let nested = Descriptor { address: DATA, length: 16, flags: INDIRECT, next: 0 };
        rig.driver.describe(DATA, 0, nested);
        rig.driver.add(&[(DATA, 16, INDIRECT)]);
    }));
    for (at, length) in [(DATA, 17), (DATA, 0), (0x8_0000, 16), (DATA, u32::MAX)] {
        assert!(breaks(|rig| rig.driver.add(&[(at, length, INDIRECT)])));
    }
}

#[test]
fn an_available_ring_that_lies_needs_a_reset() {
    assert!(breaks(|rig| rig.driver.make_available(16)));
    assert!(breaks(|rig| rig.driver.set_available_index(17)));
}

#[test]
fn a_turn_of_a_driver_that_never_stops_is_bounded() {
    let largest = |table: &[Descriptor], requests: u16, kind, rig: &mut Rig| {
        let (header, status) = rig.header(kind, 0);
        let place = 0x100_0000;
        let count = u16::try_from(table.len()).unwrap() + 2;
        let header = Descriptor { address: header, length: 16, flags: NEXT, next: 1 };
        let status = Descriptor { address: status, length: 1, flags: WRITE, next: 0 };
        for (i, descriptor) in (0..).zip([header].iter().chain(table).chain([&status])) {
            let flags = if i + 1 == count { descriptor.flags } else { descriptor.flags | NEXT };
            rig.driver.describe(place, i, Descriptor { flags, next: i + 1, ..*descriptor });
        }
        for _ in 0..requests {
            rig.driver.add(&[(place, u32::from(count) * 16, INDIRECT)]);
        }
        rig.run(requests);
        rig.settle();
        let largest = rig.driver.meter.largest_turn();
        assert!(rig.driver.meter.turns() > 1);
        largest
    };
    for with in BOTH {
        // Descriptors without a length.
        let file = image(8);
        let mut rig = Rig::new(with, file.path(), false);
        let empty = Descriptor { address: 0, length: 0, flags: 0, next: 0 };
        let most = largest(&[empty; 1000], 256, VIRTIO_BLK_T_FLUSH, &mut rig);
        assert!(most.descriptors <= BUDGET.descriptors + u64::from(MAX_CHAIN), "{most:?}");
        // The largest reads that there are.
        let large = tempfile::NamedTempFile::new_in(in_memory()).unwrap();
        large.as_file().set_len(64 << 20).unwrap();
        let mut rig = Rig::new(with, large.path(), false);
        let data = Descriptor { address: DATA, length: SIZE_MAX, flags: WRITE, next: 0 };
        let most = largest(&[data; SEG_MAX as usize], 16, VIRTIO_BLK_T_IN, &mut rig);
        assert!(most.bytes <= BUDGET.bytes + MAX_DATA, "{most:?}");
        assert!(most.host_calls <= BUDGET.host_calls, "{most:?}");
        // Small ones: no turn takes all of the queue, though it costs little.
        let file = image(8);
        let mut rig = Rig::new(with, file.path(), false);
        let most = largest(&[Descriptor { length: 512, ..data }], 256, VIRTIO_BLK_T_IN, &mut rig);
        assert!(most.host_calls <= BUDGET.host_calls, "{most:?}");
    }
}

#[test]
fn requests_of_gigabytes_are_refused() {
    let file = tempfile::NamedTempFile::new_in(in_memory()).unwrap();
    file.as_file().set_len(1 << 33).unwrap();
    for with in BOTH {
        let mut rig = Rig::new(with, file.path(), false);
        // As many bytes as the driver's memory has, again and again.
        let data = (0, 0x8_0000, WRITE);
        for count in [100, 253] {
            assert_eq!(rig.request(VIRTIO_BLK_T_IN, 0, &vec![data; count]), (1, 1));
        }
        for (kind, sectors) in [(VIRTIO_BLK_T_DISCARD, 1 << 20), (VIRTIO_BLK_T_WRITE_ZEROES, 1 << 15)] {
            for flags in [0, u32::from(kind == VIRTIO_BLK_T_WRITE_ZEROES)] {
                assert_eq!(rig.range(kind, 0, sectors, flags), (1, 1));
            }
        }
        assert_eq!(rig.driver.meter.largest_turn().bytes, 0);
    }
}

#[test]
fn a_driver_that_resets_without_end_costs_no_descriptors_and_no_threads() {
    let file = image(4);
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let mut rig = Rig::new(With::Uring, file.path(), false);
    let before = count("fd");
    for _ in 0..200 {
        rig.add(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, WRITE)]);
        rig.notify();
        rig.block.reset().unwrap();
        rig.driver = Driver::with_event_idx(256);
        rig.block.activate(rig.driver.activation(1 << VIRTIO_BLK_F_FLUSH)).unwrap();
    }
    // Other tests run at the same time; a descriptor for each reset would be seen all the same.
    assert!(count("fd") < before + 200);
    assert_eq!(rig.read(1, 512).0, 0);
}
