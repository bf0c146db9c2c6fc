//! Streams that survive the loss of their connections.
//!
//! The sender keeps what the receiver has not acknowledged. On a new connection the receiver says how many bytes of the
//! stream it has, and the sender goes on from there: no byte is lost, and none comes twice.
//!
//! Bytes go in pieces, each with its length in front, four bytes, little endian; the length zero is the end of the
//! stream, so that it is told from that of a connection. In the other direction come acknowledgements: how many bytes
//! of the stream the receiver has, eight bytes, little endian.

use std::io::IoSlice;

use thiserror::Error;

use crate::ring::Ring;

/// The most bytes that are kept for a receiver. It acknowledges more often than that.
const KEPT: usize = 512 << 10;
/// The most bytes of a piece.
pub const MAX_PIECE: usize = 256 << 10;
/// After so many bytes the receiver acknowledges them.
const ACKNOWLEDGED: u64 = 128 << 10;

const LENGTH: usize = 4;

/// What the other side must not send.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StreamError {
    /// A position that was never sent, or that was acknowledged before.
    #[error("the stream's position {position} is not between {from} and {to}")]
    Position {
        /// What it says.
        position: u64,
        /// The first that can be.
        from: u64,
        /// The last that can be.
        to: u64,
    },
    /// A piece that is longer than [`MAX_PIECE`].
    #[error("a piece of a stream has {0} bytes: it can have up to {MAX_PIECE}")]
    TooLong(usize),
    /// Something behind the end.
    #[error("there are bytes behind the end of a stream")]
    AfterEnd,
}

/// A piece on its way.
#[derive(Debug, Default)]
struct Piece {
    length: [u8; LENGTH],
    /// How much of the length was sent.
    length_sent: usize,
    /// How much of the piece was not sent.
    left: usize,
    is_end: bool,
}

/// The side of a stream that has its bytes first.
#[derive(Debug)]
pub struct Sender {
    kept: Ring,
    /// The position of the first byte that is kept: how many the receiver has acknowledged.
    acknowledged: u64,
    /// How many of the kept bytes were sent.
    sent: usize,
    piece: Option<Piece>,
    /// No more bytes come.
    has_ended: bool,
    /// The receiver was told so on this connection.
    end_sent: bool,
    /// The first bytes of an acknowledgement.
    partial: Vec<u8>,
}

impl Default for Sender {
    fn default() -> Self {
        Self::with_capacity(KEPT)
    }
}

impl Sender {
    fn with_capacity(kept: usize) -> Self {
        Self {
            kept: Ring::new(kept),
            acknowledged: 0,
            sent: 0,
            piece: None,
            has_ended: false,
            end_sent: false,
            partial: Vec::new(),
        }
    }

    /// Whether it takes more bytes now.
    pub fn has_room(&self) -> bool {
        !self.has_ended && self.kept.room() > 0
    }

    /// Where the next bytes are to be put.
    pub fn space(&mut self) -> &mut [u8] {
        self.kept.space()
    }

    /// Takes `count` bytes that were put into [`space`](Self::space).
    pub fn fill(&mut self, count: usize) {
        self.kept.fill(count);
    }

    /// No more bytes come.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// Drops all that is kept: it will not be received.
    pub fn drop_kept(&mut self) {
        self.acknowledged += self.kept.len() as u64;
        self.kept.consume(usize::MAX);
        (self.sent, self.piece) = (0, None);
    }

    /// Whether there is something to send.
    pub fn wants_to_send(&self) -> bool {
        self.piece.is_some() || self.sent < self.kept.len() || self.has_ended && !self.end_sent
    }

    /// Whether all was sent, and the end.
    pub fn is_finished(&self) -> bool {
        self.has_ended && !self.wants_to_send()
    }

