//! What comes from a container's agent, and what comes to it: messages that are read as they are written, however the
//! bytes are cut into pieces, or an error.

#![no_main]

use std::fmt::Debug;

use agent_protocol::{Decoder, FrameError, MAX_MESSAGE, Reply, Request, encode};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// All messages of `bytes`, which come in pieces of `piece` bytes.
fn messages<T: DeserializeOwned>(bytes: &[u8], piece: usize) -> (Vec<T>, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.take() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
        assert!(decoder.wants().is_ok_and(|wants| wants > 0 && wants <= MAX_MESSAGE));
    }
    (found, None)
}

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8], piece: usize) {
    let (found, error) = messages::<T>(bytes, piece);
    assert_eq!((&found, &error), (&messages(bytes, bytes.len().max(1)).0, &messages::<T>(bytes, 1).1));
    let written: Vec<u8> = found.iter().flat_map(|message| encode(message).expect("it was read")).collect();
    assert_eq!(messages::<T>(&written, piece), (found, None));
}

fuzz_target!(|data: &[u8]| {
    let [piece, cut, rest @ ..] = data else { return };
    let piece = usize::from(*piece).max(1);
    check::<Request>(rest, piece);
    check::<Reply>(rest, piece);
    // The same as one message, whose length is right.
    let mut framed = (rest.len() as u32).to_le_bytes().to_vec();
    framed.extend(rest);
    framed.truncate(framed.len() - usize::from(*cut).min(framed.len()) * usize::from(*cut > 240));
    check::<Request>(&framed, piece);
    check::<Reply>(&framed, piece);
});
