//! Digests, which name all content.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// A text that is not a digest.
#[derive(Debug, Error)]
#[error("invalid digest {0:?}: use sha256: and 64 hexadecimal digits in lower case")]
pub struct DigestError(String);

/// A SHA-256 digest (OCI image specification, "Digests"). As text it is `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of all that `input` gives.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    pub fn of_all(input: impl Read) -> io::Result<Self> {
        let mut hashed = Hashed::new(input);
        let mut buffer = vec![0; 64 << 10];
        while hashed.read(&mut buffer)? > 0 {}
        Ok(hashed.finish().0)
    }

    /// The digest whose hexadecimal digits, without the algorithm, are `hex`.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = pair.iter().try_fold(0, |value, digit| match digit {
                b'0'..=b'9' => Some(value << 4 | (digit - b'0')),
                b'a'..=b'f' => Some(value << 4 | (digit - b'a' + 10)),
                _ => None,
            })?;
        }
        Some(Self(bytes))
    }

    /// The digest that a hash function has given.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The first half, as what is made from this content has it for a UUID.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        uuid.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        uuid
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").and_then(Self::from_hex);
        hex.ok_or_else(|| DigestError(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Passes on what it reads, and takes its digest and length.
pub(crate) struct Hashed<R> {
    input: R,
    hasher: Sha256,
    length: u64,
}

impl<R> Hashed<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, hasher: Sha256::new(), length: 0 }
    }

    /// What it reads from.
    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The digest of what was read, and how many bytes that is.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest(self.hasher.finalize().into()), self.length)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.length = self.length.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        let mut hashed = Hashed::new(&b"some bytes"[..]);
        io::copy(&mut hashed, &mut io::sink()).unwrap();
        assert_eq!(hashed.finish(), (Digest::of(b"some bytes"), 10));
        let long = vec![7; 200_000];
        assert_eq!(Digest::of_all(&*long).unwrap(), Digest::of(&long));
    }

    #[rstest]
    #[case::empty("")]
    #[case::without_algorithm("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    #[case::upper_case("sha256:E3B0C44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    #[case::short("sha256:e3b0")]
    #[case::path("sha256:../../../../../../../../../../../../../../../../../../../../../../../etc")]
    #[case::wide("sha256:äääääääääääääääääääääääääääääääää")]
    #[case::other("md5:d41d8cd98f00b204e9800998ecf8427e")]
    fn other_text_is_not_a_digest(#[case] text: &str) {
        assert!(text.parse::<Digest>().is_err());
    }
}
