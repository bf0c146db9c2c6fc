//! The serial number that a disk tells its guest.

use thiserror::Error;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

/// The serial number of a disk (VIRTIO_BLK_T_GET_ID, 5.2.6): up to 20 bytes. Linux shows it as
/// `/dev/disk/by-id/virtio-…`. Without one, the disk has no serial number; nothing of the host is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskId([u8; VIRTIO_BLK_ID_BYTES as usize]);

/// Why a text is not a valid disk ID.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the disk ID `{0}` has to be 1 to 20 letters, digits, `-`, `_` or `.`")]
pub struct DiskIdError(String);

impl DiskId {
    /// Makes an ID of `text`.
    ///
    /// # Errors
    ///
    /// [`DiskIdError`] where it is empty, has more than 20 bytes, or characters other than these.
    pub fn new(text: &str) -> Result<Self, DiskIdError> {
        let mut bytes = [0; VIRTIO_BLK_ID_BYTES as usize];
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match bytes.get_mut(..text.len()) {
            Some(place) if !text.is_empty() && text.chars().all(fits) => {
                place.copy_from_slice(text.as_bytes());
                Ok(Self(bytes))
            }
            _ => Err(DiskIdError(text.into())),
        }
    }

    /// The ID, padded with zeros.
    pub(in crate::virtio::block) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
