//! The frames under way, as a snapshot has them.

use rustix::net::sockopt::socket_cookie;
use serde::{Deserialize, Serialize};

use super::{Incoming, MAX_FRAME, PREFIX, Stream};

/// What was read from a stream and not delivered, and what is still to be written to it.
///
/// It is meaningful for the same connection only: on another one, a frame begins with the next byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// The connection's number, which the host gives to no other socket until it is booted again (`SO_COOKIE`).
    connection: u64,
    incoming: IncomingState,
    /// The rest of a frame of which a part was sent.
    unsent: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum IncomingState {
    /// The first bytes of a frame's length.
    Prefix(Vec<u8>),
    /// A frame's length, and the first of its bytes.
    Frame { length: usize, received: Vec<u8> },
    /// How many bytes are still to be discarded.
    Unwanted(usize),
}

impl Stream {
    /// The frames under way. Of the one that is being received, the part in the guest's buffers has to be
    /// [held](Self::hold_incoming), and none may be being sent.
    pub(in crate::virtio::net) fn state(&self) -> Option<StreamState> {
        let incoming = match self.incoming {
            Incoming::Prefix { have } => {
                IncomingState::Prefix(self.incoming_prefix.get(..have).unwrap_or_default().to_vec())
            }
            Incoming::Frame { length, .. } => IncomingState::Frame { length, received: self.held.clone() },
            Incoming::Unwanted { left } => IncomingState::Unwanted(left),
        };
        let connection = socket_cookie(&self.socket).ok()?;
        Some(StreamState { connection, incoming, unsent: self.unsent.clone() })
    }

    /// Goes on with the frames of `state` if this is the connection that it was taken of; on another one, there are
    /// none under way.
    ///
    /// # Errors
    ///
    /// Says why `state` can't be that of a stream.
    pub(in crate::virtio::net) fn restore(&mut self, state: &StreamState) -> Result<(), &'static str> {
        state.check()?;
        if socket_cookie(&self.socket).ok() != Some(state.connection) {
            return Ok(());
        }
        self.held.clear();
        self.incoming = match &state.incoming {
            IncomingState::Prefix(bytes) => {
                for (place, byte) in self.incoming_prefix.iter_mut().zip(bytes) {
                    *place = *byte;
                }
                Incoming::Prefix { have: bytes.len() }
            }
            IncomingState::Frame { length, received } => {
                self.held.clone_from(received);
                Incoming::Frame { length: *length, have: received.len() }
            }
            IncomingState::Unwanted(left) => Incoming::Unwanted { left: *left },
        };
        self.outgoing = None;
        self.unsent.clone_from(&state.unsent);
        Ok(())
    }
}

impl StreamState {
    fn check(&self) -> Result<(), &'static str> {
        let is_possible = match &self.incoming {
            IncomingState::Prefix(bytes) => bytes.len() <= PREFIX,
            IncomingState::Frame { length, received } => *length <= MAX_FRAME && received.len() < *length,
            IncomingState::Unwanted(left) => *left <= MAX_FRAME,
        };
        if is_possible && self.unsent.len() <= PREFIX + MAX_FRAME {
            Ok(())
        } else {
            Err("it has a frame that is too long")
        }
    }
}
