use super::super::testing::{Descriptor as Place, Driver, FREE, INDIRECT, NEXT, WRITE};
use super::*;

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
        assert_eq!(chain.head, 3);
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
