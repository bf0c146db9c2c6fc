//! The feature bits and the config space of a block device (5.2.3, 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::disk::{Disk, SECTOR};

/// The most buffers with data that a request may have: with its header and status, as many as the queue has
/// descriptors. A MiB of a page in each takes two requests. A driver that does not know the limit uses one buffer.
pub(super) const SEG_MAX: u16 = 254;
/// The most bytes that a buffer with data may have.
pub(super) const SIZE_MAX: u32 = 64 << 10;
/// The most bytes that a request reads or writes, just under 16 MiB: a driver that keeps to [`SEG_MAX`] and
/// [`SIZE_MAX`] can't exceed it. More is answered with an error.
pub(super) const MAX_DATA: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// The most sectors that a request discards: 256 MiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 512 << 10;
/// The most sectors that a request zeroes: 8 MiB, as they may have to be written.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 16 << 10;
const _: () = assert!(MAX_WRITE_ZEROES_SECTORS as u64 * SECTOR <= MAX_DATA);
/// The ranges that a discard or a write-zeroes request has.
const RANGES: u32 = 1;
/// Discards of less than 4 KiB free nothing on most file systems.
const DISCARD_ALIGNMENT: u32 = 8;

/// The length of `struct virtio_blk_config` up to and with `write_zeroes_may_unmap` and its padding.
const LENGTH: usize = 60;

/// The feature bits that a device offers whose driver may write unless it is `read_only`.
pub(super) fn features(read_only: bool) -> u64 {
    let always = 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_FLUSH;
    if read_only {
        always | 1 << VIRTIO_BLK_F_RO
    } else {
        always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    }
}

/// The config space of such a device with `disk`; fields of features that are not offered are zero.
pub(super) fn space(disk: &Disk, read_only: bool) -> [u8; LENGTH] {
    let mut space = [0; LENGTH];
    let mut put = |offset: usize, value: &[u8]| {
        if let Some(place) = space.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(0, &disk.sectors().to_le_bytes()); // capacity
    put(8, &SIZE_MAX.to_le_bytes()); // size_max
    put(12, &u32::from(SEG_MAX).to_le_bytes()); // seg_max
    put(20, &disk.block_size.to_le_bytes()); // blk_size
    if !read_only {
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes()); // max_discard_sectors
        put(40, &RANGES.to_le_bytes()); // max_discard_seg
        put(44, &DISCARD_ALIGNMENT.to_le_bytes()); // discard_sector_alignment
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &RANGES.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
    }
    space
}
