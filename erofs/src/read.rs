//! Reads the tree of a layer's image that this crate wrote. A damaged image is an error.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::layout::{
    BLOCK, BLOCK_SIZE, INODE_SIZE, Inode, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, SLOT,
    Superblock, decode_directory, decode_xattrs,
};
use crate::merge::MergeError;
use crate::metadata::{IMPLIED, MAX_METADATA, OPAQUE};
use crate::tree::{Directory, Kind, Meta, Node, NodeId, ROOT, Tree};

/// A layer's image in memory, without the data of its files.
struct Image {
    superblock: Superblock,
    metadata: Vec<u8>,
    layer: u16,
    /// Bytes of the metadata that were not used yet. No two inodes share any.
    left: Cell<usize>,
}

/// Reads the tree of `file`, which is layer number `layer`. Returns how many blocks the image has, too.
pub fn read_layer(file: &File, layer: u16) -> Result<(Tree, u32), MergeError> {
    let damaged = || MergeError::Damaged { layer: layer.into() };
    let read = |source| MergeError::Read { layer: layer.into(), source };
    let mut first = vec![0; BLOCK_SIZE];
    file.read_exact_at(&mut first, 0).map_err(read)?;
    let superblock = Superblock::decode(&first).ok_or_else(damaged)?;
    let blocks = superblock.blocks.checked_sub(superblock.meta_block).ok_or_else(damaged)?;
    let bytes = u64::from(blocks) * BLOCK;
    if bytes > MAX_METADATA {
        return Err(damaged());
    }
    let mut metadata = vec![0; usize::try_from(bytes).map_err(|_| damaged())?];
    file.read_exact_at(&mut metadata, u64::from(superblock.meta_block) * BLOCK).map_err(read)?;
    let blocks = superblock.blocks;
    let left = Cell::new(metadata.len());
    let image = Image { superblock, metadata, layer, left };
    Ok((image.tree().ok_or_else(damaged)?, blocks))
}

impl Image {
    fn tree(&self) -> Option<Tree> {
        let mut tree = Tree::default();
        let mut known: HashMap<u64, NodeId> = HashMap::new();
        let root_nid = u64::from(self.superblock.root_nid);
        *tree.get_mut(ROOT)? = self.node(root_nid)?;
        tree.directory(ROOT)?;
        known.insert(root_nid, ROOT);
        let mut pending = vec![(root_nid, ROOT)];
        while let Some((nid, id)) = pending.pop() {
            for (name, child) in self.entries(nid)? {
                let known_id = known.get(&child).copied();
                // A directory has one name.
                if known_id.is_some_and(|id| tree.directory(id).is_some()) {
                    return None;
                }
                let child_id = match known_id {
                    Some(id) => id,
                    None => {
                        let added = tree.add(self.node(child)?);
                        known.insert(child, added);
                        if tree.directory(added).is_some() {
                            pending.push((child, added));
                        }
                        added
                    }
                };
                tree.put(id, &name, child_id);
            }
        }
        Some(tree)
    }

    /// Takes note of bytes that nothing else uses; `None` where an image has them several times.
    fn use_up(&self, bytes: usize) -> Option<()> {
        self.left.set(self.left.get().checked_sub(bytes)?);
        Some(())
    }

    fn inode(&self, nid: u64) -> Option<(Inode, usize)> {
        let at = usize::try_from(nid.checked_mul(SLOT)?).ok()?;
        Some((Inode::decode(self.metadata.get(at..at.checked_add(INODE_SIZE)?)?)?, at))
    }

    /// A file, or a directory without its entries.
    fn node(&self, nid: u64) -> Option<Node> {
        let (inode, at) = self.inode(nid)?;
        self.use_up(INODE_SIZE + inode.xattr_bytes)?;
        let xattrs_at = at + INODE_SIZE;
        let mut xattrs = decode_xattrs(self.metadata.get(xattrs_at..xattrs_at + inode.xattr_bytes)?)?;
        let mut take = |name: &[u8]| {
            let before = xattrs.len();
            xattrs.retain(|xattr| *xattr.name != *name);
            xattrs.len() < before
        };
        let kind = match inode.mode & S_IFMT {
            S_IFDIR => {
                let (is_opaque, is_implied) = (take(OPAQUE), take(IMPLIED));
                Kind::Directory(Directory { is_opaque, is_implied, ..Directory::default() })
            }
            S_IFREG => {
                let data = u64::from(inode.block).checked_add(inode.size.div_ceil(BLOCK))?;
                let is_inside = data <= u64::from(self.superblock.meta_block);
                (is_inside || inode.size == 0).then_some(())?;
                Kind::File { size: inode.size, layer: self.layer, block: inode.block }
            }
            S_IFLNK => Kind::Symlink(self.data(nid)?.into()),
            S_IFCHR if inode.block == 0 => Kind::Whiteout,
            S_IFCHR => Kind::Character(inode.block),
            S_IFBLK => Kind::Block(inode.block),
            S_IFIFO => Kind::Fifo,
            _ => return None,
        };
        let meta = Meta {
            permissions: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: (inode.mtime, inode.nanoseconds),
            xattrs,
        };
        Some(Node { meta, kind })
    }

    /// The data of a directory or symbolic link.
    fn data(&self, nid: u64) -> Option<Vec<u8>> {
        let (inode, at) = self.inode(nid)?;
        let size = usize::try_from(inode.size).ok()?;
        self.use_up(size)?;
        let tail = if inode.is_inline { size % BLOCK_SIZE } else { 0 };
        let mut data = Vec::new();
        if size > tail {
            let block = usize::try_from(inode.block.checked_sub(self.superblock.meta_block)?).ok()?;
            let start = block.checked_mul(BLOCK_SIZE)?;
            data.extend(self.metadata.get(start..start.checked_add(size - tail)?)?);
        }
        let tail_at = at + INODE_SIZE + inode.xattr_bytes;
        data.extend(self.metadata.get(tail_at..tail_at + tail)?);
        Some(data)
    }

    /// The entries of a directory but `.` and `..`.
    fn entries(&self, nid: u64) -> Option<Vec<(Box<[u8]>, u64)>> {
        let data = self.data(nid)?;
        let mut entries = Vec::new();
        for block in data.chunks(BLOCK_SIZE) {
            let read =
                decode_directory(block)?.into_iter().filter(|entry| !matches!(entry.name, b"." | b".."));
            entries.extend(read.map(|entry| (entry.name.into(), entry.nid)));
        }
        Some(entries)
    }
}
