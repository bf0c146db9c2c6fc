//! Headers of a tar stream, as POSIX has them: ustar, and pax's extended headers for what has no room there.

use std::io::{self, Write};

use tar::{EntryType, Header};

use crate::attributes::Attributes;

/// Bytes in a tar block.
const BLOCK: usize = 512;
/// The first number that a field of twelve octal digits has no room for, and the first for one of eight.
const LONG_NUMBER: u64 = 1 << 33;
const SHORT_NUMBER: u64 = 1 << 21;

/// What a stream says of a file in front of its data.
pub struct Head<'a> {
    pub kind: EntryType,
    pub path: &'a [u8],
    pub link: &'a [u8],
    /// Permissions with set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub attributes: Attributes,
    /// How many bytes of data follow.
    pub size: u64,
    /// The size of the file where the data are a sparse file's, with their map in front.
    pub sparse: Option<u64>,
}

/// Adds `LENGTH NAME=VALUE` and a line feed, where the length counts itself.
fn record(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    // A space, an equals sign, a line feed.
    let others = name.len().saturating_add(value.len()).saturating_add(3);
    let mut length = others;
    loop {
        let next = others.saturating_add(length.to_string().len());
        if next == length {
            break;
        }
        length = next;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(name);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Puts as much of `text` into `field` as it has room for; whether that is all.
fn put(field: &mut [u8], text: &[u8]) -> bool {
    field.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    text.len() <= field.len()
}

impl Head<'_> {
    /// Writes the headers.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let mut records = Vec::new();
        let path = match self.kind {
            EntryType::Directory => [self.path, b"/"].concat(),
            _ => self.path.to_vec(),
        };
        let mut named = !put(&mut header.as_old_mut().name, &path);
        if self.sparse.is_some() {
            named = false;
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", &path);
            record(&mut records, b"GNU.sparse.realsize", self.sparse.unwrap_or(0).to_string().as_bytes());
        }
        if named {
            record(&mut records, b"path", &path);
        }
        if !put(&mut header.as_old_mut().linkname, self.link) {
            record(&mut records, b"linkpath", self.link);
        }
        let seconds = u64::try_from(self.mtime.0).ok().filter(|seconds| *seconds < LONG_NUMBER);
        if self.mtime.1 != 0 || seconds.is_none() {
            record(&mut records, b"mtime", time(self.mtime).as_bytes());
        }
        for (name, value, least) in [
            (&b"size"[..], self.size, LONG_NUMBER),
            (b"uid", self.uid.into(), SHORT_NUMBER),
            (b"gid", self.gid.into(), SHORT_NUMBER),
        ] {
            if value >= least {
                record(&mut records, name, value.to_string().as_bytes());
            }
        }
        for (name, value) in &self.attributes {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        header.set_entry_type(self.kind);
        header.set_mode(self.mode & 0o7777);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_size(self.size);
        header.set_mtime(seconds.unwrap_or(0));
        header.set_device_major(self.device.0)?;
        header.set_device_minor(self.device.1)?;
        header.set_cksum();
        if !records.is_empty() {
            write_records(&records, out)?;
        }
        out.write_all(header.as_bytes())
    }
}

fn write_records(records: &[u8], out: &mut impl Write) -> io::Result<()> {
    let mut header = Header::new_ustar();
    put(&mut header.as_old_mut().name, b"PaxHeaders/0");
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(u64::try_from(records.len()).unwrap_or(u64::MAX));
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    out.write_all(records)?;
    pad(u64::try_from(records.len()).unwrap_or(u64::MAX), out)
}

/// Seconds with a fraction. Before 1970, -1.25 s is 0.75 s after -2 s.
fn time((seconds, nanoseconds): (i64, u32)) -> String {
    match (seconds < 0, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (false, _) => format!("{seconds}.{nanoseconds:09}"),
        (true, _) => {
            let whole = seconds.saturating_add(1).unsigned_abs();
            format!("-{whole}.{:09}", 1_000_000_000_u32.saturating_sub(nanoseconds))
        }
    }
}

/// Fills up the last block of `length` bytes of data.
pub fn pad(length: u64, out: &mut impl Write) -> io::Result<()> {
    let used = usize::try_from(length % 512).unwrap_or_default();
    if used == 0 {
        return Ok(());
    }
    out.write_all([0; BLOCK].get(used..).unwrap_or_default())
}

/// Ends a stream.
pub fn finish(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}
