//! A layer's image, from its tar stream.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};

use thiserror::Error;

use crate::data::DataWriter;
use crate::layout::{BLOCK, Xattr, encode_device};
use crate::metadata::{MAX_METADATA, Metadata, mark_directories};
use crate::names::{self, MAX_PATH, NameError};
use crate::pax::Segment;
use crate::stream::{Entry, EntryKind, Stream, StreamError};
use crate::tree::{Kind, Meta, Node, NodeId, ROOT, Tree};

/// What is read at once.
const CHUNK: usize = 256 << 10;
/// The most bytes that names, link targets and attributes of a layer have together.
const MAX_NAMES: u64 = 256 << 20;
/// What one name may add to the count of directories at most, though they are there already.
const MAX_PARTS: u64 = 2048;

/// How a layer hides a file of a lower one: a name that begins so (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// A file of this name hides all that lower layers have in its directory.
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Names that begin so were AUFS's own.
const AUFS: &[u8] = b".wh..wh.";

/// What a layer may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories and links, and directories that are only in the names of others.
    pub entries: u64,
    /// Bytes of files, with the holes of sparse ones.
    pub bytes: u64,
}

impl Default for Limits {
    /// 2^20 entries and 64 GiB.
    fn default() -> Self {
        Self { entries: 1 << 20, bytes: 64 << 30 }
    }
}

/// Why a layer can't be written.
#[derive(Debug, Error)]
pub enum LayerError {
    /// The stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// An entry that no file system could have.
    #[error("invalid entry {:?}", String::from_utf8_lossy(name))]
    Name {
        /// Its name, up to 80 bytes of it.
        name: Vec<u8>,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// A hard link to a file that the layer does not have.
    #[error(
        "{:?} is a hard link to {:?}, which is not a file of this layer before it",
        String::from_utf8_lossy(name),
        String::from_utf8_lossy(target)
    )]
    HardLink {
        /// The link, up to 80 bytes of its name.
        name: Vec<u8>,
        /// What it links to, likewise.
        target: Vec<u8>,
    },
    /// Too much in it.
    #[error("the layer has more than {most} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        most: u64,
    },
    /// The image can't be written.
    #[error("cannot write the layer's image")]
    Write(#[source] io::Error),
}

/// A layer that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Blocks of its image.
    pub blocks: u32,
    /// Entries of its stream.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Writes to `out`, an empty file, the image of the layer whose uncompressed tar stream is `tar`, of which it reads no
/// more than the last entry needs. Data goes to its final place as it comes; `out` is of no use if this fails.
///
/// The same stream and `uuid` make the same bytes.
///
/// # Errors
///
/// [`LayerError`]; what the stream contains is never more than an error.
pub fn write_layer(tar: impl Read, out: &File, uuid: [u8; 16], limits: &Limits) -> Result<Layer, LayerError> {
    write_layer_observed(tar, out, uuid, limits, &mut |_| {})
}

/// Data of a file that is about to be read from the stream, and where the image will have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of it, which are the next that are read from the stream.
    pub length: u64,
    /// The byte of the image at which it will be.
    pub at: u64,
}

/// [`write_layer`], which calls `observe` before it reads the data of a file. With what is not such data, and the
/// extents, the stream can be made again from the image.
///
/// # Errors
///
/// As [`write_layer`].
pub fn write_layer_observed(
    tar: impl Read,
    out: &File,
    uuid: [u8; 16],
    limits: &Limits,
    observe: &mut dyn FnMut(Extent),
) -> Result<Layer, LayerError> {
    let mut stream = Stream::new(tar);
    let mut builder = Builder {
        tree: Tree::default(),
        // The superblock is before it.
        data: DataWriter::new(out, 1),
        whiteouts: HashSet::new(),
        limits,
        observe,
        entries: 0,
        bytes: 0,
        names: 0,
        buffer: vec![0; CHUNK],
    };
    while let Some(entry) = stream.next()? {
        builder.add(entry, &mut stream)?;
    }
    let Builder { mut tree, mut data, entries, bytes, .. } = builder;
    data.flush().map_err(LayerError::Write)?;
    let data_blocks = data.position();
    mark_directories(&mut tree);
    let metadata = Metadata::lay_out(&tree);
    // No merge reads more.
    if metadata.blocks().saturating_mul(BLOCK) > MAX_METADATA {
        return Err(LayerError::Limit { what: "bytes of metadata", most: MAX_METADATA });
    }
    let too_large = || LayerError::Write(io::Error::other("the image has more than 2^32 blocks"));
    let at = u32::try_from(data_blocks).map_err(|_| too_large())?;
    let blocks = u32::try_from(data_blocks + metadata.blocks()).map_err(|_| too_large())?;
    metadata.write(out, at, blocks, &[0], uuid).map_err(LayerError::Write)?;
    out.set_len(u64::from(blocks) * BLOCK).map_err(LayerError::Write)?;
    Ok(Layer { blocks, entries, bytes })
}

