//! A console that is suspended in the middle of traffic, and one that is resumed from its state.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::{SIZE, Sink, heard};
use crate::virtio::VirtioDevice;
use crate::virtio::console::{Console, ConsoleState, Listener, WindowSize};
use crate::virtio::testing::machine::{Machine, steps};
use crate::virtio::testing::{Driver, FREE, WRITE};

/// Both directions of a console, as its driver and its user see them.
#[derive(Default)]
struct Traffic {
    output: Vec<u8>,
    typed: Vec<u8>,
    received: Vec<u8>,
    /// The numbers of the driver's receive buffers, each at its place.
    buffers: [Option<usize>; 8],
    count: u8,
    chains: u64,
}

impl Traffic {
    fn bytes(&mut self, length: u8) -> Vec<u8> {
        let first = self.count;
        self.count = first.wrapping_add(length);
        (0..length).map(|offset| first.wrapping_add(offset)).collect()
    }

    fn place(index: usize) -> u64 {
        FREE + 0x40 * index as u64
    }

    fn submit(&mut self, machine: &mut Machine<Console>, number: u8) {
        if number.is_multiple_of(2) {
            let bytes = self.bytes(number / 2);
            // What it does not take stays with the user, who types something else then.
            let taken = machine.device().input(&bytes);
            self.typed.extend(&bytes[..taken]);
            return;
        }
        let bytes = self.bytes(number);
        // At most 32 chains of two buffers wait, and their bytes stay as they are meanwhile.
        let (at, length) = (FREE + 0x1000 + 0x100 * (self.chains % 64), u32::from(number));
        machine.drivers[1].write(at, &bytes);
        let (first, second) = (length / 3, length - length / 3);
        if machine.submit(1, &[(at, first, 0), (at + u64::from(first), second, 0)]).is_some() {
            self.output.extend(bytes);
            self.chains += 1;
        }
    }

    /// The driver takes what it received, and offers its buffers again.
    fn receive(&mut self, machine: &mut Machine<Console>) {
        for answer in std::mem::take(&mut machine.answers) {
            if answer.queue == 0 {
                let index = self.buffers.iter().position(|buffer| *buffer == Some(answer.number)).unwrap();
                self.received.extend(machine.drivers[0].read(Self::place(index), answer.written as usize));
                self.buffers[index] = None;
            }
        }
        for index in 0..self.buffers.len() {
            if self.buffers[index].is_none() {
                self.buffers[index] = machine.submit(0, &[(Self::place(index), 7, WRITE)]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nothing_is_lost_or_doubled_over_a_suspend(
        steps in steps(),
        rooms in prop::collection::vec(1..400_usize, 40),
    ) {
        let sink = Sink::new(0);
        let make = || Console::new(Box::new(sink.clone()), SIZE).unwrap();
        let mut machine = Machine::new(make(), 0b101);
        let mut traffic = Traffic::default();
        let mut shown = Vec::new();
        for (step, room) in steps.into_iter().zip(rooms) {
            sink.make_room(room);
            machine.step(step, make, |machine, number| traffic.submit(machine, number));
            traffic.receive(&mut machine);
            shown.extend(sink.shown());
        }
        sink.make_room(usize::MAX);
        machine.wait_until(|machine| {
            traffic.receive(machine);
            machine.outstanding(1) == 0 && traffic.received.len() == traffic.typed.len()
        });
        shown.extend(sink.shown());
        prop_assert!(traffic.received == traffic.typed);
        prop_assert!(shown == traffic.output);
    }
}

#[test]
fn a_suspended_console_takes_no_input_and_says_of_a_new_window_when_it_is_resumed() {
    let sink = Sink::new(usize::MAX);
    let (mut console, _receive, _transmit) = heard(&sink);
    let drivers = Driver::several(&[16, 16]);
    let queues = console.suspend().unwrap();
    assert_eq!(queues.len(), 2);
    assert_eq!((console.input_room(), console.input(b"held")), (0, 0));
    let state = console.state();
    assert_eq!(state.listener, Listener::There);
    console.resize(WindowSize { columns: 80, rows: 25 });
    assert_eq!(console.state(), state, "the driver knows of the old one");
    for (size, signals) in [(SIZE, 0), (WindowSize { columns: 80, rows: 25 }, 1)] {
        let before = drivers[0].counters.config_changed.load(Ordering::SeqCst);
        let mut other = Console::new(Box::new(sink.clone()), size).unwrap();
        other.resume(Some(Driver::activation_of(&drivers, 0)), state.clone()).unwrap();
        assert_eq!(drivers[0].counters.config_changed.load(Ordering::SeqCst) - before, signals);
        assert!(other.input_room() > 0);
        other.drained().unwrap().read().expect("there is room for what was held");
    }
}

#[test]
fn a_state_that_no_console_can_be_in_is_refused() {
    let asked = r#"{"Asked":{"questions":40000,"before":0,"answers":false}}"#;
    let state = |typed: usize, listener: &str| {
        let size = r#"{"columns":1,"rows":1}"#;
        let typed = vec![0_u8; typed];
        let text = format!(r#"{{"typed":{typed:?},"sending":null,"listener":{listener},"size":{size}}}"#);
        serde_json::from_str::<ConsoleState>(&text).unwrap()
    };
    for (state, is_valid) in [
        (state(0, r#""There""#), true),
        (state(256, r#""There""#), true),
        (state(257, r#""There""#), false),
        (state(0, asked), false),
    ] {
        let mut console = Console::new(Box::new(Sink::new(0)), SIZE).unwrap();
        assert_eq!(console.resume(None, state).is_ok(), is_valid);
    }
}
