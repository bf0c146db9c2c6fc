//! The files of an archive, put aside until all of it has been read.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use erofs::{EntryKind, Stream};

use super::{Blob, Blobs, LoadError};
use crate::digest::{Digest, Hashed};
use crate::store::{Session, StoreError, create_file};

/// The most entries of an archive.
const MAX_ENTRIES: u64 = 16_384;
/// How many links may follow each other.
const MAX_LINKS: usize = 8;

/// Files of an archive. Their names are keys of a map and nothing else.
#[derive(Default)]
pub(super) struct Spool {
    names: HashMap<Vec<u8>, Named>,
    blobs: HashMap<Digest, Blob>,
}

enum Named {
    File(Digest),
    /// A link to this name.
    Link(Vec<u8>),
    /// What is named as a layer that the store has, and so was not put aside.
    Known(Digest),
}

impl Spool {
    /// Reads a whole archive, whose files become temporary files of the session.
    pub(super) fn read(session: &Session<'_>, input: impl Read) -> Result<Self, LoadError> {
        let mut stream = Stream::new(input);
        let mut spool = Self::default();
        let mut entries = 0;
        let mut left = session.store.max_unpacked();
        while let Some(entry) = stream.next()? {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(LoadError::Limit { what: "entries", most: MAX_ENTRIES });
            }
            // The files are layers, compressed or not.
            left = left.checked_sub(entry.size).ok_or_else(|| session.too_much())?;
            let Some(name) = normalized(b"", &entry.path) else { continue };
            let named = match entry.kind {
                EntryKind::File if entry.segments.is_none() => match known(session, &name) {
                    Some(diff_id) => Named::Known(diff_id),
                    None => Named::File(spool.put(session, &mut stream)?),
                },
                EntryKind::Symlink => {
                    let directory = name.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    let directory = name.get(..directory).unwrap_or_default();
                    let Some(target) = normalized(directory, &entry.link) else { continue };
                    Named::Link(target)
                }
                EntryKind::HardLink => match normalized(b"", &entry.link) {
                    Some(target) => Named::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            spool.names.insert(name, named);
        }
        Ok(spool)
    }

    /// Puts the current entry's data aside.
    fn put<R: Read>(&mut self, session: &Session<'_>, stream: &mut Stream<R>) -> Result<Digest, LoadError> {
        let path = session.temporary();
        let mut file = create_file(&path)?;
        let mut data = Hashed::new(Data { stream, error: None });
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match data.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    return Err(data.get_mut().error.take().map_or(LoadError::Read(error), LoadError::from));
                }
            };
            let written = file.write_all(buffer.get(..count).unwrap_or_default());
            written.map_err(|source| StoreError::Io { action: "write", path: path.clone(), source })?;
        }
        let (digest, size) = data.finish();
        match self.blobs.get(&digest) {
            // The same file twice, as old archives have it for links.
            Some(_) => drop(std::fs::remove_file(&path)),
            None => drop(self.blobs.insert(digest, Blob { path, size, is_ours: true })),
        }
        Ok(digest)
    }

    /// The file of this name, with links followed, and its digest.
    pub(super) fn named(&self, name: &str) -> Option<(Digest, Blob)> {
        match self.entry(name)? {
            Named::File(digest) => Some((*digest, self.blobs.get(digest)?.clone())),
            _ => None,
        }
    }

    /// Whether the file of this name was not put aside, as the store has the layer that it says it is.
    pub(super) fn is_known(&self, name: &str, diff_id: Digest) -> bool {
        matches!(self.entry(name), Some(Named::Known(known)) if *known == diff_id)
    }

    /// What has this name, with links followed.
    fn entry(&self, name: &str) -> Option<&Named> {
        let mut name = normalized(b"", name.as_bytes())?;
        for _ in 0..=MAX_LINKS {
            match self.names.get(&name)? {
                Named::Link(target) => name.clone_from(target),
                named => return Some(named),
            }
        }
        None
    }
}

impl Blobs for Spool {
    fn find(&self, digest: Digest) -> Result<Option<Blob>, LoadError> {
        Ok(self.blobs.get(&digest).cloned())
    }
}

/// The layer of the store that a file says it is by its name, as podman, skopeo and mvm name them.
fn known(session: &Session<'_>, name: &[u8]) -> Option<Digest> {
    let hex = name.strip_suffix(b".tar").and_then(|hex| std::str::from_utf8(hex).ok())?;
    let diff_id = Digest::from_hex(hex)?;
    session.store.layer(diff_id).ok()?.map(|_| diff_id)
}

/// An entry's data.
struct Data<'a, R> {
    stream: &'a mut Stream<R>,
    error: Option<erofs::StreamError>,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read_data(buffer).map_err(|error| {
            self.error = Some(error);
            io::Error::other("the archive can't be read")
        })
    }
}

/// A path from `directory` on without `.` and `..`; none if it leaves the archive.
fn normalized(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let directory: &[u8] = if path.starts_with(b"/") { b"" } else { directory };
    for part in directory.split(|byte| *byte == b'/').chain(path.split(|byte| *byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_archive() {
        let join = |directory: &str, path: &str| normalized(directory.as_bytes(), path.as_bytes());
        assert_eq!(join("", "./a//b").unwrap(), b"a/b");
        assert_eq!(join("a", "../b/layer.tar").unwrap(), b"b/layer.tar");
        assert_eq!(join("a", "/b").unwrap(), b"b");
        assert_eq!(join("a", "../../etc/passwd"), None);
    }
}
