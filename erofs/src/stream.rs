//! A tar stream: POSIX ustar and pax, and what GNU tar and old tars add (tar(5), pax(1)).
//!
//! The headers' fields are read by the crate `tar`. Its iterator is not used, as it splits pax records at line feeds,
//! which capabilities and ACLs contain, and takes sparse files of one format alone.

use std::io::{self, Read};

use tar::{EntryType, Header};
use thiserror::Error;

use crate::pax::{Extensions, PaxError, Segment};

/// Bytes in a tar block.
const TAR_BLOCK: usize = 512;
/// The most bytes of all extended headers and long names of an entry together.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most pieces of data that a sparse file is made of.
const MAX_SEGMENTS: usize = 1 << 16;

/// Why a tar stream can't be read.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The stream itself: a disk, a network, a decompressor.
    #[error("cannot read the tar stream")]
    Read(#[source] io::Error),
    /// It ends inside of an entry.
    #[error("the tar stream ends early, after {0} bytes")]
    Truncated(u64),
    /// It does not begin with a header.
    #[error("it is not a tar archive, plain or compressed with gzip or zstd")]
    NotTar,
    /// Not a header.
    #[error("the archive is damaged: the header at byte {0} has a wrong checksum")]
    Checksum(u64),
    /// A field of a header is not a number.
    #[error("the header at byte {at} has an invalid {field}")]
    Field {
        /// Where the header is.
        at: u64,
        /// Which field.
        field: &'static str,
    },
    /// Extended headers of an entry that are too long together.
    #[error("the extended header at byte {0} has more than 1 MiB, or is one of several that have")]
    Extension(u64),
    /// An extended header that can't be understood.
    #[error("the extended header before byte {at} is invalid")]
    Pax {
        /// Where the header of the file is that it is for.
        at: u64,
        /// What is wrong with it.
        #[source]
        source: PaxError,
    },
    /// A sparse file whose pieces do not fit together.
    #[error("the sparse file at byte {0} has an invalid map")]
    Sparse(u64),
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file, with data.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of a file before it.
    HardLink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// What no file system has, as a volume's label.
    Other,
}

/// An entry; its data is read from the stream before the next one.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its path, as the stream has it: absolute or with `..` as it may be.
    pub path: Vec<u8>,
    /// What a link points to.
    pub link: Vec<u8>,
    /// Permissions with set-id and sticky bits.
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// A device's major and minor number.
    pub device: (u32, u32),
    /// Names and values of extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The size of the file, which a sparse file's data in the stream is less than.
    pub size: u64,
    /// The pieces of a sparse file.
    pub segments: Option<Vec<Segment>>,
}

/// A tar stream.
pub struct Stream<R> {
    input: R,
    /// Bytes that were read.
    position: u64,
    /// Bytes of the current entry's data that were not read.
    data_left: u64,
    /// Bytes that fill up the last block of the current entry's data.
    padding: u64,
}

