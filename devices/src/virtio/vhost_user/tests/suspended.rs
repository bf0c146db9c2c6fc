//! A device that is suspended and goes on with its back end.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::peer::{self, Answer};
use super::served::View;
use super::*;
use crate::lock;
use crate::virtio::vhost_user::device::VhostUserState;
use crate::virtio::{CallError, Queue, QueueState, StopError};

/// A back end whose queues the test serves.
struct Server {
    device: VhostUser,
    log: peer::Log,
    /// How many messages were seen when its queues were last started.
    seen: usize,
    views: Vec<View>,
    /// Where its queues are, for its answers.
    positions: Arc<Mutex<[u16; 2]>>,
}

impl Server {
    /// `gate` is called before a queue is stopped.
    fn new(mut gate: impl FnMut() + Send + 'static) -> Self {
        let positions = Arc::<Mutex<[u16; 2]>>::default();
        let theirs = positions.clone();
        let (socket, log, _) = peer::back_end(move |message| match message.request {
            peer::GET_VRING_BASE => {
                gate();
                let index = message.word(0);
                let base = u32::from(lock(&theirs)[index as usize]);
                Answer::Payload([index, base].iter().flat_map(|word| word.to_le_bytes()).collect())
            }
            _ => Answer::Right,
        });
        Self { device: device(socket, DEADLINE).unwrap(), log, seen: 0, views: Vec::new(), positions }
    }

    /// Looks at the queues that were started since the last time.
    fn look(&mut self) {
        let log = lock(&self.log);
        self.views = (0..2).map(|index| View::of(&log[self.seen..], index)).collect();
        self.seen = log.len();
    }

    fn serve(&mut self, queue: usize, count: usize) {
        self.views[queue].answer(count);
        lock(&self.positions)[queue] = virtio_queue::QueueT::next_avail(&self.views[queue].queue);
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        self.seen = lock(&self.log).len();
        let queues = self.device.suspend().unwrap();
        queues.iter().map(|queue| queue.as_ref().map(Queue::state)).collect()
    }

    fn resume(&mut self, drivers: &[Driver], positions: &[Option<QueueState>]) {
        let state = self.device.state();
        self.device.resume(Some(resumed(drivers, positions)), state).unwrap();
    }
}

fn resumed(drivers: &[Driver], positions: &[Option<QueueState>]) -> crate::virtio::Activation {
    let mut activation = Driver::activation_of(drivers, 1 << 32 | 1 << 3);
    for (queue, position) in activation.queues.iter_mut().zip(positions) {
        queue.as_mut().unwrap().set_state(position.unwrap());
    }
    activation
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Request(usize),
    Serve(usize, usize),
    Suspend,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_usize).prop_map(Step::Request),
        2 => (0..2_usize, 1..5_usize).prop_map(|(queue, count)| Step::Serve(queue, count)),
        1 => Just(Step::Suspend),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_request_is_answered_once_over_suspends(steps in prop::collection::vec(step(), 1..60)) {
        let mut server = Server::new(|| ());
        let mut drivers = drivers();
        activate(&mut server.device, &drivers);
        server.look();
        let mut open = [const { Vec::new() }; 2];
        let take = |drivers: &mut Vec<Driver>, open: &mut [Vec<u16>; 2]| {
            for (driver, open) in drivers.iter_mut().zip(open) {
                for (head, _) in driver.take_used() {
                    let place = open.iter().position(|other| u32::from(*other) == head);
                    open.remove(place.expect("a chain came back that was not open"));
                }
            }
        };
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Request(queue) if open[queue].len() < 8 => {
                    open[queue].push(request(&mut drivers[queue], number));
                }
                Step::Request(_) => {}
                Step::Serve(queue, count) => server.serve(queue, count),
                Step::Suspend => {
                    let positions = server.suspend();
                    server.resume(&drivers, &positions);
                    server.look();
                }
            }
            take(&mut drivers, &mut open);
        }
        for queue in 0..2 {
            server.serve(queue, usize::MAX);
        }
        take(&mut drivers, &mut open);
        prop_assert!(open.iter().all(Vec::is_empty), "{open:?}");
        let mut lost = 0;
        server.device.metrics().visit(&mut |name, count| lost += if name == "lost_back_ends" { count } else { 0 });
        prop_assert_eq!(lost, 0);
    }
}

