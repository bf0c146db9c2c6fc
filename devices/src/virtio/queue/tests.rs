use super::*;
use crate::virtio::testing::{Descriptor as Place, Driver, FREE, INDIRECT, NEXT, REGIONS, WRITE};

fn started(driver: &Driver) -> ActiveQueue {
    ActiveQueue::take(&mut driver.activation(0), 0).unwrap()
}

/// A turn that gives back all that is there.
fn serve(queue: &mut ActiveQueue) {
    let mut chain = Chain::default();
    queue.start_turn();
    while queue.pop(&mut chain) {
        queue.add_used(chain.head, 0);
    }
    queue.end_turn();
}

#[test]
fn an_indirect_table_may_follow_plain_descriptors_and_its_own_write_flag_means_nothing() {
    for flag in [0, WRITE] {
        let mut driver = Driver::new(16);
        let mut queue = started(&driver);
        let (table, data) = (FREE, FREE + 0x1000);
        let plain = |at: u64, flags, next| Place { address: data + at, length: 4, flags, next };
        driver.describe(table, 0, plain(8, NEXT, 1));
        driver.describe(table, 1, plain(16, WRITE, 0));
        driver.describe_own(3, plain(0, NEXT, 7));
        driver.describe_own(7, Place { address: table, length: 32, flags: INDIRECT | flag, next: 0 });
        driver.make_available(3);
        let mut chain = Chain::default();
        queue.start_turn();
        assert!(queue.pop(&mut chain));
        assert_eq!(chain.head, Head(3));
        let places = |buffers: &Buffers| buffers.ranges().collect::<Vec<_>>();
        assert_eq!(places(&chain.readable), [(GuestAddress(data), 4), (GuestAddress(data + 8), 4)]);
        assert_eq!(places(&chain.writable), [(GuestAddress(data + 16), 4)]);
        assert!(!driver.counters.broken());
    }
}

/// Serves a chain after each pair of the driver's flags and used event, and gives the interrupts up to each.
fn interrupts_after(mut driver: Driver, wishes: [(u16, u16); 4]) -> [usize; 4] {
    let mut queue = started(&driver);
    wishes.map(|(flags, used_event)| {
        driver.set_available_flags(flags);
        driver.set_used_event(used_event);
        driver.add(&[(FREE, 1, WRITE)]);
        serve(&mut queue);
        driver.counters.used()
    })
}

#[test]
fn without_event_indices_the_flag_alone_says_whether_to_interrupt() {
    assert_eq!(interrupts_after(Driver::new(16), [(0, 9), (1, 1), (1, 2), (0, 0)]), [1, 1, 1, 2]);
}

#[test]
fn with_event_indices_the_index_alone_says_whether_to_interrupt() {
    assert_eq!(interrupts_after(Driver::with_event_idx(16), [(1, 0), (0, 5), (1, 2), (0, 0)]), [1, 1, 2, 2]);
}

#[test]
fn the_flags_of_the_used_ring_are_0_with_event_indices_and_else_0_or_1() {
    for (mut driver, during) in [(Driver::new(16), 1), (Driver::with_event_idx(16), 0)] {
        let mut queue = started(&driver);
        let flags = |driver: &Driver| driver.read(driver.used_ring().start, 2);
        driver.add(&[(FREE, 1, WRITE)]);
        queue.start_turn();
        assert_eq!(flags(&driver), [during, 0], "nothing has to be said while it is at work");
        serve(&mut queue);
        assert_eq!(flags(&driver), [0, 0]);
    }
}

#[test]
fn a_notification_without_a_chain_does_nothing() {
    let driver = Driver::new(16);
    let mut queue = started(&driver);
    for _ in 0..3 {
        serve(&mut queue);
    }
    assert_eq!((driver.used_count(), driver.counters.used(), driver.counters.broken()), (0, 0, false));
}

#[test]
fn descriptors_and_readable_buffers_stay_as_they_are() {
    let mut driver = Driver::new(16);
    let mut queue = started(&driver);
    driver.write(FREE, &[7; 16]);
    driver.add(&[(FREE, 16, 0), (FREE + 0x100, 16, WRITE)]);
    // The table lies before the rings.
    let untouched = |driver: &Driver| (driver.read(0x1000, 256), driver.read(FREE, 16));
    let before = untouched(&driver);
    let mut chain = Chain::default();
    queue.start_turn();
    assert!(queue.pop(&mut chain));
    assert_eq!(chain.writable.put(queue.memory(), &[9; 99]), 16);
    queue.add_used(chain.head, 16);
    queue.end_turn();
    assert_eq!(untouched(&driver), before);
    assert_eq!(driver.take_used(), [(0, 16)]);
}

/// What a turn spends that takes all it can.
fn turn(queue: &mut ActiveQueue, driver: &Driver) -> (u16, Spent) {
    let before = driver.used_count();
    serve(queue);
    // It is counted when the next turn begins.
    let spent = queue.spent;
    (driver.used_count() - before, spent)
}

