//! Names in tar streams, which are never paths of the host.

use thiserror::Error;

use crate::layout::MAX_NAME;
use crate::tree::{Kind, Node, NodeId, ROOT, Tree};

/// The most bytes of a whole name, as Linux has it (`PATH_MAX`, with the zero at the end).
pub const MAX_PATH: usize = 4095;
/// The most symbolic links that are followed on the way to a file, as Linux does.
const MAX_LINKS: usize = 40;

/// The most parts of links' targets that are followed on the way to a file: a million files behind forty links of two
/// thousand parts each would take an hour.
const MAX_LINK_PARTS: usize = 1024;

/// Why a name can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// More than Linux can open.
    #[error("the name has {0} bytes: a path can have up to {MAX_PATH}, and each part up to {MAX_NAME}")]
    TooLong(usize),
    /// It leaves the top directory.
    #[error("the name leads out of the layer")]
    Outside,
    /// There is a byte of zero in it.
    #[error("the name has a zero byte")]
    Zero,
    /// A directory on its way is something else, or a link that leads to nothing.
    #[error("{:?} is not a directory", String::from_utf8_lossy(.0))]
    NotADirectory(Vec<u8>),
    /// Links that lead to each other, or on for too long.
    #[error("too many symbolic links on the way")]
    Loop,
}

/// The parts of a name, without `.`, `..` and empty ones. A leading slash is the layer's own top.
pub fn parts(name: &[u8]) -> Result<Vec<&[u8]>, NameError> {
    if name.len() > MAX_PATH {
        return Err(NameError::TooLong(name.len()));
    }
    if name.contains(&0) {
        return Err(NameError::Zero);
    }
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(NameError::Outside)?;
            }
            _ if part.len() > MAX_NAME => return Err(NameError::TooLong(part.len())),
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

/// The directory that `parts` lead to, through symbolic links of the tree. Where it has none, one is made.
pub fn directory(tree: &mut Tree, parts: &[&[u8]]) -> Result<NodeId, NameError> {
    // What is still to go, the next part last, and whether it is of a link's target, which has to be there.
    let mut rest: Vec<(Box<[u8]>, bool)> = parts.iter().rev().map(|part| (Box::from(*part), false)).collect();
    let mut way = vec![ROOT];
    let (mut links, mut link_parts) = (0, 0);
    while let Some((part, is_target)) = rest.pop() {
        let here = way.last().copied().unwrap_or(ROOT);
        match &*part {
            b"" | b"." => continue,
            // As for a process whose root is the layer: above the top is the top.
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        match tree.child(here, &part) {
            None if is_target => return Err(NameError::NotADirectory(part.into())),
            None => {
                let id = tree.add(Node::implied_directory());
                tree.put(here, &part, id);
                way.push(id);
            }
            Some(id) => match tree.get(id).map(|node| &node.kind) {
                Some(Kind::Directory(_)) => way.push(id),
                Some(Kind::Whiteout) => {
                    // It hides a lower directory, and there are files of this layer in its place.
                    let made = tree.add(Node::implied_directory());
                    if let Some(directory) = tree.get_mut(made).and_then(Node::directory_mut) {
                        directory.is_opaque = true;
                    }
                    tree.put(here, &part, made);
                    way.push(made);
                }
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(NameError::Loop);
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    let before = rest.len();
                    rest.extend(target.split(|byte| *byte == b'/').rev().map(|part| (part.into(), true)));
                    link_parts += rest.len() - before;
                    if link_parts > MAX_LINK_PARTS {
                        return Err(NameError::Loop);
                    }
                }
                _ => return Err(NameError::NotADirectory(part.into())),
            },
        }
    }
    Ok(way.last().copied().unwrap_or(ROOT))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::tree::Meta;

    #[rstest]
    #[case(b"a/b", Ok(vec![&b"a"[..], b"b"]))]
    #[case(b"/a//./b/", Ok(vec![&b"a"[..], b"b"]))]
    #[case(b"a/../b", Ok(vec![&b"b"[..]]))]
    #[case(b"./", Ok(vec![]))]
    #[case(b"../a", Err(NameError::Outside))]
    #[case(b"a/../../b", Err(NameError::Outside))]
    #[case(b"a\0b", Err(NameError::Zero))]
    #[case(&[b'a'; 256], Err(NameError::TooLong(256)))]
    #[case(&[b'/'; 5000], Err(NameError::TooLong(5000)))]
    fn names_are_taken_apart(#[case] name: &[u8], #[case] expected: Result<Vec<&[u8]>, NameError>) {
        assert_eq!(parts(name), expected);
    }

    fn with_link(target: &[u8]) -> Tree {
        let mut tree = Tree::default();
        let usr = directory(&mut tree, &[b"usr", b"lib"]).unwrap();
        let link = tree.add(Node { meta: Meta::default(), kind: Kind::Symlink(target.into()) });
        tree.put(ROOT, b"lib", link);
        assert_eq!(tree.child(tree.child(ROOT, b"usr").unwrap(), b"lib"), Some(usr));
        tree
    }

    #[rstest]
    #[case(b"usr/lib", true)]
    #[case(b"/usr/lib", true)]
    #[case(b"../../usr/./lib/", true)]
    #[case(b"lib", false)]
    #[case(b"nothing/at/all", false)]
    fn links_on_the_way_stay_inside(#[case] target: &[u8], #[case] leads: bool) {
        let mut tree = with_link(target);
        let usr_lib = tree.child(tree.child(ROOT, b"usr").unwrap(), b"lib").unwrap();
        assert_eq!(directory(&mut tree, &[b"lib"]).ok() == Some(usr_lib), leads);
        // Below it, what is missing is made.
        let below = directory(&mut tree, &[b"lib", b"x", b"y"]).ok();
        assert_eq!(
            below.is_some() && below == directory(&mut tree, &[b"usr", b"lib", b"x", b"y"]).ok(),
            leads
        );
    }
}
