//! Queues whose back end has gone while it had requests.

use std::collections::BTreeSet;

use proptest::prelude::*;
use virtio_queue::{QueueOwnedT, QueueT};

use super::peer::{self, Answer};
use super::*;
use crate::virtio::Queue;
use crate::virtio::vhost_user::lost::LostQueues;

/// A back end that takes and gives back the chains that the test names, in any order.
struct Hand {
    queue: Queue,
    memory: Arc<GuestMemoryMmap>,
    taken: Vec<u16>,
}

impl Hand {
    fn of(driver: &Driver) -> Self {
        let mut activation = driver.activation(0);
        Self { queue: activation.queues[0].take().unwrap(), memory: driver.memory.clone(), taken: Vec::new() }
    }

    fn take_all(&mut self) {
        let heads = self.queue.iter(&*self.memory).unwrap().map(|chain| chain.head_index());
        self.taken.extend(heads);
    }

    fn give_back(&mut self, index: usize) -> u16 {
        let head = self.taken.remove(index);
        self.queue.add_used(&*self.memory, head, 0).unwrap();
        head
    }
}

fn adopt(driver: &Driver) -> u64 {
    LostQueues::take_over(driver.activation(0), model().refuse).1
}

#[test]
fn what_a_back_end_had_taken_when_it_went_is_refused_and_what_comes_later_too() {
    let (socket, _, _) = peer::back_end(|_| Answer::Right);
    let closer = socket.try_clone().unwrap();
    let mut device = device(socket, DEADLINE).unwrap();
    let mut drivers = drivers();
    activate(&mut device, &drivers);
    let heads: Vec<_> = (0..4).map(|number| request(&mut drivers[1], number)).collect();
    let mut hand = Hand::of(&drivers[1]);
    hand.take_all();
    let untaken = request(&mut drivers[1], 4);
    let answered = hand.give_back(2);
    assert_eq!(answered, heads[2]);

    closer.shutdown(std::net::Shutdown::Both).unwrap();
    crate::virtio::testing::wait_readable(device.wake_fds()[0]);
    device.woken(0);
    let used: Vec<_> =
        drivers[1].take_used().into_iter().map(|(head, _)| u16::try_from(head).unwrap()).collect();
    assert_eq!(used, [heads[2], heads[0], heads[1], heads[3], untaken]);
    for number in [0, 1, 3, 4] {
        assert_eq!(answer(&drivers[1], number), refusal(number));
    }
    assert_eq!(answer(&drivers[1], 2), [0; 16]);
    assert!(drivers[1].counters.used() > 0 && !drivers[1].counters.broken());

    for number in 5..30 {
        let head = request(&mut drivers[1], number);
        drivers[1].notifier.write(1).unwrap();
        device.woken(0);
        assert_eq!(drivers[1].take_used(), [(head.into(), 16)]);
        assert_eq!(answer(&drivers[1], number), refusal(number));
    }
    // Nothing is left that would keep the event loop awake.
    device.woken(0);
}

#[test]
fn a_request_without_room_for_an_answer_goes_back_without_one() {
    let mut driver = Driver::new(16);
    let forget = driver.add(&[(FREE, 40, 0)]);
    let short = driver.add(&[(FREE, 15, 0), (FREE + 0x80, 64, WRITE)]);
    let narrow = driver.add(&[(FREE, 40, 0), (FREE + 0x80, 15, WRITE)]);
    assert_eq!(adopt(&driver), 3);
    assert_eq!(driver.take_used(), [forget, short, narrow].map(|head| (head.into(), 0)));
    assert_eq!(driver.read(FREE + 0x80, 64), [0; 64]);
}

#[test]
fn rings_that_cannot_be_are_said_to_need_a_reset() {
    let mut driver = Driver::new(16);
    request(&mut driver, 1);
    driver.set_available_index(500);
    adopt(&driver);
    assert!(driver.counters.broken());
}

proptest! {
    /// Whatever the order in which chains came back, each that did not is refused once, as long as the rings tell.
    #[test]
    fn each_request_is_answered_once(steps in prop::collection::vec((0..3_u8, any::<prop::sample::Index>()), 0..60)) {
        let mut driver = Driver::new(16);
        let mut hand = Hand::of(&driver);
        let mut open = BTreeSet::new();
        let mut made = 0;
        for (step, index) in steps {
            // As many descriptors as there are; none is used twice at a time.
            let head = made % 8 * 2;
            if step == 0 && made < 16 && !open.contains(&head) {
                prop_assert_eq!(request(&mut driver, made), head);
                open.insert(head);
                made += 1;
            } else if step == 1 {
                hand.take_all();
            } else if !hand.taken.is_empty() {
                open.remove(&hand.give_back(index.index(hand.taken.len())));
            }
        }
        driver.take_used();
        prop_assert_eq!(adopt(&driver), open.len() as u64);
        let refused: BTreeSet<_> = driver.take_used().into_iter().map(|(head, _)| u16::try_from(head).unwrap()).collect();
        prop_assert_eq!(refused, open);
        prop_assert!(!driver.counters.broken());
    }

    /// A back end that answers in order is followed forever.
    #[test]
    fn a_back_end_that_answers_in_order_is_followed_past_the_end_of_the_rings(turns in 0..80_u16, left in 0..8_u16) {
        let mut driver = Driver::new(16);
        let mut hand = Hand::of(&driver);
        let mut number = 0;
        let mut make = |driver: &mut Driver| {
            number += 1;
            request(driver, number)
        };
        for _ in 0..turns {
            make(&mut driver);
            hand.take_all();
            hand.give_back(0);
            driver.take_used();
        }
        let open: Vec<_> = (0..left).map(|_| make(&mut driver)).collect();
        hand.take_all();
        prop_assert_eq!(adopt(&driver), u64::from(left));
        let refused: Vec<_> = driver.take_used().into_iter().map(|(head, _)| u16::try_from(head).unwrap()).collect();
        prop_assert_eq!(refused, open);
    }

    #[test]
    fn whatever_is_in_the_rings_nothing_breaks(bytes in prop::collection::vec(any::<u8>(), 0x100), size in 0..4_u32) {
        let mut driver = Driver::new(1 << size);
        driver.describe_own(0, crate::virtio::testing::Descriptor { address: FREE, length: 40, flags: 0, next: 0 });
        driver.set_available_index(u16::from_le_bytes([bytes[0], bytes[1]]));
        let used = driver.used_ring();
        let length = usize::try_from(used.end - used.start).unwrap();
        driver.write(used.start, &bytes[..length]);
        adopt(&driver);
    }
}