struct Builder<'a> {
    tree: Tree,
    data: DataWriter<'a>,
    /// Names that the layer hides, by their directory. They may have a file of the layer as well.
    whiteouts: HashSet<(NodeId, Box<[u8]>)>,
    limits: &'a Limits,
    observe: &'a mut dyn FnMut(Extent),
    entries: u64,
    bytes: u64,
    /// Bytes of names and attributes.
    names: u64,
    buffer: Vec<u8>,
}

impl Builder<'_> {
    fn add<R: Read>(&mut self, entry: Entry, stream: &mut Stream<R>) -> Result<(), LayerError> {
        if entry.kind == EntryKind::Other {
            return Ok(());
        }
        self.count(&entry)?;
        let path = entry.path.clone();
        let invalid = |source| LayerError::Name { name: shortened(&path), source };
        let parts = names::parts(&path).map_err(invalid)?;
        let Some((&name, parents)) = parts.split_last() else {
            if entry.kind == EntryKind::Directory {
                self.set_directory(ROOT, meta(entry));
            }
            return Ok(());
        };
        let parent = names::directory(&mut self.tree, parents).map_err(invalid)?;
        if name == OPAQUE_WHITEOUT {
            if let Some(directory) = self.tree.get_mut(parent).and_then(Node::directory_mut) {
                directory.is_opaque = true;
            }
        } else if name.starts_with(AUFS) {
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            self.hide(parent, hidden);
        } else {
            self.put(entry, parent, name, stream)?;
        }
        Ok(())
    }

    fn count(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let exceeds = |count: u64, most: u64, what| {
            if count > most { Err(LayerError::Limit { what, most }) } else { Ok(()) }
        };
        self.entries += 1;
        exceeds(self.entries, self.limits.entries, "entries")?;
        let attributes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let names = entry.path.len() + entry.link.len() + attributes;
        self.names = self.names.saturating_add(u64::try_from(names).unwrap_or(u64::MAX));
        exceeds(self.names, MAX_NAMES, "bytes of names")?;
        // A directory that has no entry of its own is one of them as well: each part of a name may be one.
        let parts = entry.path.iter().filter(|byte| **byte == b'/').count();
        let nodes = u64::try_from(self.tree.len().saturating_add(parts)).unwrap_or(u64::MAX);
        exceeds(nodes.saturating_sub(MAX_PARTS), self.limits.entries, "entries")?;
        if entry.kind == EntryKind::File {
            self.bytes = self.bytes.saturating_add(entry.size);
            exceeds(self.bytes, self.limits.bytes, "bytes of files")?;
        }
        Ok(())
    }

    /// A file of the layer itself wins over a whiteout, whichever comes first.
    fn hide(&mut self, parent: NodeId, name: &[u8]) {
        if name.is_empty() || name == b"." || name == b".." {
            return;
        }
        self.whiteouts.insert((parent, name.into()));
        match self.tree.child(parent, name) {
            Some(id) => self.make_opaque(id),
            None => {
                let id = self.tree.add(Node { meta: Meta::default(), kind: Kind::Whiteout });
                self.tree.put(parent, name, id);
            }
        }
    }

    /// A directory that takes the place of a lower one does not show what that had in it.
    fn make_opaque(&mut self, id: NodeId) {
        if let Some(directory) = self.tree.get_mut(id).and_then(Node::directory_mut) {
            directory.is_opaque = true;
        }
    }

    fn set_directory(&mut self, id: NodeId, meta: Meta) {
        if let Some(node) = self.tree.get_mut(id) {
            node.meta = meta;
            if let Some(directory) = node.directory_mut() {
                directory.is_implied = false;
            }
        }
    }

    fn put<R: Read>(
        &mut self,
        mut entry: Entry,
        parent: NodeId,
        name: &[u8],
        stream: &mut Stream<R>,
    ) -> Result<(), LayerError> {
        let existing = self.tree.child(parent, name);
        let kind = match entry.kind {
            EntryKind::Directory => {
                let id = match existing.filter(|&id| self.tree.directory(id).is_some()) {
                    Some(id) => id,
                    None => self.tree.add(Node::implied_directory()),
                };
                self.set_directory(id, meta(entry));
                self.tree.put(parent, name, id);
                if self.whiteouts.contains(&(parent, name.into())) {
                    self.make_opaque(id);
                }
                return Ok(());
            }
            EntryKind::HardLink => {
                let target = self.find(&entry.link);
                let Some(id) = target else {
                    return Err(LayerError::HardLink {
                        name: shortened(&entry.path),
                        target: shortened(&entry.link),
                    });
                };
                self.tree.put(parent, name, id);
                return Ok(());
            }
            EntryKind::Symlink => {
                let target = std::mem::take(&mut entry.link);
                if target.is_empty() || target.len() > MAX_PATH {
                    let source = NameError::TooLong(target.len());
                    return Err(LayerError::Name { name: shortened(&entry.path), source });
                }
                Kind::Symlink(target.into())
            }
            EntryKind::Fifo => Kind::Fifo,
            // In an image, such a node would hide what a lower layer has.
            EntryKind::Character if entry.device == (0, 0) => return Ok(()),
            EntryKind::Character => Kind::Character(encode_device(entry.device.0, entry.device.1)),
            EntryKind::Block => Kind::Block(encode_device(entry.device.0, entry.device.1)),
            EntryKind::File | EntryKind::Other => self.write_file(&entry, stream)?,
        };
        let id = self.tree.add(Node { meta: meta(entry), kind });
        self.tree.put(parent, name, id);
        Ok(())
    }

    /// The file, not a directory, that the layer has by this name so far.
    fn find(&mut self, path: &[u8]) -> Option<NodeId> {
        let parts = names::parts(path).ok()?;
        let (name, parents) = parts.split_last()?;
        let parent = names::directory(&mut self.tree, parents).ok()?;
        let id = self.tree.child(parent, name)?;
        let node = self.tree.get(id)?;
        (!matches!(node.kind, Kind::Directory(_) | Kind::Whiteout)).then_some(id)
    }

    fn write_file<R: Read>(&mut self, entry: &Entry, stream: &mut Stream<R>) -> Result<Kind, LayerError> {
        let Ok(block) = u32::try_from(self.data.position()) else {
            return Err(LayerError::Write(io::Error::other("the image has more than 2^32 blocks")));
        };
        let whole = [Segment { start: 0, length: entry.size }];
        let mut position = 0;
        for segment in entry.segments.as_deref().unwrap_or(&whole) {
            self.data.append_zeros(segment.start - position).map_err(LayerError::Write)?;
            (self.observe)(Extent { length: segment.length, at: u64::from(block) * BLOCK + segment.start });
            self.copy(segment.length, stream)?;
            position = segment.start + segment.length;
        }
        self.data.append_zeros(entry.size - position).map_err(LayerError::Write)?;
        self.data.finish_file().map_err(LayerError::Write)?;
        Ok(Kind::File { size: entry.size, layer: 0, block })
    }

    fn copy<R: Read>(&mut self, mut left: u64, stream: &mut Stream<R>) -> Result<(), LayerError> {
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let count = stream.read_data(self.buffer.get_mut(..most).unwrap_or_default())?;
            if count == 0 {
                return Err(LayerError::Write(io::ErrorKind::UnexpectedEof.into()));
            }
            self.data.append(self.buffer.get(..count).unwrap_or_default()).map_err(LayerError::Write)?;
            left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

/// What an entry says of a file besides its data. Attributes that only an overlay file system may set are left out.
fn meta(entry: Entry) -> Meta {
    let xattrs = entry.xattrs.into_iter().filter(|(name, _)| !name.starts_with(b"trusted.overlay."));
    let xattrs = xattrs.map(|(name, value)| Xattr { name: name.into(), value: value.into() });
    Meta {
        permissions: entry.permissions,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: bounded(xattrs.filter(Xattr::can_be_stored).collect()),
    }
}

/// An inode's attributes have room for 256 KiB.
fn bounded(mut xattrs: Vec<Xattr>) -> Vec<Xattr> {
    const MOST: usize = 255 << 10;
    let mut used = 0;
    xattrs.retain(|xattr| {
        let size = 8 + xattr.name.len() + xattr.value.len();
        let fits = used + size <= MOST;
        used += if fits { size } else { 0 };
        fits
    });
    xattrs
}

/// The beginning of a name, for a message.
fn shortened(name: &[u8]) -> Vec<u8> {
    name.get(..80).unwrap_or(name).to_vec()
}
