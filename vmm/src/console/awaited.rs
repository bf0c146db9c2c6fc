//! Text that the guest is expected to output.

use std::sync::Arc;

use super::hub::Reader;

/// What is called when the guest has output a text.
pub type OnText = Arc<dyn Fn() + Send + Sync>;

/// A text that is waited for.
#[derive(Clone)]
pub struct AwaitedText {
    text: Vec<u8>,
    call: OnText,
}

impl AwaitedText {
    /// The most bytes of a text.
    pub const MAX: usize = 256;

    /// Has `call` called once when the guest has output `text`, on the thread of the event loop. `None` where the text is
    /// empty or has more than [`AwaitedText::MAX`] bytes.
    pub fn new(text: Vec<u8>, call: OnText) -> Option<Self> {
        (1..=Self::MAX).contains(&text.len()).then_some(Self { text, call })
    }
}

/// Finds a text in what comes in pieces: Knuth, Morris and Pratt's way, which looks at each byte once.
struct Finder {
    text: Vec<u8>,
    /// For each beginning of the text, how long the longest beginning is with which it ends, itself aside.
    borders: Vec<usize>,
    /// How much of the text the output ends with.
    matched: usize,
}

impl Finder {
    fn new(text: Vec<u8>) -> Self {
        let mut finder = Self { borders: vec![0], text: Vec::new(), matched: 0 };
        for (index, byte) in text.iter().enumerate() {
            if index > 0 {
                let matched = finder.step(*byte);
                finder.borders.push(matched);
            }
            finder.text.push(*byte);
        }
        finder.matched = 0;
        finder
    }

    /// Takes the next byte; returns how much of the text matches now.
    fn step(&mut self, byte: u8) -> usize {
        while self.text.get(self.matched) != Some(&byte) {
            let Some(shorter) = self.matched.checked_sub(1) else { return 0 };
            self.matched = self.borders.get(shorter).copied().unwrap_or(0);
        }
        self.matched += 1;
        self.matched
    }

    /// Whether the text ends in this piece, which comes behind those before it.
    fn ends_in(&mut self, piece: &[u8]) -> bool {
        piece.iter().any(|byte| self.step(*byte) == self.text.len())
    }
}

/// Looks for a text in the output, until it is there.
pub(super) struct Awaited {
    reader: Reader,
    finder: Finder,
    call: OnText,
    buffer: Vec<u8>,
}

impl Awaited {
    /// Looks for `awaited` in what `reader` reads.
    pub(super) fn new(awaited: AwaitedText, reader: Reader) -> Self {
        Self { reader, finder: Finder::new(awaited.text), call: awaited.call, buffer: Vec::new() }
    }

    /// Looks at what has come. Returns whether the text is there, of which it was told then.
    pub(super) fn look(&mut self) -> bool {
        while self.reader.take(&mut self.buffer) > 0 {
            let found = self.finder.ends_in(&self.buffer);
            self.buffer.clear();
            if found {
                (self.call)();
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::console::hub::{Hub, Output};

    proptest! {
        #[test]
        fn a_text_is_found_where_it_first_ends_however_the_output_is_cut(
            text in "[ab]{1,6}",
            output in "[ab]{0,40}",
            size in 1_usize..9,
        ) {
            let mut finder = Finder::new(text.clone().into_bytes());
            let found = output.as_bytes().chunks(size).position(|piece| finder.ends_in(piece));
            let expected = output.find(&text).map(|start| (start + text.len() - 1) / size);
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn it_is_told_once_and_over_the_borders_of_what_is_written() {
        let hub = Hub::new().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let call = Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let awaited = AwaitedText::new(b"login:\xff".to_vec(), call).unwrap();
        let mut awaited = Awaited::new(awaited, hub.reader());
        let mut output = Output::new(&hub);
        for piece in [&b"boot\nlogin"[..], b"", b" login", b":"] {
            output.write_all(piece).unwrap();
            assert!(!awaited.look());
        }
        output.write_all(b"\xff login:\xff").unwrap();
        assert!(awaited.look());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn texts_have_a_length_that_is_bounded() {
        let is_taken = |length| AwaitedText::new(vec![b'x'; length], Arc::new(|| ())).is_some();
        assert_eq!([0, 1, 256, 257].map(is_taken), [false, true, true, false]);
    }
}