    /// What to send next.
    pub fn to_send(&mut self) -> [IoSlice<'_>; 3] {
        if self.piece.is_none() && self.wants_to_send() {
            let left = (self.kept.len() - self.sent).min(MAX_PIECE);
            let length = u32::try_from(left).unwrap_or_default().to_le_bytes();
            self.piece = Some(Piece { length, length_sent: 0, left, is_end: left == 0 });
        }
        let Some(piece) = &self.piece else { return [IoSlice::new(&[]); 3] };
        let length = piece.length.get(piece.length_sent..).unwrap_or_default();
        let [first, second] = self.kept.slices(self.sent, piece.left);
        [IoSlice::new(length), first, second]
    }

    /// Notes that the first `count` bytes of [`to_send`](Self::to_send) were sent.
    pub fn sent(&mut self, count: usize) {
        let Some(piece) = &mut self.piece else { return };
        let of_length = count.min(LENGTH - piece.length_sent);
        piece.length_sent += of_length;
        let of_bytes = (count - of_length).min(piece.left);
        piece.left -= of_bytes;
        self.sent += of_bytes;
        if piece.length_sent == LENGTH && piece.left == 0 {
            self.end_sent |= piece.is_end;
            self.piece = None;
        }
    }

    /// Takes acknowledgements.
    ///
    /// # Errors
    ///
    /// [`StreamError::Position`]; the connection is of no use then.
    pub fn acknowledge(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let missing = size_of::<u64>() - self.partial.len();
            let (here, rest) = bytes.split_at(missing.min(bytes.len()));
            self.partial.extend_from_slice(here);
            bytes = rest;
            if let Some(position) = self.partial.first_chunk() {
                let position = u64::from_le_bytes(*position);
                self.partial.clear();
                self.release(position)?;
            }
        }
        Ok(())
    }

    /// Forgets what is in front of `position`.
    fn release(&mut self, position: u64) -> Result<(), StreamError> {
        let (from, to) = (self.acknowledged, self.acknowledged + self.sent as u64);
        let count = position.checked_sub(from).and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| *count <= self.sent) {
            Some(count) => {
                self.kept.consume(count);
                self.acknowledged = position;
                self.sent -= count;
                Ok(())
            }
            None => Err(StreamError::Position { position, from, to }),
        }
    }

    /// Begins a stream of its own for another receiver, with what the first one was not sent.
    pub fn begin_anew(&mut self) {
        self.kept.consume(self.sent);
        (self.acknowledged, self.sent, self.piece, self.end_sent) = (0, 0, None, false);
        self.partial.clear();
    }

    /// Goes on from `position`, which is what the receiver has, on another connection.
    ///
    /// # Errors
    ///
    /// [`StreamError::Position`] where what the receiver misses is not kept; nothing has changed then.
    pub fn resume(&mut self, position: u64) -> Result<(), StreamError> {
        self.release(position)?;
        (self.sent, self.piece, self.end_sent) = (0, None, false);
        self.partial.clear();
        Ok(())
    }
}

/// The side of a stream that gets its bytes.
#[derive(Debug, Default)]
pub struct Receiver {
    /// How many bytes have come.
    position: u64,
    /// How many of them the sender knows of.
    acknowledged: u64,
    /// The first bytes of a length.
    partial: Vec<u8>,
    /// How much of a piece is still to come.
    left: usize,
    has_ended: bool,
    /// The end has come on this connection. A sender repeats it on another one, as it is not acknowledged.
    has_ended_here: bool,
}

impl Receiver {
    /// How many bytes have come, to be said on a new connection.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether all bytes have come.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Begins with what comes on another connection.
    pub fn resume(&mut self) {
        self.partial.clear();
        (self.left, self.has_ended_here) = (0, false);
        self.acknowledged = self.position;
    }

