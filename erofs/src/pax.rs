//! The records of pax's extended headers (POSIX.1-2017, pax, "pax Extended Header").

use std::collections::BTreeMap;

use thiserror::Error;

/// Why records can't be understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PaxError {
    /// Not `LENGTH NAME=VALUE` and a line feed.
    #[error("record {0} is not LENGTH NAME=VALUE")]
    Record(usize),
    /// A value that has to be a number.
    #[error("the value of {0} is not a number")]
    Number(String),
}

/// A piece of a sparse file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub start: u64,
    /// How long it is.
    pub length: u64,
}

/// What the records say of a sparse file (GNU tar's formats 0.0, 0.1 and 1.0).
#[derive(Debug, Default)]
pub struct Sparse {
    pub size: Option<u64>,
    pub segments: Option<Vec<Segment>>,
    /// The pieces are listed in front of the data.
    pub has_map_in_data: bool,
    /// The start of a piece whose length comes next.
    start: Option<u64>,
}

/// What precedes an entry's header and replaces fields of it.
#[derive(Debug, Default)]
pub struct Extensions {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: Sparse,
}

/// The prefix of extended attributes' names, as GNU tar, bsdtar, Go and docker write them.
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Extensions {
    /// Reads the records of `body`; later ones replace earlier ones.
    pub fn read(&mut self, body: &[u8]) -> Result<(), PaxError> {
        let mut rest = body;
        let mut number = 0;
        while !rest.is_empty() {
            let (name, value, others) = record(rest).ok_or(PaxError::Record(number))?;
            self.take(name, value)?;
            rest = others;
            number += 1;
        }
        Ok(())
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), PaxError> {
        let invalid = || PaxError::Number(String::from_utf8_lossy(name).into_owned());
        let number = || decimal(value).ok_or_else(invalid);
        match name {
            // A record without a value takes back what another one said: the header's field counts.
            b"path" | b"GNU.sparse.name" if value.is_empty() => self.path = None,
            b"linkpath" if value.is_empty() => self.link = None,
            b"size" if value.is_empty() => self.size = None,
            b"uid" if value.is_empty() => self.uid = None,
            b"gid" if value.is_empty() => self.gid = None,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"path" => self.path = Some(value.to_vec()),
            // The name of a sparse file, whose `path` is one that old tars extract its pieces to.
            b"GNU.sparse.name" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(invalid)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(number()?),
            b"GNU.sparse.major" => self.sparse.has_map_in_data = number()? == 1,
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').map(decimal).collect();
                let numbers = numbers.ok_or_else(invalid)?;
                let pairs = numbers.as_chunks::<2>();
                if !pairs.1.is_empty() {
                    return Err(invalid());
                }
                let segments = pairs.0.iter().map(|&[start, length]| Segment { start, length });
                self.sparse.segments = Some(segments.collect());
            }
            b"GNU.sparse.numblocks" => self.sparse.segments = Some(Vec::new()),
            b"GNU.sparse.offset" => self.sparse.start = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let start = self.sparse.start.take().ok_or_else(invalid)?;
                self.sparse.segments.get_or_insert_default().push(Segment { start, length: number()? });
            }
            _ => {
                if let Some(attribute) = name.strip_prefix(XATTR) {
                    self.xattrs.insert(attribute.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

/// The name and value of the first record, and what follows it. Its length counts all of it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, bytes.get(length..)?))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()
}

/// Seconds with a fraction, as in `1700000000.123456789`. A time before 1970 has a sign.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (is_negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    Some(match (is_negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        // -1.25 s is 0.75 s after -2 s.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn encode(name: &[u8], value: &[u8]) -> Vec<u8> {
        let content = [b" ", name, b"=", value, b"\n"].concat();
        let mut length = content.len();
        while format!("{length}").len() + content.len() != length {
            length = format!("{length}").len() + content.len();
        }
        [format!("{length}").as_bytes(), &content].concat()
    }

    #[rstest]
    #[case(b"0", Some((0, 0)))]
    #[case(b"12.5", Some((12, 500_000_000)))]
    #[case(b"12.1234567899", Some((12, 123_456_789)))]
    #[case(b"-1.25", Some((-2, 750_000_000)))]
    #[case(b"-3", Some((-3, 0)))]
    #[case(b"", None)]
    #[case(b"x", None)]
    #[case(b"1.x", None)]
    #[case(b"99999999999999999999", None)]
    fn times_are_read_to_the_nanosecond(#[case] text: &[u8], #[case] expected: Option<(i64, u32)>) {
        assert_eq!(time(text), expected);
    }

    #[rstest]
    #[case(b"5 a=", PaxError::Record(0))]
    #[case(b"x a=b\n", PaxError::Record(0))]
    #[case(b"99 a=b\n", PaxError::Record(0))]
    #[case(b"2 a=b\n", PaxError::Record(0))]
    #[case(b"6 a=b\n6 a-b\n", PaxError::Record(1))]
    #[case(b"12 size=-1\n", PaxError::Record(0))]
    #[case(b"11 size=-1\n", PaxError::Number("size".into()))]
    fn bad_records_are_refused(#[case] body: &[u8], #[case] expected: PaxError) {
        assert_eq!(Extensions::default().read(body), Err(expected));
    }

    #[test]
    fn a_record_without_a_value_leaves_the_field_to_the_header() {
        let mut extensions = Extensions::default();
        for (name, value) in
            [("path", "x"), ("size", "1"), ("mtime", "1.5"), ("path", ""), ("size", ""), ("mtime", "")]
        {
            extensions.read(&encode(name.as_bytes(), value.as_bytes())).unwrap();
        }
        assert_eq!((extensions.path, extensions.size, extensions.mtime), (None, None, None));
    }

    proptest! {
        /// Line feeds, zeros and signs in values are values.
        #[test]
        fn values_may_have_any_bytes(value in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut body = encode(b"SCHILY.xattr.security.capability", &value);
            body.extend(encode(b"path", &value));
            let mut extensions = Extensions::default();
            extensions.read(&body).unwrap();
            prop_assert_eq!(extensions.path, Some(value.clone()).filter(|path| !path.is_empty()));
            prop_assert_eq!(extensions.xattrs.into_iter().collect::<Vec<_>>(), vec![(b"security.capability".to_vec(), value)]);
        }

        #[test]
        fn noise_is_an_error_or_nothing(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Extensions::default().read(&body);
        }
    }
}