/// A gate that opens once for each message, and a channel that says when a call waits at it.
fn gate() -> (Sender<()>, Receiver<()>, impl FnMut() + Send + 'static) {
    let ((open, opened), (arrived, arrival)) = (channel(), channel());
    (open, arrival, move || {
        let _ = arrived.send(());
        let _ = opened.recv();
    })
}

#[test]
fn a_back_end_that_is_late_to_stop_serves_the_device_on() {
    let (open, arrival, wait) = gate();
    let mut server = Server::new(wait);
    let mut drivers = drivers();
    activate(&mut server.device, &drivers);
    server.look();
    request(&mut drivers[1], 1);
    server.serve(1, 1);
    server.device.set_deadline(Duration::from_millis(20));
    assert!(matches!(server.device.suspend(), Err(StopError::Thread(CallError::NotAnswered(_)))));
    server.device.set_deadline(DEADLINE);
    arrival.recv().unwrap();
    for _ in 0..2 {
        open.send(()).unwrap();
    }
    // A message behind the queues that it was given again: they have been started when it is answered.
    for _ in 0..2 {
        open.send(()).unwrap();
    }
    let positions = server.suspend();
    assert_eq!(positions.iter().map(|state| state.unwrap().next_available).collect::<Vec<_>>(), [0, 1]);
    let started = lock(&server.log);
    let bases = started.iter().filter(|message| message.request == peer::SET_VRING_BASE);
    assert_eq!(bases.map(|message| message.word(1)).collect::<Vec<_>>(), [0, 0, 0, 1]);
    drop(started);
    server.resume(&drivers, &positions);
    server.look();
    let head = request(&mut drivers[1], 2);
    server.serve(1, 1);
    assert_eq!(drivers[1].take_used().last(), Some(&(head.into(), 16)));
}

#[test]
fn a_back_end_that_is_lost_while_the_device_is_suspended_is_noticed_when_it_goes_on() {
    let mut server = Server::new(|| ());
    let mut drivers = drivers();
    activate(&mut server.device, &drivers);
    server.look();
    request(&mut drivers[1], 1);
    server.serve(1, 1);
    drivers[1].take_used();
    let positions = server.suspend();
    let Server { mut device, .. } = server;
    device.hang_up();
    device.woken(0);
    let head = request(&mut drivers[1], 2);
    assert!(drivers[1].take_used().is_empty(), "it refuses nothing before it goes on");
    let state = device.state();
    device.resume(Some(resumed(&drivers, &positions)), state).unwrap();
    assert_eq!(drivers[1].take_used(), [(head.into(), 16)]);
    assert_eq!(answer(&drivers[1], 2), refusal(2));
    // A device without a back end is suspended, too.
    let positions: Vec<_> =
        device.suspend().unwrap().iter().map(|queue| queue.as_ref().map(Queue::state)).collect();
    let head = request(&mut drivers[1], 3);
    drivers[1].notifier.write(1).unwrap();
    device.woken(0);
    assert!(drivers[1].take_used().is_empty());
    let state = device.state();
    device.resume(Some(resumed(&drivers, &positions)), state).unwrap();
    assert_eq!(drivers[1].take_used(), [(head.into(), 16)]);
}

#[test]
fn a_share_that_is_used_is_not_in_a_snapshot() {
    let mut server = Server::new(|| ());
    // Nothing of an unused share is in its back end.
    assert!(server.device.suspend().unwrap().is_empty());
    let bytes = serde_json::to_vec(&server.device.state()).unwrap();
    let unused: VhostUserState = serde_json::from_slice(&bytes).unwrap();
    server.device.resume(None, unused.clone()).unwrap();

    let drivers = drivers();
    activate(&mut server.device, &drivers);
    let positions = server.suspend();
    let error = serde_json::to_vec(&server.device.state()).unwrap_err().to_string();
    assert!(error.contains("its state is in virtiofsd: unmount it"), "{error}");
    let mut other = Server::new(|| ());
    let state = VhostUserState { has_driver: true, ..unused.clone() };
    assert!(other.device.resume(Some(resumed(&drivers, &positions)), state).is_err());
    let of_another = VhostUserState { config: b"other".to_vec(), ..unused };
    assert!(other.device.resume(None, of_another).is_err());
}
