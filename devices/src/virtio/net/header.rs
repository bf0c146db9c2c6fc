//! The header that every packet in a queue has (5.1.6).

/// The length of `struct virtio_net_hdr`, as all devices have it that are not legacy.
pub(super) const HEADER: usize = 12;
/// Where `flags` is in it: what is known of the checksum.
pub(super) const FLAGS: usize = 0;
/// Where `gso_type` is in it: into what kind of packets it is to be segmented.
pub(super) const GSO_TYPE: usize = 1;
/// Where `num_buffers` is in it.
pub(super) const NUM_BUFFERS: usize = 10;
/// What there is around a packet in an Ethernet frame: two addresses, a type, a VLAN tag.
pub(super) const FRAME_OVERHEAD: usize = 18;
/// The length of the longest frame with offloads: one IP packet of which the other side makes several.
pub(super) const MAX_FRAME: usize = (64 << 10) + FRAME_OVERHEAD;
