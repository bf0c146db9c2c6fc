//! Writes a tree's inodes and directories.
//!
//! Inodes lie one behind the other, from a block that the superblock names; a NID is an inode's place there. Behind an
//! inode are its extended attributes and, where it fits into the same block, the end of a directory or the target of a
//! symbolic link. The whole blocks of large directories follow all inodes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::layout::{
    BLOCK, BLOCK_SIZE, Entry, INODE_SIZE, Inode, SLOT, Superblock, Xattr, directory_size, encode_directory,
    encode_xattrs, entry_type,
};
use crate::tree::{Kind, Node, NodeId, ROOT, Tree};

/// The most bytes of a layer's metadata: a million inodes with long names take a third of it.
pub const MAX_METADATA: u64 = 1 << 30;
/// What is written at once.
const CHUNK: usize = 1 << 20;
/// The slot of the first inode, the root's: number 0 is left free, as it stands for none in places.
const FIRST_SLOT: u64 = 2;

/// Where a node is written.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// In slots; 0 where no directory has the node.
    nid: u64,
    /// The block of what does not follow the inode, counted from the start of the metadata.
    block: u64,
    size: u64,
    is_inline: bool,
    links: u32,
    number: u32,
    parent: NodeId,
}

/// A tree with a place for each of its inodes.
pub struct Metadata<'a> {
    tree: &'a Tree,
    places: Vec<Place>,
    /// The nodes that are written, in their order.
    order: Vec<NodeId>,
    blocks: u64,
}

