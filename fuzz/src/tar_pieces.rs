//! Pieces of tar streams, of which a fuzzer makes streams that are nearly right.

use libfuzzer_sys::arbitrary::{self, Arbitrary};

const TYPES: &[u8] = b"0512346xLKgS7\0";
const KEYS: [&str; 16] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "GNU.sparse.name",
    "GNU.sparse.size",
    "GNU.sparse.realsize",
    "GNU.sparse.major",
    "GNU.sparse.map",
    "GNU.sparse.numblocks",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "SCHILY.xattr.user.x",
    "SCHILY.xattr.trusted.overlay.opaque",
];

/// A piece of a tar stream.
#[derive(Arbitrary, Debug)]
pub enum Piece {
    /// A header, whose checksum is right, and data.
    Entry { kind: u8, name: Vec<u8>, link: Vec<u8>, mode: u16, data: Vec<u8>, fields: Vec<(u16, u8)> },
    /// Records for the next entry.
    Records(Vec<(u8, Vec<u8>)>),
    /// A name that is this often repeated, for the next entry.
    LongName { part: Vec<u8>, count: u16, is_link: bool },
    /// An attribute of this many bytes, for the next entry.
    LongAttribute(u16),
    /// Anything.
    Raw(Vec<u8>),
}

impl Piece {
    /// Adds it to a stream.
    pub fn append(&self, tar: &mut Vec<u8>) {
        match self {
            Self::Entry { kind, name, link, mode, data, fields } => {
                entry(tar, TYPES[usize::from(*kind) % TYPES.len()], name, link, *mode, data, fields);
            }
            Self::Records(records) => {
                let record =
                    |(key, value): &(u8, Vec<u8>)| record(KEYS[usize::from(*key) % KEYS.len()], value);
                entry(tar, b'x', b"x", b"", 0, &records.iter().flat_map(record).collect::<Vec<_>>(), &[]);
            }
            Self::LongName { part, count, is_link } => {
                let name = part.repeat(usize::from(*count).min(5000 / part.len().max(1)));
                entry(tar, if *is_link { b'K' } else { b'L' }, b"x", b"", 0, &name, &[]);
            }
            Self::LongAttribute(length) => {
                let value = vec![b'v'; usize::from(*length)];
                entry(tar, b'x', b"x", b"", 0, &record("SCHILY.xattr.user.long", &value), &[]);
            }
            Self::Raw(bytes) => tar.extend(bytes),
        }
    }
}

fn entry(
    tar: &mut Vec<u8>,
    kind: u8,
    name: &[u8],
    link: &[u8],
    mode: u16,
    data: &[u8],
    fields: &[(u16, u8)],
) {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &[u8], most: usize| {
        let text = &text[..text.len().min(most)];
        header[at..at + text.len()].copy_from_slice(text);
    };
    put(0, name, 100);
    put(157, link, 100);
    put(100, format!("{mode:07o}").as_bytes(), 7);
    put(108, b"0000000", 7);
    put(116, b"0000000", 7);
    put(124, format!("{:011o}", data.len()).as_bytes(), 11);
    put(136, b"14537777777", 11);
    put(156, &[kind], 1);
    put(257, if kind == b'S' { b"ustar  \0" } else { b"ustar\x0000" }, 8);
    for (at, byte) in fields {
        header[usize::from(*at) % 512] = *byte;
    }
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend(header);
    tar.extend(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn record(name: &str, value: &[u8]) -> Vec<u8> {
    let content = [b" ", name.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = content.len();
    while format!("{length}").len() + content.len() != length {
        length = format!("{length}").len() + content.len();
    }
    [format!("{length}").into_bytes(), content].concat()
}
