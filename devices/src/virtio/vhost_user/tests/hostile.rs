//! With back ends that break the protocol, say nothing, or go away.

use std::time::Instant;

use proptest::prelude::*;

use super::peer::{self, Answer};
use super::*;

/// For answers that never come, whatever else this machine does.
const SHORT: Duration = Duration::from_millis(30);
/// What is asked when the device is made, and what when it is started.
const BEGINNING: [u32; 3] = [peer::GET_FEATURES, peer::GET_PROTOCOL_FEATURES, peer::GET_QUEUE_NUM];
const RUNNING: [u32; 8] = [
    peer::SET_FEATURES,
    peer::SET_MEM_TABLE,
    peer::SET_VRING_NUM,
    peer::SET_VRING_ADDR,
    peer::SET_VRING_BASE,
    peer::SET_VRING_CALL,
    peer::SET_VRING_KICK,
    peer::SET_VRING_ENABLE,
];

/// A back end that answers `bad` to `request`.
fn socket_with(request: u32, bad: Answer) -> UnixStream {
    peer::back_end(move |message| if message.request == request { bad.clone() } else { Answer::Right }).0
}

fn wrong_answers(request: u32) -> Vec<Answer> {
    let right = 0_u64.to_le_bytes();
    vec![
        Answer::Close,
        Answer::Payload(vec![0; 7]),
        Answer::Payload(Vec::new()),
        Answer::Bytes(peer::reply(request + 1, &right)),
        // Neither an answer, nor the version that there is.
        Answer::Bytes(peer::message(request, 1, 8, &right)),
        Answer::Bytes(peer::message(request, 4, 8, &right)),
        Answer::Bytes(peer::message(request, 5, u32::MAX, &right)),
        Answer::Bytes(vec![0xff; 64]),
    ]
}

fn counter(device: &VhostUser, name: &str) -> u64 {
    let mut found = None;
    device.metrics().visit(&mut |counter, count| found = found.or((counter == name).then_some(count)));
    found.unwrap()
}

/// Checks that the back end is lost, and that requests are refused.
fn expect_refusals(device: &mut VhostUser, drivers: &mut [Driver]) {
    assert_eq!(counter(device, "lost_back_ends"), 1);
    for (number, driver) in (1..).zip(drivers) {
        let head = request(driver, number);
        driver.notifier.write(1).unwrap();
        device.woken(0);
        assert_eq!(driver.take_used(), [(head.into(), 16)]);
        assert_eq!(answer(driver, number), refusal(number));
    }
}

#[test]
fn what_is_wrong_from_the_beginning_is_an_error() {
    let lacking = |bit: u32| Answer::Payload((peer::FEATURES & !(1 << bit)).to_le_bytes().to_vec());
    let queues = |count: u64| Answer::Payload(count.to_le_bytes().to_vec());
    let mut rows: Vec<_> = [28, 29, 30, 32].map(|bit| (peer::GET_FEATURES, lacking(bit))).to_vec();
    rows.extend([0, 1, 1 << 20, u64::MAX].map(|count| (peer::GET_QUEUE_NUM, queues(count))));
    for request in BEGINNING {
        rows.extend(wrong_answers(request).into_iter().map(|answer| (request, answer)));
    }
    for (request, answer) in rows {
        let is_incomplete = matches!(&answer, Answer::Payload(bytes) if bytes.len() < 8);
        let patience = if is_incomplete { SHORT } else { DEADLINE };
        let made = device(socket_with(request, answer.clone()), patience);
        assert!(made.is_err(), "{request} {answer:?}");
    }
}

#[test]
fn a_back_end_that_goes_wrong_when_it_is_started_leaves_a_device_that_refuses() {
    for request in RUNNING {
        let refused = Answer::Payload(1_u64.to_le_bytes().to_vec());
        for answer in wrong_answers(request).into_iter().chain([refused]) {
            let is_incomplete = matches!(&answer, Answer::Payload(bytes) if bytes.len() < 8);
            let mut device = device(socket_with(request, answer), DEADLINE).unwrap();
            if is_incomplete {
                device.set_deadline(SHORT);
            }
            let mut drivers = drivers();
            activate(&mut device, &drivers);
            expect_refusals(&mut device, &mut drivers);
        }
    }
}

#[test]
fn a_back_end_that_says_nothing_is_not_waited_for_long() {
    let silence = [Answer::Silence, Answer::Bytes(vec![0])];
    for answer in silence {
        for request in BEGINNING {
            let error = device(socket_with(request, answer.clone()), SHORT).err();
            assert!(matches!(error, Some(VhostUserError::TimedOut { .. })), "{request}: {error:?}");
        }
        for request in RUNNING {
            let mut device = device(socket_with(request, answer.clone()), DEADLINE).unwrap();
            device.set_deadline(SHORT);
            let mut drivers = drivers();
            let start = Instant::now();
            activate(&mut device, &drivers);
            assert!(start.elapsed() >= SHORT);
            expect_refusals(&mut device, &mut drivers);
        }
    }
}

#[test]
fn a_back_end_that_does_not_stop_is_left() {
    for answer in [Answer::Silence, Answer::Close, Answer::Payload(vec![0; 3])] {
        let mut device = device(socket_with(peer::GET_VRING_BASE, answer), DEADLINE).unwrap();
        activate(&mut device, &drivers());
        device.set_deadline(SHORT);
        device.reset().unwrap();
        assert_eq!(counter(&device, "lost_back_ends"), 1);
        // A driver that starts the device again has its requests refused.
        let mut drivers = drivers();
        activate(&mut device, &drivers);
        expect_refusals(&mut device, &mut drivers);
        device.reset().unwrap();
        // A driver that is not there is not answered, and its notifications don't keep the event loop awake.
        request(&mut drivers[0], 9);
        drivers[0].notifier.write(1).unwrap();
        device.woken(0);
        assert_eq!(drivers[0].used_count(), 0);
    }
}

#[test]
fn memory_that_cannot_be_shared_is_an_error_and_not_a_crash() {
    let (socket, _, _) = peer::back_end(|_| Answer::Right);
    let mut device = device(socket, DEADLINE).unwrap();
    let mut drivers = Driver::several(&QUEUES);
    activate(&mut device, &drivers);
    expect_refusals(&mut device, &mut drivers);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_answer_breaks_the_front_end(
        answers in prop::collection::vec((0..40_u8, prop::collection::vec(any::<u8>(), 0..40)), 1..4),
    ) {
        let mut count = 0;
        let (socket, _, _) = peer::back_end(move |message| {
            count += 1;
            let bad = answers.iter().find(|(at, _)| *at == count);
            match bad {
                Some((at, bytes)) if at % 2 == 0 => Answer::Bytes(peer::reply(message.request, bytes)),
                Some((_, bytes)) => Answer::Bytes(bytes.clone()),
                None => Answer::Right,
            }
        });
        if let Ok(mut device) = device(socket, Duration::from_millis(20)) {
            let drivers = drivers();
            activate(&mut device, &drivers);
            device.reset().unwrap();
            activate(&mut device, &drivers);
            device.reset().unwrap();
        }
    }
}