impl<R: Read> Stream<R> {
    /// The stream that is read from `input`.
    pub fn new(input: R) -> Self {
        Self { input, position: 0, data_left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end. Data of the last entry that was not read is skipped.
    ///
    /// # Errors
    ///
    /// [`StreamError`].
    #[expect(
        clippy::should_implement_trait,
        reason = "an entry borrows nothing, but an error ends the stream"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, StreamError> {
        let mut extensions = Extensions::default();
        let mut extended = 0_u64;
        loop {
            self.skip_data()?;
            let at = self.position;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = field(at, "size", stored_size(&header))?;
            self.begin_data(size);
            if matches!(
                header.entry_type(),
                EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
            ) {
                extended = extended.saturating_add(size);
                if extended > MAX_EXTENSION {
                    return Err(StreamError::Extension(at));
                }
            }
            match header.entry_type() {
                EntryType::XHeader => {
                    let body = self.body(size)?;
                    extensions.read(&body).map_err(|source| StreamError::Pax { at, source })?;
                }
                EntryType::GNULongName => extensions.path = Some(text(self.body(size)?)),
                EntryType::GNULongLink => extensions.link = Some(text(self.body(size)?)),
                EntryType::XGlobalHeader => {}
                _ => return self.entry(at, &header, extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, at: u64, header: &Header, extensions: Extensions) -> Result<Entry, StreamError> {
        let stored = extensions.size.map_or_else(|| field(at, "size", stored_size(header)), Ok)?;
        let kind = kind(header, extensions.path.as_deref());
        // Only files have data, whatever the header of a link says (GNU tar writes its target's size).
        self.begin_data(if matches!(kind, EntryKind::File | EntryKind::Other) { stored } else { 0 });
        let (size, segments) = self.sparse(at, header, &extensions, stored)?;
        let number = |name, value: Option<u64>, otherwise: io::Result<u64>| match value {
            Some(value) => narrow(at, name, value),
            None => field(at, name, otherwise).and_then(|value| narrow(at, name, value)),
        };
        let device = |name, number: io::Result<Option<u32>>| match kind {
            EntryKind::Character | EntryKind::Block => field(at, name, number).map(Option::unwrap_or_default),
            _ => Ok(0),
        };
        let old = header.as_old();
        let uid = number("uid", extensions.uid, blank_is_zero(&old.uid, header.uid()))?;
        let gid = number("gid", extensions.gid, blank_is_zero(&old.gid, header.gid()))?;
        let permissions = field(at, "mode", blank_is_zero(&old.mode, header.mode()))? & 0o7777;
        let mtime = blank_is_zero(&old.mtime, header.mtime());
        let seconds = || field(at, "mtime", mtime).map(|seconds| (seconds.cast_signed(), 0));
        Ok(Entry {
            kind,
            path: extensions.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: match extensions.link {
                Some(link) => link,
                None => header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
            },
            permissions: u16::try_from(permissions).unwrap_or_default(),
            uid,
            gid,
            mtime: extensions.mtime.map_or_else(seconds, Ok)?,
            device: (
                device("device number", blank_is_zero(number_at(header, 329), header.device_major()))?,
                device("device number", blank_is_zero(number_at(header, 337), header.device_minor()))?,
            ),
            xattrs: extensions.xattrs.into_iter().collect(),
            size,
            segments,
        })
    }

    /// The size of a file, and its pieces where it is sparse. What the stream has of the map before the data is read.
    fn sparse(
        &mut self,
        at: u64,
        header: &Header,
        extensions: &Extensions,
        stored: u64,
    ) -> Result<(u64, Option<Vec<Segment>>), StreamError> {
        let invalid = || StreamError::Sparse(at);
        let (size, segments) = if let Some(gnu) =
            header.as_gnu().filter(|_| header.entry_type().is_gnu_sparse())
        {
            let mut segments = Vec::new();
            for piece in gnu.sparse.iter().filter(|piece| !piece.is_empty()) {
                let segment = piece.offset().and_then(|start| Ok(Segment { start, length: piece.length()? }));
                segments.push(segment.map_err(|_| invalid())?);
            }
            let mut is_extended = gnu.is_extended();
            while is_extended {
                let mut more = tar::GnuExtSparseHeader::new();
                self.read_exact(more.as_mut_bytes())?;
                for piece in more.sparse.iter().filter(|piece| !piece.is_empty()) {
                    let segment =
                        piece.offset().and_then(|start| Ok(Segment { start, length: piece.length()? }));
                    segments.push(segment.map_err(|_| invalid())?);
                }
                if segments.len() > MAX_SEGMENTS {
                    return Err(invalid());
                }
                is_extended = more.is_extended();
            }
            (gnu.real_size().map_err(|_| invalid())?, segments)
        } else if extensions.sparse.has_map_in_data {
            let segments = self.sparse_map_in_data(at)?;
            (extensions.sparse.size.ok_or_else(invalid)?, segments)
        } else if let Some(segments) = &extensions.sparse.segments {
            (extensions.sparse.size.ok_or_else(invalid)?, segments.clone())
        } else {
            return Ok((stored, None));
        };
        let mut end = 0;
        let mut data = 0_u64;
        for segment in &segments {
            if segment.start < end {
                return Err(invalid());
            }
            end = segment.start.checked_add(segment.length).ok_or_else(invalid)?;
            data = data.checked_add(segment.length).ok_or_else(invalid)?;
        }
        if end > size || data > self.data_left || segments.len() > MAX_SEGMENTS {
            return Err(invalid());
        }
        Ok((size, Some(segments)))
    }

    /// The map of a sparse file of format 1.0: decimal numbers, a line each, in whole blocks before the data.
    fn sparse_map_in_data(&mut self, at: u64) -> Result<Vec<Segment>, StreamError> {
        let invalid = || StreamError::Sparse(at);
        let mut numbers = Vec::new();
        let mut digits = String::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; TAR_BLOCK];
            self.data_left = self.data_left.checked_sub(512).ok_or_else(invalid)?;
            self.read_exact(&mut block)?;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits.len() < 20 => digits.push(byte.into()),
                    b'\n' => {
                        let number: u64 = digits.parse().map_err(|_| invalid())?;
                        digits.clear();
                        numbers.push(number);
                        if let [count] = *numbers {
                            let count = usize::try_from(count).ok().filter(|count| *count <= MAX_SEGMENTS);
                            wanted = 1 + 2 * count.ok_or_else(invalid)?;
                        }
                    }
                    _ => return Err(invalid()),
                }
                if numbers.len() == wanted {
                    break;
                }
            }
        }
        let pairs = numbers.get(1..).unwrap_or_default().chunks_exact(2);
        let segment = |pair: &[u64]| match *pair {
            [start, length] => Some(Segment { start, length }),
            _ => None,
        };
        pairs.map(segment).collect::<Option<_>>().ok_or_else(invalid)
    }

    /// Reads data of the current entry; 0 at its end.
    ///
    /// # Errors
    ///
    /// [`StreamError`].
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        let most = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.read(buffer)?;
        if count == 0 {
            return Err(StreamError::Truncated(self.position));
        }
        self.data_left -= length(count);
        Ok(count)
    }

    fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = (512 - size % 512) % 512;
    }

    fn skip_data(&mut self) -> Result<(), StreamError> {
        self.data_left = self.data_left.saturating_add(std::mem::take(&mut self.padding));
        let mut buffer = vec![0; usize::try_from(self.data_left.min(64 << 10)).unwrap_or_default()];
        while self.read_data(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The next header; `None` at the end of the archive or the stream.
    fn header(&mut self) -> Result<Option<Header>, StreamError> {
        let at = self.position;
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read(rest)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(StreamError::Truncated(self.position)),
                count => filled += count,
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // Of all bytes, with spaces in place of the checksum itself (148..156).
        let sum = bytes.iter().enumerate().map(|(place, byte)| match place {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        });
        let sum: u32 = sum.sum();
        match header.cksum() {
            Ok(stored) if stored == sum => Ok(Some(header)),
            _ if at == 0 => Err(StreamError::NotTar),
            _ => Err(StreamError::Checksum(at)),
        }
    }

    /// The data of an extended header, of which the size has been checked.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, StreamError> {
        let mut body = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read_exact(&mut body)?;
        self.data_left = 0;
        Ok(body)
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), StreamError> {
        while !buffer.is_empty() {
            match self.read(buffer)? {
                0 => return Err(StreamError::Truncated(self.position)),
                count => buffer = buffer.get_mut(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StreamError::Read(error)),
                Ok(count) => {
                    self.position += length(count);
                    return Ok(count);
                }
            }
        }
    }
}

fn kind(header: &Header, path: Option<&[u8]>) -> EntryKind {
    match header.entry_type() {
        // Before POSIX, a directory was a file whose name ends with a slash.
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            // The header's own name is cut off where another one follows, maybe at a slash.
            let is_directory =
                path.map_or_else(|| header.path_bytes().ends_with(b"/"), |path| path.ends_with(b"/"));
            if is_directory { EntryKind::Directory } else { EntryKind::File }
        }
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink,
        EntryType::Link => EntryKind::HardLink,
        EntryType::Char => EntryKind::Character,
        EntryType::Block => EntryKind::Block,
        EntryType::Fifo => EntryKind::Fifo,
        _ => EntryKind::Other,
    }
}

/// A name from a block of its own: it ends with a zero.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn field<T>(at: u64, field: &'static str, value: io::Result<T>) -> Result<T, StreamError> {
    value.map_err(|_| StreamError::Field { at, field })
}

/// The size that a header says.
fn stored_size(header: &Header) -> io::Result<u64> {
    blank_is_zero(&header.as_old().size, header.entry_size())
}

/// A field that is not filled in is 0, as Go, docker and GNU tar read it.
fn blank_is_zero<T: Default>(bytes: &[u8], value: io::Result<T>) -> io::Result<T> {
    if bytes.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { value }
}

/// The eight bytes of a number of ustar's part of a header.
fn number_at(header: &Header, at: usize) -> &[u8] {
    header.as_bytes().get(at..at + 8).unwrap_or_default()
}

fn narrow(at: u64, field: &'static str, value: u64) -> Result<u32, StreamError> {
    u32::try_from(value).map_err(|_| StreamError::Field { at, field })
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As simple programs write headers: docker reads these.
    #[test]
    fn an_empty_field_is_zero() {
        let mut stream = Vec::new();
        for kind in [EntryType::Regular, EntryType::Char] {
            let mut header = Header::new_gnu();
            header.set_path("a").unwrap();
            header.set_entry_type(kind);
            header.set_cksum();
            stream.extend(header.as_bytes());
        }
        let mut stream = Stream::new(&stream[..]);
        let entry = stream.next().unwrap().unwrap();
        assert_eq!((entry.size, entry.uid, entry.gid, entry.permissions, entry.mtime), (0, 0, 0, 0, (0, 0)));
        assert_eq!(stream.next().unwrap().unwrap().device, (0, 0));
        assert!(stream.next().unwrap().is_none());
    }
}
