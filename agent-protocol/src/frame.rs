//! Messages as bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The most bytes of a message.
pub const MAX_MESSAGE: usize = 1 << 20;

const LENGTH: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// Longer than [`MAX_MESSAGE`].
    #[error("a message has {0} bytes: it can have up to {MAX_MESSAGE}")]
    TooLong(usize),
    /// Not one of those that are expected.
    #[error("invalid message: {0}")]
    Invalid(String),
}

/// The bytes of `message`, with their length in front.
///
/// # Errors
///
/// [`FrameError::TooLong`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let body = postcard::to_stdvec(message).map_err(|error| FrameError::Invalid(error.to_string()))?;
    if body.len() > MAX_MESSAGE {
        return Err(FrameError::TooLong(body.len()));
    }
    let length = u32::try_from(body.len()).map_err(|_| FrameError::TooLong(body.len()))?;
    Ok([&length.to_le_bytes(), &*body].concat())
}

/// Makes messages of bytes that come in pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes bytes, in the order in which they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// How many more bytes the message that comes next needs: to read no more leaves what follows it where it is.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`].
    pub fn wants(&self) -> Result<usize, FrameError> {
        let Some((length, body)) = self.bytes.split_first_chunk::<LENGTH>() else {
            return Ok(LENGTH - self.bytes.len());
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            Err(FrameError::TooLong(length))
        } else {
            Ok(length.saturating_sub(body.len()))
        }
    }

    /// The message that comes next, once its bytes are there.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; the connection is of no use then.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        if self.bytes.len() < LENGTH || self.wants()? > 0 {
            return Ok(None);
        }
        let length = self.bytes.first_chunk::<LENGTH>().map_or(0, |length| u32::from_le_bytes(*length));
        let end = LENGTH + usize::try_from(length).unwrap_or(usize::MAX);
        let body = self.bytes.get(LENGTH..end).unwrap_or_default();
        let (message, rest) =
            postcard::take_from_bytes(body).map_err(|error| FrameError::Invalid(error.to_string()))?;
        if !rest.is_empty() {
            return Err(FrameError::Invalid(format!("{} bytes too many", rest.len())));
        }
        self.bytes.drain(..end);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Reply, Request, Stream};

    proptest! {
        /// However the bytes are cut into pieces, the messages are the same.
        #[test]
        fn messages_come_back(pieces in prop::collection::vec(1..7_usize, 1..50), signals in prop::collection::vec(any::<u8>(), 1..20)) {
            let sent: Vec<Request> = signals
                .iter()
                .map(|&signal| Request::Signal { container: "c".repeat(signal.into()), signal })
                .collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|message| encode(message).unwrap()).collect();
            let mut decoder = Decoder::default();
            let mut received = Vec::new();
            let mut rest = &*bytes;
            for piece in pieces.iter().cycle() {
                let (here, others) = rest.split_at((*piece).min(rest.len()));
                decoder.push(here);
                while let Some(message) = decoder.take::<Request>().unwrap() {
                    received.push(message);
                }
                rest = others;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn noise_is_an_error_or_a_message(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut decoder = Decoder::default();
            let length = u32::try_from(bytes.len()).unwrap();
            decoder.push(&length.to_le_bytes());
            decoder.push(&bytes);
            let _ = decoder.take::<Request>();
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = decoder.take::<Reply>();
        }
    }

    #[test]
    fn long_messages_are_refused_by_their_length_alone() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; 4]);
        assert_eq!(decoder.wants(), Err(FrameError::TooLong(0xffff_ffff)));
        assert!(decoder.take::<Request>().is_err());
        let container = "x".repeat(MAX_MESSAGE);
        let message = Request::Attach { container, stream: Stream::Stdin, position: 0 };
        assert!(matches!(encode(&message), Err(FrameError::TooLong(_))));
    }
}
