//! The feature bits and the config space of a network device (5.1.3, 5.1.4).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use super::mac::MacAddress;
use crate::virtio::rate_limit::RateLimits;

/// The most pairs of queues. Each has a thread.
pub const MAX_PAIRS: u16 = 16;
/// The least MTU that a device may name (5.1.4.1), which is also the least of a tap.
pub const MIN_MTU: u16 = 68;
/// The largest MTU of a tap: 64 KiB less an Ethernet header.
pub const MAX_MTU: u16 = 65521;

/// The size of each queue for packets: a few packets of 64 KiB in buffers of 1.5 KiB.
const PACKETS: u16 = 256;
/// The size of the control queue: a driver gives one command at a time.
const COMMANDS: u16 = 16;

/// The length of `struct virtio_net_config` up to and with `mtu`.
const LENGTH: usize = 12;

/// Offloads of packets to the guest: the feature bit, and the flag of a tap.
const GUEST_OFFLOADS: [(u32, u32); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];

/// Rate limits of a network device, for all of its queues together. Bytes are those of Ethernet frames, operations are
/// packets, where one that is still to be segmented counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetLimits {
    /// To the guest.
    pub receive: RateLimits,
    /// From the guest.
    pub transmit: RateLimits,
}

/// The settings of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetSettings {
    /// The MAC address.
    pub mac: MacAddress,
    /// The most bytes of a packet behind its Ethernet header, [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: Option<u16>,
    /// Rate limits.
    pub limits: NetLimits,
}

/// The offloads of a kind of backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offloads {
    /// None: packets are complete.
    None,
    /// Checksums and segmentation, and that of UDP if the kernel is new enough.
    Kernel { udp_segmentation: bool },
}

fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |all, number| all | 1 << number)
}

/// The feature bits of a device with `pairs` pairs of queues.
pub(super) fn features(settings: &NetSettings, offloads: Offloads, pairs: u16) -> u64 {
    let mut features = bits(&[
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_MAC_ADDR,
    ]);
    if settings.mtu.is_some() {
        features |= bits(&[VIRTIO_NET_F_MTU]);
    }
    if pairs > 1 {
        features |= bits(&[VIRTIO_NET_F_MQ]);
    }
    if let Offloads::Kernel { udp_segmentation } = offloads {
        features |= bits(&[
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_HOST_UFO,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_GUEST_UFO,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        ]);
        if udp_segmentation {
            features |= bits(&[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]);
        }
    }
    features
}

/// Those bits of `features` that are offloads of packets to the guest, which the driver can change by a command
/// (5.1.6.5.6).
pub(super) fn guest_offloads(features: u64) -> u64 {
    features & GUEST_OFFLOADS.iter().fold(0, |all, (bit, _)| all | 1 << bit)
}

/// The same offloads as flags of `TUNSETOFFLOAD`. All of them need the checksum (5.1.3.1).
pub(super) fn tap_offloads(offloads: u64) -> u32 {
    if offloads & bits(&[VIRTIO_NET_F_GUEST_CSUM]) == 0 {
        return 0;
    }
    let given = GUEST_OFFLOADS.iter().filter(|(bit, _)| offloads & bits(&[*bit]) != 0);
    let mut offloads = given.fold(0, |all, (_, flag)| all | flag);
    // The kernel takes this one only with either of the others.
    if offloads & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) == 0 {
        offloads &= !libc::TUN_F_TSO_ECN;
    }
    // As of 6.18, the kernel takes these two together only.
    let udp_segmentation = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if offloads & udp_segmentation != udp_segmentation {
        offloads &= !udp_segmentation;
    }
    offloads
}

/// Whether packets may come to the driver that are longer than the MTU.
pub(super) fn takes_long_packets(offloads: u64) -> bool {
    guest_offloads(offloads) & !bits(&[VIRTIO_NET_F_GUEST_CSUM]) != 0
}

/// The sizes of all queues: receive and transmit for each pair, then control.
pub(super) fn queue_sizes(pairs: u16) -> Vec<u16> {
    let mut sizes = vec![PACKETS; 2 * usize::from(pairs)];
    sizes.push(COMMANDS);
    sizes
}