    /// Takes what has come, and calls `take` with the bytes of the stream that are in it.
    ///
    /// # Errors
    ///
    /// [`StreamError`]; the connection is of no use then. Or that of `take`.
    pub fn receive<E: From<StreamError>>(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.has_ended_here {
                return Err(StreamError::AfterEnd.into());
            }
            if self.left > 0 {
                let (here, rest) = bytes.split_at(self.left.min(bytes.len()));
                take(here)?;
                self.left -= here.len();
                self.position += here.len() as u64;
                bytes = rest;
                continue;
            }
            let (here, rest) = bytes.split_at((LENGTH - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(here);
            bytes = rest;
            if let Some(length) = self.partial.first_chunk() {
                let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
                self.partial.clear();
                match length {
                    0 => (self.has_ended, self.has_ended_here) = (true, true),
                    _ if self.has_ended => return Err(StreamError::AfterEnd.into()),
                    1..=MAX_PIECE => self.left = length,
                    _ => return Err(StreamError::TooLong(length).into()),
                }
            }
        }
        Ok(())
    }

    /// What the sender has to be told by now, if anything.
    pub fn acknowledgement(&mut self) -> Option<[u8; 8]> {
        (self.position - self.acknowledged >= ACKNOWLEDGED).then(|| {
            self.acknowledged = self.position;
            self.position.to_le_bytes()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A connection that has room for some bytes in each direction.
    #[derive(Default)]
    struct Wire {
        bytes: Vec<u8>,
        back: Vec<u8>,
    }

    struct Ends {
        sender: Sender,
        receiver: Receiver,
        wire: Wire,
        sent: Vec<u8>,
        received: Vec<u8>,
        total: usize,
    }

    /// What happens next, and to how many bytes.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Fill(usize),
        Send(usize),
        Receive(usize),
        Acknowledge(usize),
        Cut,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let count = 1..300_000_usize;
        let step = prop_oneof![
            4 => count.clone().prop_map(Step::Fill),
            4 => count.clone().prop_map(Step::Send),
            4 => count.clone().prop_map(Step::Receive),
            2 => (1..20_usize).prop_map(Step::Acknowledge),
            1 => Just(Step::Cut),
        ];
        prop::collection::vec(step, 1..80)
    }

    impl Ends {
        fn new(total: usize) -> Self {
            let (sender, receiver, wire) = (Sender::default(), Receiver::default(), Wire::default());
            Self { sender, receiver, wire, sent: Vec::new(), received: Vec::new(), total }
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Fill(count) if self.sender.has_room() => {
                    let left = self.total - self.sent.len();
                    let (seed, space) = (self.sent.len(), self.sender.space());
                    let count = count.min(left).min(space.len());
                    for (index, byte) in space.iter_mut().take(count).enumerate() {
                        *byte = u8::try_from((seed + index) % 251).unwrap();
                    }
                    self.sent.extend_from_slice(&space[..count]);
                    self.sender.fill(count);
                    if count == left {
                        self.sender.end();
                    }
                }
                Step::Fill(_) => {}
                Step::Send(count) => {
                    let bytes =
                        self.sender.to_send().iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>();
                    let count = count.min(bytes.len());
                    self.wire.bytes.extend_from_slice(&bytes[..count]);
                    self.sender.sent(count);
                }
                Step::Receive(count) => {
                    let count = count.min(self.wire.bytes.len());
                    let bytes: Vec<u8> = self.wire.bytes.drain(..count).collect();
                    let received = &mut self.received;
                    let take = |bytes: &[u8]| {
                        received.extend_from_slice(bytes);
                        Ok::<_, StreamError>(())
                    };
                    self.receiver.receive(&bytes, take).unwrap();
                    self.wire.back.extend(self.receiver.acknowledgement().into_iter().flatten());
                }
                Step::Acknowledge(count) => {
                    let count = count.min(self.wire.back.len());
                    let bytes: Vec<u8> = self.wire.back.drain(..count).collect();
                    self.sender.acknowledge(&bytes).unwrap();
                }
                Step::Cut => {
                    self.wire = Wire::default();
                    self.receiver.resume();
                    self.sender.resume(self.receiver.position()).unwrap();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// However a stream is cut into pieces, and wherever its connections are lost, what is received is what was
        /// sent.
        #[test]
        fn no_byte_is_lost_and_none_comes_twice(steps in steps(), total in 0..1_500_000_usize) {
            let mut ends = Ends::new(total);
            for step in steps {
                ends.take(step);
            }
            let rest = [Step::Fill(90_000), Step::Send(100_000), Step::Receive(120_000), Step::Acknowledge(64)];
            for step in rest.into_iter().cycle().take(4000) {
                if ends.receiver.has_ended() && ends.sender.is_finished() {
                    break;
                }
                ends.take(step);
            }
            prop_assert!(ends.receiver.has_ended() && ends.sender.is_finished());
            prop_assert_eq!(ends.received.len(), total);
            prop_assert!(ends.received == ends.sent);
        }

        #[test]
        fn noise_is_an_error_or_harmless(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut sender = Sender::default();
            sender.fill(5);
            let _ = sender.to_send();
            sender.sent(7);
            let _ = sender.acknowledge(&bytes);
            let mut receiver = Receiver::default();
            let mut count = 0;
            let take = |bytes: &[u8]| {
                count += bytes.len();
                Ok::<_, StreamError>(())
            };
            let _ = receiver.receive(&bytes, take);
            prop_assert_eq!(receiver.position(), count as u64);
        }
    }

    #[test]
    fn positions_that_cannot_be_are_refused() {
        let mut sender = Sender::default();
        sender.fill(10);
        let _ = sender.to_send();
        sender.sent(4 + 6);
        assert_eq!(
            sender.acknowledge(&7_u64.to_le_bytes()),
            Err(StreamError::Position { position: 7, from: 0, to: 6 })
        );
        sender.acknowledge(&5_u64.to_le_bytes()).unwrap();
        assert!(sender.resume(4).is_err() && sender.resume(7).is_err());
        sender.resume(6).unwrap();
        assert_eq!(sender.to_send().iter().map(|slice| slice.len()).sum::<usize>(), 4 + 4);
    }

    #[test]
    fn pieces_that_cannot_be_are_refused() {
        let take = |_: &[u8]| Ok(());
        let long = u32::try_from(MAX_PIECE + 1).unwrap().to_le_bytes();
        assert_eq!(Receiver::default().receive(&long, take), Err(StreamError::TooLong(MAX_PIECE + 1)));
        assert_eq!(Receiver::default().receive(&[0, 0, 0, 0, 1], take), Err(StreamError::AfterEnd));
    }

    /// A connection that is lost right after the end: the sender cannot know that it came, and says it again.
    #[test]
    fn the_end_comes_again_on_another_connection() {
        let take = |_: &[u8]| Ok::<_, StreamError>(());
        let mut receiver = Receiver::default();
        for _ in 0..2 {
            receiver.receive(&[0; LENGTH], take).unwrap();
            assert!(receiver.has_ended());
            assert_eq!(receiver.receive(&[0; LENGTH], take), Err(StreamError::AfterEnd));
            receiver.resume();
            assert!(receiver.has_ended());
        }
        assert_eq!(receiver.receive(&[1, 0, 0, 0, 7], take), Err(StreamError::AfterEnd));
    }

    /// A copy of a sender goes on for another receiver.
    #[test]
    fn a_stream_that_begins_anew_has_what_was_not_sent() {
        let put = |sender: &mut Sender, bytes: &[u8]| {
            sender.space().get_mut(..bytes.len()).unwrap().copy_from_slice(bytes);
            sender.fill(bytes.len());
        };
        let mut sender = Sender::default();
        put(&mut sender, b"sent");
        let count: usize = sender.to_send().iter().map(|slice| slice.len()).sum();
        sender.sent(count);
        put(&mut sender, b"kept");
        sender.begin_anew();
        assert_eq!(sender.resume(0), Ok(()));
        put(&mut sender, b" later");
        sender.end();
        let (mut receiver, mut received) = (Receiver::default(), Vec::new());
        while sender.wants_to_send() {
            let bytes: Vec<u8> = sender.to_send().iter().flat_map(|slice| slice.iter().copied()).collect();
            sender.sent(bytes.len());
            let take = |bytes: &[u8]| {
                received.extend_from_slice(bytes);
                Ok::<_, StreamError>(())
            };
            receiver.receive(&bytes, take).unwrap();
        }
        assert_eq!((&*received, receiver.has_ended()), (&b"kept later"[..], true));
    }
}
