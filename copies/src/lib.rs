//! Trees of files as tar streams, and back.
//!
//! The same code works on both sides of `mvm cp`: the agent in a container's VM and mvm on the host. Neither trusts the
//! other, nor those who change files while they are copied: all work is done relative to open directories, no link is
//! followed on the way to a file that is read, and by [`unpack()`] only where [`Rules::follows_links`] says so. Nothing
//! that is read or written blocks as a FIFO does, and memory is bounded whatever a tree or a stream contains.
//!
//! [`Changes`] reads what an overlay file system has changed, as docker's `diff` and layers of images show it.

mod attributes;
mod changes;
mod error;
mod header;
mod pack;
mod place;
#[cfg(test)]
mod tests;
mod unpack;
mod walk;

pub use changes::{Change, ChangeKind, Changes, MTAB, pack_changes};
pub use error::{PackError, UnpackError};
pub use pack::{PackOptions, Packed, pack};
pub use unpack::{Owner, Rules, Unpacked, unpack};

/// The most bytes of a path in a tree: what Linux takes in one system call (`PATH_MAX`, without the zero).
pub const MAX_PATH: usize = 4095;
