//! A tree of files in memory: what a layer contains, or several of them together.

use std::collections::BTreeMap;

use crate::layout::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, Xattr};

/// The index of a node in its tree.
pub type NodeId = usize;
/// The node of the top directory.
pub const ROOT: NodeId = 0;

/// Whose a file is, and what else `stat` says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permissions with the set-ID and sticky bits: the lower 12 bits.
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: Vec<Xattr>,
}

/// A directory's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    pub entries: BTreeMap<Box<[u8]>, NodeId>,
    /// What lower layers have in it is hidden.
    pub is_opaque: bool,
    /// It was not in the stream, only files below it: a lower layer's directory keeps its metadata.
    pub is_implied: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory(Directory),
    /// Its data begins at `block` of layer number `layer`.
    File {
        size: u64,
        layer: u16,
        block: u32,
    },
    Symlink(Box<[u8]>),
    Character(u32),
    Block(u32),
    Fifo,
    /// A lower layer's file of that name is hidden.
    Whiteout,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub meta: Meta,
    pub kind: Kind,
}

impl Node {
    /// A directory of root's, 0755, with nothing in it.
    pub fn implied_directory() -> Self {
        let meta = Meta { permissions: 0o755, ..Meta::default() };
        Self { meta, kind: Kind::Directory(Directory { is_implied: true, ..Directory::default() }) }
    }

    pub fn directory(&self) -> Option<&Directory> {
        match &self.kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub fn directory_mut(&mut self) -> Option<&mut Directory> {
        match &mut self.kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// Type and permissions as in `st_mode`.
    pub fn mode(&self) -> u16 {
        let kind = match &self.kind {
            Kind::Directory(_) => S_IFDIR,
            Kind::File { .. } => S_IFREG,
            Kind::Symlink(_) => S_IFLNK,
            Kind::Character(_) | Kind::Whiteout => S_IFCHR,
            Kind::Block(_) => S_IFBLK,
            Kind::Fifo => S_IFIFO,
        };
        kind | self.meta.permissions & 0o7777
    }
}

/// A tree. Nodes that no directory has any more are not written.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![Node::implied_directory()] }
    }
}

impl Tree {
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id)
    }

    pub fn directory(&self, id: NodeId) -> Option<&Directory> {
        self.get(id)?.directory()
    }

    pub fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// How many nodes were added.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(parent)?.entries.get(name).copied()
    }

    /// Makes `child` what `parent`, a directory, has by that name.
    pub fn put(&mut self, parent: NodeId, name: &[u8], child: NodeId) {
        if let Some(directory) = self.get_mut(parent).and_then(Node::directory_mut) {
            directory.entries.insert(name.into(), child);
        }
    }

    pub fn remove(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(directory) = self.get_mut(parent).and_then(Node::directory_mut) {
            directory.entries.remove(name);
        }
    }

    /// Lays `upper` over this tree, as a layer over those below it.
    pub fn overlay(&mut self, upper: &Self) {
        let mut copies = vec![None; upper.len()];
        let mut pending = vec![(ROOT, ROOT)];
        while let Some((below, above)) = pending.pop() {
            let Some(node) = upper.get(above) else { continue };
            let Some(directory) = node.directory() else { continue };
            let Some(ours) = self.get_mut(below) else { continue };
            let was_implied = ours.directory().is_some_and(|ours| ours.is_implied);
            if !directory.is_implied {
                ours.meta = node.meta.clone();
            }
            if let Some(ours) = ours.directory_mut() {
                ours.is_implied = was_implied && directory.is_implied;
                if directory.is_opaque {
                    ours.entries.clear();
                }
            }
            for (name, &child) in &directory.entries {
                match upper.get(child).map(|node| &node.kind) {
                    None => {}
                    Some(Kind::Whiteout) => self.remove(below, name),
                    Some(Kind::Directory(_)) => {
                        let existing = self.child(below, name);
                        let id = match existing.filter(|&id| self.directory(id).is_some()) {
                            Some(id) => id,
                            None => {
                                let id = self.add(Node::implied_directory());
                                self.put(below, name, id);
                                id
                            }
                        };
                        pending.push((id, child));
                    }
                    Some(_) => {
                        // Names of one file stay names of one file.
                        let copy = match copies.get(child).copied().flatten() {
                            Some(copy) => copy,
                            None => {
                                let Some(node) = upper.get(child).cloned() else { continue };
                                let copy = self.add(node);
                                if let Some(place) = copies.get_mut(child) {
                                    *place = Some(copy);
                                }
                                copy
                            }
                        };
                        self.put(below, name, copy);
                    }
                }
            }
        }
    }
}
