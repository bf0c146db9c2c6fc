//! The config space of a console (5.3.4).

use serde::{Deserialize, Serialize};

/// VIRTIO_CONSOLE_F_SIZE (5.3.3): columns and rows are valid.
pub(super) const F_SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_EMERG_WRITE (5.3.3): a byte written to the config space is output.
pub(super) const F_EMERG_WRITE: u64 = 1 << 2;

/// Where the emergency byte is written.
pub(super) const EMERGENCY_WRITE: u64 = 8;
/// Columns, rows, number of ports, emergency byte.
const LENGTH: usize = 12;

/// The size of the user's window in characters; zeros where there is no window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// The config space of a console of `size`. There is one port, whatever the field for their number says:
/// VIRTIO_CONSOLE_F_MULTIPORT is not offered.
pub(super) fn space(size: WindowSize) -> [u8; LENGTH] {
    let mut space = [0; LENGTH];
    for (field, value) in space.chunks_exact_mut(2).zip([size.columns, size.rows]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    space
}
