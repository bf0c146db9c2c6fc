//! A driver that depends on each interrupt, over a suspend.

use super::*;
use crate::virtio::testing::machine::{self, Machine, steps};

/// A driver that looks at its queues only when it is interrupted, and notifies the device only when that wants it.
struct Careful {
    host: Host,
    machine: Machine<Net>,
    /// Buffers that no chain has, for each queue.
    free: [Vec<u64>; 2],
    /// The buffers of chains, by their numbers.
    used: Vec<(usize, u64)>,
    taken: usize,
    to_guest: Vec<Vec<u8>>,
    at_guest: Vec<Vec<u8>>,
    to_host: Vec<Vec<u8>>,
    at_host: Vec<Vec<u8>>,
}

impl Careful {
    fn new(host: Host) -> Self {
        let machine =
            Machine::new(Net::new(settings(NetLimits::default()), vec![host.backend()]).unwrap(), FEATURES);
        let free = [RX_BUFFERS, TX_BUFFERS]
            .map(|first| (0..u64::from(SIZE)).map(|index| first + u64::from(BUFFER) * index).collect());
        let [to_guest, at_guest, to_host, at_host] = [(); 4].map(|()| Vec::new());
        Self { host, machine, free, used: Vec::new(), taken: 0, to_guest, at_guest, to_host, at_host }
    }

    fn frame(&self, number: u8) -> Vec<u8> {
        let index = u32::try_from(self.to_guest.len() + self.to_host.len()).unwrap();
        index.to_be_bytes().into_iter().cycle().take(14 + 10 * usize::from(number)).collect()
    }

    fn act(&mut self, number: u8) {
        match number % 4 {
            0 => {
                let frame = self.frame(number);
                if self.host.send(&frame) {
                    self.to_guest.push(frame);
                }
            }
            1 => {
                let Some(place) = self.free[1].pop() else { return };
                let frame = self.frame(number);
                self.machine.drivers[1].write(place, &[&[0; HEADER][..], &frame].concat());
                let length = u32::try_from(HEADER + frame.len()).unwrap();
                let submitted = self.machine.submit(1, &[(place, 5, 0), (place + 5, length - 5, 0)]);
                self.used.push((submitted.unwrap(), place));
                self.to_host.push(frame);
            }
            2 => self.give_buffer(),
            _ => self.host_works(16 * usize::from(number)),
        }
    }

    fn give_buffer(&mut self) {
        let Some(place) = self.free[0].pop() else { return };
        let submitted = self.machine.submit(0, &[(place, BUFFER, WRITE)]);
        self.used.push((submitted.unwrap(), place));
    }

    fn host_works(&mut self, count: usize) {
        self.host.write(count);
        self.at_host.extend(self.host.read(count));
    }

    fn take_answers(&mut self) {
        for answer in self.machine.answers.iter().skip(self.taken) {
            let (_, place) = *self.used.iter().find(|(number, _)| *number == answer.number).unwrap();
            self.free[answer.queue].push(place);
            if answer.queue == 0 {
                let bytes = self.machine.drivers[0].read(place, answer.written as usize);
                self.at_guest.push(bytes[HEADER..].to_vec());
            }
        }
        self.taken = self.machine.answers.len();
    }

    fn has_arrived(&self) -> bool {
        self.at_guest.len() == self.to_guest.len() && self.at_host.len() == self.to_host.len()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_packet_and_no_signal_is_lost_over_a_suspend(is_stream: bool, steps in steps()) {
        let mut careful = Careful::new(if is_stream { Host::bytes() } else { Host::datagrams() });
        for step in steps {
            match step {
                machine::Step::Submit(number) => careful.act(number),
                step => {
                    let backend = careful.host.backend();
                    let make = || Net::new(settings(NetLimits::default()), vec![backend]).unwrap();
                    careful.machine.step(step, make, |_, _| ());
                }
            }
            careful.take_answers();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while !careful.has_arrived() || careful.free[1].len() < usize::from(SIZE) {
            careful.give_buffer();
            careful.host_works(1 << 16);
            careful.machine.run();
            careful.take_answers();
            assert!(Instant::now() < deadline, "something is lost");
        }
        prop_assert!(careful.at_guest == careful.to_guest && careful.at_host == careful.to_host);
    }
}