/// The config space. Fields of features that aren't offered are zero.
pub(super) fn space(mac: MacAddress, link_is_up: bool, pairs: u16, mtu: Option<u16>) -> [u8; LENGTH] {
    let status = if link_is_up { VIRTIO_NET_S_LINK_UP } else { 0 };
    let mut space = [0; LENGTH];
    let fields = mac.bytes().into_iter();
    let fields = fields.chain(u16::try_from(status).unwrap_or(0).to_le_bytes()); // status
    let fields = fields.chain(pairs.to_le_bytes()); // max_virtqueue_pairs
    let fields = fields.chain(mtu.unwrap_or(0).to_le_bytes()); // mtu
    for (place, byte) in space.iter_mut().zip(fields) {
        *place = byte;
    }
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 5.1.3.1: what each feature needs one of.
    const NEEDS: [(u32, &[u32]); 15] = [
        (VIRTIO_NET_F_GUEST_TSO4, &[VIRTIO_NET_F_GUEST_CSUM]),
        (VIRTIO_NET_F_GUEST_TSO6, &[VIRTIO_NET_F_GUEST_CSUM]),
        (VIRTIO_NET_F_GUEST_ECN, &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]),
        (VIRTIO_NET_F_GUEST_UFO, &[VIRTIO_NET_F_GUEST_CSUM]),
        (VIRTIO_NET_F_GUEST_USO4, &[VIRTIO_NET_F_GUEST_CSUM]),
        (VIRTIO_NET_F_GUEST_USO6, &[VIRTIO_NET_F_GUEST_CSUM]),
        (VIRTIO_NET_F_HOST_TSO4, &[VIRTIO_NET_F_CSUM]),
        (VIRTIO_NET_F_HOST_TSO6, &[VIRTIO_NET_F_CSUM]),
        (VIRTIO_NET_F_HOST_ECN, &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]),
        (VIRTIO_NET_F_HOST_UFO, &[VIRTIO_NET_F_CSUM]),
        (VIRTIO_NET_F_HOST_USO, &[VIRTIO_NET_F_CSUM]),
        (VIRTIO_NET_F_MQ, &[VIRTIO_NET_F_CTRL_VQ]),
        (VIRTIO_NET_F_CTRL_MAC_ADDR, &[VIRTIO_NET_F_CTRL_VQ]),
        (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, &[VIRTIO_NET_F_CTRL_VQ]),
        (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, &[VIRTIO_NET_F_GUEST_CSUM]),
    ];

    #[test]
    fn no_feature_is_offered_without_what_it_needs() {
        let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
        let kernels = [false, true].map(|udp_segmentation| Offloads::Kernel { udp_segmentation });
        for offloads in kernels.into_iter().chain([Offloads::None]) {
            for pairs in [1, 2] {
                let offered =
                    features(&NetSettings { mac, mtu: None, limits: NetLimits::default() }, offloads, pairs);
                for (feature, needed) in NEEDS {
                    let has = offered & bits(&[feature]) != 0;
                    assert!(!has || offered & bits(needed) != 0, "{feature} with {offloads:?}");
                }
            }
        }
    }

    #[test]
    fn taps_get_flags_that_the_kernel_accepts() {
        let all = guest_offloads(u64::MAX);
        assert_eq!(tap_offloads(all), 0x7f);
        let with = |numbers: &[u32]| tap_offloads(bits(numbers));
        assert_eq!(with(&[VIRTIO_NET_F_GUEST_CSUM]), libc::TUN_F_CSUM);
        // None of these can be without a checksum, ...
        assert_eq!(with(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_UFO]), 0);
        // ... nor without the other.
        assert_eq!(with(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]), libc::TUN_F_CSUM);
        assert_eq!(with(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_USO4]), libc::TUN_F_CSUM);
        assert!(takes_long_packets(all) && !takes_long_packets(bits(&[VIRTIO_NET_F_GUEST_CSUM])));
    }
}