impl<'a> Metadata<'a> {
    /// Places all inodes of `tree`.
    pub fn lay_out(tree: &'a Tree) -> Self {
        let mut places = vec![Place::default(); tree.len()];
        let order = number(tree, &mut places);
        let mut offset = FIRST_SLOT * SLOT;
        for &id in &order {
            let (Some(node), Some(place)) = (tree.get(id), places.get_mut(id)) else { continue };
            place.size = size(node);
            let inode = length(INODE_SIZE + encode_xattrs(&node.meta.xattrs).len());
            let tail = match node.kind {
                Kind::Directory(_) | Kind::Symlink(_) => place.size % BLOCK,
                _ => 0,
            };
            let fits = |offset: u64| (offset + inode) % BLOCK + tail <= BLOCK;
            place.is_inline = tail > 0 && (fits(offset) || fits(offset.next_multiple_of(BLOCK)));
            if place.is_inline && !fits(offset) {
                offset = offset.next_multiple_of(BLOCK);
            }
            place.nid = offset / SLOT;
            offset += inode + if place.is_inline { tail } else { 0 };
            offset = offset.next_multiple_of(SLOT);
        }
        let mut blocks = offset.div_ceil(BLOCK);
        for &id in &order {
            let Some(place) = places.get_mut(id) else { continue };
            if matches!(tree.get(id).map(|node| &node.kind), Some(Kind::Directory(_) | Kind::Symlink(_))) {
                place.block = blocks;
                blocks += if place.is_inline { place.size / BLOCK } else { place.size.div_ceil(BLOCK) };
            }
        }
        Self { tree, places, order, blocks }
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Writes it to `out` from block `at` on, and the superblock of an image of `blocks` blocks. A file's data is at
    /// its own block, counted from the start of its layer, which `layers_at` says.
    ///
    /// # Errors
    ///
    /// Those of writing; a place has more than 32 bits.
    pub fn write(
        &self,
        out: &File,
        at: u32,
        blocks: u32,
        layers_at: &[u32],
        uuid: [u8; 16],
    ) -> io::Result<()> {
        let start = u64::from(at) * BLOCK;
        let mut inodes = Appender { out, at: start, buffer: Vec::with_capacity(CHUNK) };
        for &id in &self.order {
            let (Some(node), Some(place)) = (self.tree.get(id), self.places.get(id)) else { continue };
            inodes.pad_to(start + place.nid * SLOT)?;
            let data = self.data(id, node);
            let split = if place.is_inline { data.len() / BLOCK_SIZE * BLOCK_SIZE } else { data.len() };
            let (whole, tail) = data.split_at(split);
            let block = self.block(node, place, at, layers_at)?;
            if !whole.is_empty() {
                out.write_all_at(whole, u64::from(block) * BLOCK)?;
            }
            let xattrs = encode_xattrs(&node.meta.xattrs);
            let inode = Inode {
                is_inline: place.is_inline,
                xattr_bytes: xattrs.len(),
                mode: node.mode(),
                size: place.size,
                block,
                number: place.number,
                uid: node.meta.uid,
                gid: node.meta.gid,
                mtime: node.meta.mtime.0,
                nanoseconds: node.meta.mtime.1,
                links: place.links,
            };
            inodes.append(&inode.encode())?;
            inodes.append(&xattrs)?;
            inodes.append(tail)?;
        }
        inodes.flush()?;
        let root_nid = self.nid(ROOT).try_into().unwrap_or_default();
        let superblock =
            Superblock { root_nid, inodes: length(self.order.len()), blocks, meta_block: at, uuid };
        out.write_all_at(&superblock.encode(), 0)
    }

    /// What an inode has in the field for its first block.
    fn block(&self, node: &Node, place: &Place, at: u32, layers_at: &[u32]) -> io::Result<u32> {
        let too_large = || io::Error::other("the image has more than 2^32 blocks");
        match node.kind {
            Kind::Directory(_) | Kind::Symlink(_) => {
                let block = u32::try_from(place.block).ok().and_then(|block| at.checked_add(block));
                block.ok_or_else(too_large)
            }
            Kind::File { size: 0, .. } | Kind::Fifo | Kind::Whiteout => Ok(0),
            Kind::File { layer, block, .. } => {
                let base = layers_at.get(usize::from(layer)).copied().unwrap_or_default();
                base.checked_add(block).ok_or_else(too_large)
            }
            Kind::Character(device) | Kind::Block(device) => Ok(device),
        }
    }

    fn nid(&self, id: NodeId) -> u64 {
        self.places.get(id).map_or(0, |place| place.nid)
    }

    /// The data of a directory or symbolic link.
    fn data(&self, id: NodeId, node: &Node) -> Vec<u8> {
        let entries = match &node.kind {
            Kind::Symlink(target) => return target.to_vec(),
            Kind::Directory(directory) => &directory.entries,
            _ => return Vec::new(),
        };
        let parent = self.places.get(id).map_or(ROOT, |place| place.parent);
        let itself = [(&b"."[..], id), (&b".."[..], parent)];
        let children = entries.iter().map(|(name, &child)| (&**name, child));
        let mut sorted: Vec<_> = itself.into_iter().chain(children).collect();
        // `.` and `..` are not the first: `!` comes before them.
        sorted.sort_unstable();
        let entry = |(name, id)| Entry {
            name,
            nid: self.nid(id),
            kind: self.tree.get(id).map_or(0, |node| entry_type(node.mode())),
        };
        encode_directory(&sorted.into_iter().map(entry).collect::<Vec<_>>())
    }
}

/// Numbers the nodes that a directory has, counts their links, and returns them in the order of their places: a
/// directory's files together.
fn number(tree: &Tree, places: &mut [Place]) -> Vec<NodeId> {
    let mut order = vec![ROOT];
    let mut directories = std::collections::VecDeque::from([ROOT]);
    if let Some(root) = places.get_mut(ROOT) {
        (root.links, root.number) = (2, 1);
    }
    while let Some(parent) = directories.pop_front() {
        let Some(directory) = tree.directory(parent) else { continue };
        for &child in directory.entries.values() {
            let is_directory = tree.directory(child).is_some();
            let Some(place) = places.get_mut(child) else { continue };
            place.links = if is_directory { 2 } else { place.links.saturating_add(1) };
            if place.number == 0 {
                order.push(child);
                place.number = u32::try_from(order.len()).unwrap_or(u32::MAX);
            }
            if is_directory {
                place.parent = parent;
                directories.push_back(child);
                if let Some(parent) = places.get_mut(parent) {
                    parent.links = parent.links.saturating_add(1);
                }
            }
        }
    }
    order
}

fn size(node: &Node) -> u64 {
    match &node.kind {
        Kind::Directory(directory) => {
            let mut names: Vec<&[u8]> = directory.entries.keys().map(|name| &**name).collect();
            names.extend([&b"."[..], b".."]);
            names.sort_unstable();
            directory_size(names.into_iter().map(<[u8]>::len))
        }
        Kind::File { size, .. } => *size,
        Kind::Symlink(target) => length(target.len()),
        Kind::Character(_) | Kind::Block(_) | Kind::Fifo | Kind::Whiteout => 0,
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Writes bytes one behind the other.
struct Appender<'a> {
    out: &'a File,
    /// Where the buffer begins.
    at: u64,
    buffer: Vec<u8>,
}

impl Appender<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Fills up with zeros to `offset` of the file.
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let length = usize::try_from(offset - self.at).unwrap_or(usize::MAX);
        self.buffer.resize(length.max(self.buffer.len()), 0);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all_at(&self.buffer, self.at)?;
        self.at += length(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }
}

/// The attribute of a directory in a layer's image that hides what lower layers have in it.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// The attribute of a directory in a layer's image that was not in the layer's stream.
pub const IMPLIED: &[u8] = b"trusted.overlay.implied";

/// Turns what a layer's directories are into attributes of theirs, so that its image says it all.
pub fn mark_directories(tree: &mut Tree) {
    for id in 0..tree.len() {
        let Some(node) = tree.get_mut(id) else { continue };
        let Some(directory) = node.directory() else { continue };
        let marks = [(OPAQUE, directory.is_opaque), (IMPLIED, directory.is_implied)];
        for (name, _) in marks.into_iter().filter(|(_, is_set)| *is_set) {
            node.meta.xattrs.push(Xattr { name: name.into(), value: (*b"y").into() });
        }
    }
}
