//! A stream of a container over connections that are lost: whatever is sent and cut where, what comes out is what went
//! in, and what is kept for the receiver is bounded. And both ends with what the other one must not say.

#![no_main]

use agent_protocol::{MAX_PIECE, Receiver, Sender, StreamError};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// The most bytes that a sender keeps.
const KEPT: usize = 512 << 10;
/// The longest length and acknowledgement that a connection adds to a piece.
const OVERHEAD: usize = 8;
const MAX_STEPS: usize = 200;

/// What happens next. Bytes are counted in units of seven, so that two bytes of input reach every bound.
#[derive(Arbitrary, Debug)]
enum Step {
    /// The sender gets so many bytes.
    Fill(u16),
    /// So much of what it wants to send is sent.
    Send(u16),
    /// So much of that comes.
    Receive(u16),
    /// So many bytes of acknowledgements come.
    Acknowledge(u8),
    /// The connection is lost, with what is on its way.
    Cut,
    /// No more bytes come.
    End,
    /// What no receiver says.
    Say(u64),
    /// What no sender sends.
    Noise(Vec<u8>),
}

/// Both ends, and what is on its way between them.
#[derive(Default)]
struct Ends {
    sender: Sender,
    receiver: Receiver,
    there: Vec<u8>,
    back: Vec<u8>,
    filled: u64,
    received: u64,
    has_ended: bool,
}

/// The byte of a stream at a place.
fn byte(place: u64) -> u8 {
    u8::try_from(place % 251).unwrap_or_default()
}

fn count(units: u16) -> usize {
    usize::from(units) * 7
}

impl Ends {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Fill(units) => self.fill(count(*units)),
            Step::Send(units) => self.send(count(*units)),
            Step::Receive(units) => self.receive(count(*units)),
            Step::Acknowledge(bytes) => self.acknowledge((*bytes).into()),
            Step::Cut => self.cut(),
            Step::End => {
                self.sender.end();
                self.has_ended = true;
            }
            Step::Say(position) => self.say(*position),
            Step::Noise(bytes) => self.noise(bytes),
        }
    }

    fn fill(&mut self, count: usize) {
        if !self.sender.has_room() {
            return;
        }
        let space = self.sender.space();
        let count = count.min(space.len());
        for (place, target) in (self.filled..).zip(&mut space[..count]) {
            *target = byte(place);
        }
        self.sender.fill(count);
        self.filled += count as u64;
        assert!(self.filled - self.received <= KEPT as u64);
    }

    fn send(&mut self, count: usize) {
        let bytes: Vec<u8> = self.sender.to_send().iter().flat_map(|slice| slice.iter().copied()).collect();
        assert!(bytes.len() <= MAX_PIECE + OVERHEAD);
        assert_eq!(bytes.is_empty(), !self.sender.wants_to_send());
        let count = count.min(bytes.len());
        self.there.extend_from_slice(&bytes[..count]);
        self.sender.sent(count);
    }

    fn receive(&mut self, count: usize) {
        let bytes: Vec<u8> = self.there.drain(..count.min(self.there.len())).collect();
        let received = &mut self.received;
        let take = |bytes: &[u8]| {
            for found in bytes {
                assert_eq!(*found, byte(*received));
                *received += 1;
            }
            Ok::<_, StreamError>(())
        };
        self.receiver.receive(&bytes, take).expect("the sender sends what can be");
        assert_eq!(self.receiver.position(), self.received);
        assert!(self.received <= self.filled);
        assert!(!self.receiver.has_ended() || self.has_ended && self.received == self.filled);
        self.back.extend(self.receiver.acknowledgement().into_iter().flatten());
    }

    fn acknowledge(&mut self, count: usize) {
        let bytes: Vec<u8> = self.back.drain(..count.min(self.back.len())).collect();
        self.sender.acknowledge(&bytes).expect("the receiver says what it has");
    }

    fn cut(&mut self) {
        self.there.clear();
        self.back.clear();
        self.receiver.resume();
        self.sender.resume(self.receiver.position()).expect("what the receiver misses is kept");
    }

    /// A position that was never sent, on a new connection: it changes nothing.
    fn say(&mut self, position: u64) {
        self.cut();
        let position = if position % 3 == 0 { position } else { self.filled + position % 5 };
        if position > self.filled {
            assert!(self.sender.acknowledge(&position.to_le_bytes()).is_err());
            assert!(self.sender.resume(position).is_err());
        }
    }

    /// Anything, to ends of another stream.
    fn noise(&mut self, bytes: &[u8]) {
        let mut sender = Sender::default();
        sender.fill(5);
        let _ = sender.to_send();
        sender.sent(7);
        let _ = sender.acknowledge(bytes);
        assert!(sender.to_send().iter().map(|slice| slice.len()).sum::<usize>() <= 4 + 5);
        let (mut receiver, mut count) = (Receiver::default(), 0);
        let _ = receiver.receive(bytes, |bytes| {
            count += bytes.len();
            Ok::<_, StreamError>(())
        });
        assert!(receiver.position() == count as u64 && count <= bytes.len());
    }

    /// Lets everything come through.
    fn finish(&mut self) {
        self.take(&Step::End);
        for _ in 0..64 {
            self.send(usize::MAX);
            self.receive(usize::MAX);
            self.acknowledge(usize::MAX);
        }
        assert!(self.receiver.has_ended() && self.sender.is_finished());
        assert_eq!(self.received, self.filled);
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut ends = Ends::default();
    for step in steps.iter().take(MAX_STEPS) {
        ends.take(step);
    }
    ends.finish();
});
