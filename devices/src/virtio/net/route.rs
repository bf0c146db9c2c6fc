//! Destinations that a router does not forward.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The length of the headers that have a frame's destination: Ethernet and IPv6.
pub(super) const ROUTED: usize = 54;

const ETHER_TYPE: std::ops::Range<usize> = 12..14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV4_DESTINATION: std::ops::Range<usize> = 30..34;
const IPV6: [u8; 2] = [0x86, 0xdd];
const IPV6_DESTINATION: std::ops::Range<usize> = 38..54;

/// Whether the frame that begins with `start` is for an address that means the sender's own host, and that no host
/// sends to a network (RFC 1122, 3.2.1.3; RFC 4291, 2.5.2 and 2.5.3). A user network makes connections of the packets,
/// and would connect to services on the host's loopback.
pub(super) fn is_for_the_host_itself(start: &[u8]) -> bool {
    let field = |range| start.get(range);
    match field(ETHER_TYPE) {
        Some(kind) if kind == IPV4 => address::<4>(field(IPV4_DESTINATION))
            .map(Ipv4Addr::from)
            .is_some_and(|to| to.is_loopback() || to.octets()[0] == 0),
        // Also IPv4-mapped and IPv4-compatible ones.
        Some(kind) if kind == IPV6 => address::<16>(field(IPV6_DESTINATION))
            .map(Ipv6Addr::from)
            .is_some_and(|to| to.to_ipv4().is_some()),
        _ => false,
    }
}

fn address<const LENGTH: usize>(field: Option<&[u8]>) -> Option<[u8; LENGTH]> {
    field?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rstest::rstest;

    use super::*;

    fn frame(to: &str) -> Vec<u8> {
        let mut frame = vec![0xff; 60];
        match to.parse().unwrap() {
            IpAddr::V4(to) => {
                frame[ETHER_TYPE].copy_from_slice(&IPV4);
                frame[IPV4_DESTINATION].copy_from_slice(&to.octets());
            }
            IpAddr::V6(to) => {
                frame[ETHER_TYPE].copy_from_slice(&IPV6);
                frame[IPV6_DESTINATION].copy_from_slice(&to.octets());
            }
        }
        frame
    }

    #[rstest]
    #[case("127.0.0.1", true)]
    #[case("127.255.255.255", true)]
    #[case("0.0.0.0", true)]
    #[case("0.1.2.3", true)]
    #[case("::1", true)]
    #[case("::", true)]
    #[case("::ffff:127.0.0.1", true)]
    #[case("::ffff:192.0.2.1", true)]
    #[case("::127.0.0.1", true)]
    #[case("128.0.0.1", false)]
    #[case("126.255.255.255", false)]
    #[case("192.0.2.1", false)]
    #[case("255.255.255.255", false)]
    #[case("224.0.0.1", false)]
    #[case("ff02::1", false)]
    #[case("fe80::1", false)]
    #[case("2001:db8::1", false)]
    #[case("64:ff9b::127.0.0.1", false)]
    fn addresses_of_the_host_itself(#[case] to: &str, #[case] expected: bool) {
        let frame = frame(to);
        assert_eq!(is_for_the_host_itself(&frame), expected);
        assert_eq!(is_for_the_host_itself(&frame[..ROUTED]), expected, "more is not looked at");
    }

    #[test]
    fn other_packets_and_truncated_ones_are_not() {
        let mut arp = frame("127.0.0.1");
        arp[ETHER_TYPE].copy_from_slice(&[0x08, 0x06]);
        assert!(!is_for_the_host_itself(&arp));
        for (to, needed) in [("127.0.0.1", 34), ("::1", 54)] {
            assert!(!(0..needed).any(|length| is_for_the_host_itself(&frame(to)[..length])));
        }
    }
}
