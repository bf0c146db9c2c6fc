//! The feature bits and the config space of a block device (5.2.3, 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::disk::Disk;

/// The most buffers with data that a request may have. A driver that knows of none gives one at a time.
pub(super) const SEG_MAX: u16 = 126;
/// The most sectors that one request discards: 4 GiB. To free blocks takes little time.
pub(super) const MAX_DISCARD_SECTORS: u32 = 8 << 20;
/// The most sectors that one request zeroes: 128 MiB, as they may have to be written.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 256 << 10;
/// The ranges that a discard or a write-zeroes request has.
const RANGES: u32 = 1;
/// Discards of less than 4 KiB free nothing on most file systems.
const DISCARD_ALIGNMENT: u32 = 8;

/// The length of `struct virtio_blk_config` up to and with `write_zeroes_may_unmap` and its padding.
const LENGTH: usize = 60;

/// The feature bits that a device with `disk` offers.
pub(super) fn features(disk: &Disk) -> u64 {
    let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
    if disk.read_only {
        always | 1 << VIRTIO_BLK_F_RO
    } else {
        always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    }
}

/// The config space of a device with `disk`; fields of features that aren't offered are zero.
pub(super) fn space(disk: &Disk) -> [u8; LENGTH] {
    let mut space = [0; LENGTH];
    let mut put = |offset: usize, value: &[u8]| {
        if let Some(place) = space.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(0, &disk.sectors.to_le_bytes()); // capacity
    put(12, &u32::from(SEG_MAX).to_le_bytes()); // seg_max
    put(20, &disk.block_size.to_le_bytes()); // blk_size
    if !disk.read_only {
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes()); // max_discard_sectors
        put(40, &RANGES.to_le_bytes()); // max_discard_seg
        put(44, &DISCARD_ALIGNMENT.to_le_bytes()); // discard_sector_alignment
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &RANGES.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
    }
    space
}