#[test]
fn descriptors_without_a_length_count_and_end_a_turn() {
    let mut driver = Driver::new(64);
    let mut queue = started(&driver);
    let empty = vec![(FREE, 0, 0); MAX_CHAIN.into()];
    for _ in 0..16 {
        driver.add_indirect(FREE, &empty);
    }
    let chain = u64::from(MAX_CHAIN);
    assert_eq!(turn(&mut queue, &driver), (4, Spent { descriptors: 4 * chain, ..Spent::default() }));
    assert!(driver.counters.take_again());
    for _ in 0..3 {
        assert_eq!(turn(&mut queue, &driver).0, 4);
    }
    assert!(driver.counters.take_again());
    assert_eq!(turn(&mut queue, &driver), (0, Spent::default()));
    assert!(!driver.counters.take_again() && !driver.counters.broken());
    assert_eq!(driver.meter.largest_turn().descriptors, Budget::TURN.descriptors);
    assert_eq!(driver.meter.turns(), 4);
}

#[test]
fn a_chain_is_as_long_as_the_queue_and_an_indirect_table_as_its_bound() {
    let buffers = |count: u16| vec![(FREE + 0x8000, 1, WRITE); count.into()];
    for (count, indirect, good) in [(16, false, true), (MAX_CHAIN, true, true), (MAX_CHAIN + 1, true, false)]
    {
        let mut driver = Driver::new(16);
        let mut queue = started(&driver);
        if indirect {
            driver.add_indirect(FREE, &buffers(count));
        } else {
            driver.add(&buffers(count));
        }
        let (answered, spent) = turn(&mut queue, &driver);
        assert_eq!((answered, driver.counters.broken()), (u16::from(good), !good), "{count}");
        assert_eq!(spent.descriptors, u64::from(count.min(MAX_CHAIN)));
    }
    // One that goes round.
    let mut driver = Driver::new(16);
    let mut queue = started(&driver);
    for index in 0..16 {
        let next = (index + 1) % 16;
        driver.describe_own(index, Place { address: FREE, length: 0, flags: NEXT, next });
    }
    driver.make_available(0);
    let (answered, spent) = turn(&mut queue, &driver);
    assert_eq!((answered, driver.counters.broken(), spent.descriptors), (0, true, 16));
}

#[test]
fn bytes_and_host_calls_end_a_turn_too() {
    for budget in [Budget { bytes: 100, ..Budget::TURN }, Budget { host_calls: 2, ..Budget::TURN }] {
        let mut driver = Driver::new(16);
        let mut queue = started(&driver).with_budget(budget);
        for _ in 0..8 {
            driver.add(&[(FREE, 1, WRITE)]);
        }
        let mut chain = Chain::default();
        for answered in [2, 4] {
            queue.start_turn();
            while queue.pop(&mut chain) {
                queue.spend(50, 1);
                queue.add_used(chain.head, 0);
            }
            assert!(!queue.may_go_on());
            assert_eq!(driver.used_count(), answered);
            assert!(driver.counters.take_again());
        }
        queue.start_turn();
        assert!(queue.may_go_on());
        assert_eq!(driver.meter.largest_turn(), Spent { descriptors: 2, bytes: 100, host_calls: 2 });
    }
}

#[test]
fn a_queue_that_takes_buffers_in_ram_takes_no_others() {
    for in_ram in [false, true] {
        let mut driver = Driver::new(16);
        let file = (GuestAddress(0x4000_0000), 0x1000);
        let ranges: Vec<_> =
            REGIONS.iter().map(|&(at, size)| (GuestAddress(at), size)).chain([file]).collect();
        driver.dma = Some(Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()));
        let queue = started(&driver);
        let mut queue = if in_ram { queue.in_ram() } else { queue };
        driver.add(&[(0x4000_0000, 4, WRITE)]);
        serve(&mut queue);
        assert_eq!((driver.used_count() == 0, driver.counters.broken()), (in_ram, in_ram));
    }
}

#[test]
fn a_queue_goes_on_where_it_was_given_back() {
    for mut driver in [Driver::new(16), Driver::with_event_idx(16)] {
        let mut queue = started(&driver);
        driver.set_used_event(1);
        for _ in 0..3 {
            driver.add(&[(FREE, 1, WRITE)]);
        }
        let mut chain = Chain::default();
        queue.start_turn();
        for _ in 0..2 {
            assert!(queue.pop(&mut chain));
            queue.add_used(chain.head, 0);
        }
        // Without a word to the driver, which is due.
        let queue = queue.into_queue();
        assert_eq!(driver.counters.used(), 1);
        let state = QueueState { next_available: 2, next_used: 2, signalled: 2, broken: false };
        assert_eq!(queue.state(), state);
        let mut activation = driver.activation(0);
        activation.queues[0].as_mut().unwrap().set_state(state);
        let mut queue = ActiveQueue::take(&mut activation, 0).unwrap();
        serve(&mut queue);
        assert_eq!(driver.take_used(), [(0, 0), (1, 0), (2, 0)]);
    }
}
