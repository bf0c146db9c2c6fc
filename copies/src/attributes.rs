//! Extended attributes of files that are open.

use std::os::fd::BorrowedFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, flistxattr_query, fsetxattr};

/// The most bytes of a file's names of attributes, and of the value of one (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MOST: usize = 64 << 10;
/// The most bytes of a file's attributes together: a stream has no more for all that precedes a file.
const MOST_TOGETHER: usize = 512 << 10;

/// Names and values of attributes.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Whether an attribute is the file's own, and not its file system's.
fn is_copied(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// Those of an open file that are copied; none where its file system has none.
pub fn read(file: BorrowedFd<'_>) -> Attributes {
    // Most files have none, which takes no space to learn.
    if flistxattr_query(file).is_ok_and(|length| length == 0) {
        return Vec::new();
    }
    let mut names = vec![0; MOST];
    let Ok(length) = flistxattr(file, &mut names[..]) else { return Vec::new() };
    names.truncate(length);
    let mut attributes = Vec::new();
    let mut value = vec![0; MOST];
    let mut together = 0_usize;
    for name in names.split(|byte| *byte == 0).filter(|name| is_copied(name) && !name.contains(&b'=')) {
        let Ok(length) = fgetxattr(file, name, &mut value[..]) else { continue };
        together = together.saturating_add(name.len()).saturating_add(length);
        if together > MOST_TOGETHER {
            break;
        }
        attributes.push((name.to_vec(), value.get(..length).unwrap_or_default().to_vec()));
    }
    attributes
}

/// Gives a file those attributes of `attributes` that it can have: who may not, or whose file system can't, does
/// without, as with docker.
pub fn write(file: BorrowedFd<'_>, attributes: &Attributes) {
    for (name, value) in attributes.iter().filter(|(name, _)| is_copied(name)) {
        let _ = fsetxattr(file, &name[..], value, XattrFlags::empty());
    }
}

/// Whether the overlay file system hides what a directory of a lower layer has.
pub fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0; 8];
    let length = fgetxattr(directory, "trusted.overlay.opaque", &mut value[..]);
    length.is_ok_and(|length| value.get(..length) == Some(b"y"))
}
