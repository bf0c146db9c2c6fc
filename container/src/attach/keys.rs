//! The keys that leave a container without ending it.

use std::str::FromStr;

use thiserror::Error;

/// The most keys of a sequence.
const MAX: usize = 16;

/// Keys that detach a terminal when they are typed one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// What is wrong with keys.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "invalid keys {0:?}: write a letter, or ctrl- and one of a to z, @, [, \\, ], ^ and _, with commas between, as in ctrl-p,ctrl-q"
)]
pub struct KeysError(String);

impl Default for DetachKeys {
    /// Ctrl-P Ctrl-Q, as docker's.
    fn default() -> Self {
        Self(vec![16, 17])
    }
}

impl FromStr for DetachKeys {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Self, KeysError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.filter(|keys| keys.len() <= MAX).map(Self).ok_or_else(|| KeysError(text.to_owned()))
    }
}

fn key(text: &str) -> Option<u8> {
    let name = text.strip_prefix("ctrl-").unwrap_or(text);
    let &[byte] = name.as_bytes() else { return None };
    match byte {
        _ if name.len() == text.len() => byte.is_ascii_graphic().then_some(byte),
        b'a'..=b'z' => Some(byte & 0x1f),
        b'@' | b'[' | b'\\' | b']' | b'^' | b'_' => Some(byte & 0x1f),
        _ => None,
    }
}

/// Finds the keys in what is typed.
pub struct DetachFilter {
    keys: DetachKeys,
    /// How many of them were typed last.
    typed: usize,
}

impl DetachFilter {
    /// Looks for `keys`.
    pub fn new(keys: DetachKeys) -> Self {
        Self { keys, typed: 0 }
    }

    /// Appends to `passed` what is not a part of the keys; whether all of them were typed. What comes behind them is
    /// lost.
    pub fn filter(&mut self, typed: &[u8], passed: &mut Vec<u8>) -> bool {
        for byte in typed {
            if self.keys.0.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == self.keys.0.len() {
                    return true;
                }
                continue;
            }
            // The beginning was meant for the container.
            passed.extend(self.keys.0.iter().take(self.typed));
            self.typed = 0;
            if self.keys.0.first() == Some(byte) {
                self.typed = 1;
            } else {
                passed.push(*byte);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ctrl-p,ctrl-q", Some("\x10\x11"))]
    #[case("", Some("\x10\x11"))]
    #[case("a", Some("a"))]
    #[case("ctrl-],x", Some("\x1dx"))]
    #[case("ctrl-@", Some("\0"))]
    #[case("ctrl-1", None)]
    #[case("ctrl-", None)]
    #[case("ab", None)]
    #[case("a,", None)]
    #[case("é", None)]
    fn keys_are_written_as_dockers(#[case] text: &str, #[case] expected: Option<&str>) {
        let keys = text.parse::<DetachKeys>();
        assert_eq!(keys.as_ref().ok().map(|keys| keys.0.as_slice()), expected.map(str::as_bytes));
        assert!(expected.is_some() || keys.unwrap_err().to_string().contains("as in ctrl-p,ctrl-q"));
    }

    #[rstest]
    #[case("ls\x10\x11more", "ls", true)]
    #[case("\x10x\x10\x11", "\x10x", true)]
    #[case("\x10\x10\x11", "\x10", true)]
    #[case("\x11\x10", "\x11", false)]
    fn keys_are_found_whole_and_one_by_one(
        #[case] typed: &str,
        #[case] passed: &str,
        #[case] detaches: bool,
    ) {
        for size in [typed.len(), 1] {
            let (mut filter, mut seen) = (DetachFilter::new(DetachKeys::default()), Vec::new());
            let found = typed.as_bytes().chunks(size).any(|part| filter.filter(part, &mut seen));
            assert_eq!((seen.as_slice(), found), (passed.as_bytes(), detaches));
        }
    }
}
