//! Published ports.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ConfigError, serde_as_text};

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A range of the guest's ports, published on as many ports of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublishConfig {
    /// The host's address that they are published on; all of its addresses if `None`.
    pub address: Option<IpAddr>,
    /// The host's ports, 1 to 65535, at least one.
    pub host: RangeInclusive<u16>,
    /// The guest's ports, as many.
    pub guest: RangeInclusive<u16>,
    /// The protocol of both.
    pub protocol: Protocol,
}

/// What is wrong with a published port.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// Not of that form.
    #[error("invalid port {0:?}: write [ADDRESS:]HOST:GUEST[/udp], as in 8080:80 or 127.0.0.1:8080:80")]
    Form(String),
    /// Not an address.
    #[error("invalid IP address {0:?} (write IPv6 addresses in brackets, as in [::1]:8080:80)")]
    Address(String),
    /// Not a port, nor a range of them.
    #[error("invalid port {0:?}: use a number from 1 to 65535, or a range as in 8000-8010")]
    Port(String),
    /// Not a protocol.
    #[error("unknown protocol {0:?}: use tcp or udp")]
    Protocol(String),
    /// Ranges of two lengths.
    #[error("invalid ports {0:?}: the ranges of host and guest differ in length")]
    Lengths(String),
    /// A port of the host for two ports of the guest.
    #[error("port {0}/{1} of the host is published twice")]
    Twice(u16, Protocol),
    /// No network that can publish ports.
    #[error("--publish needs a network of the kind user: add --net user")]
    NoUser,
}

impl FromStr for PublishConfig {
    type Err = ConfigError;

    /// Reads `[ADDRESS:]HOST:GUEST[/tcp|/udp]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Ok(read(text)?)
    }
}

fn read(text: &str) -> Result<PublishConfig, PublishError> {
    let form = || PublishError::Form(text.to_owned());
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::default()),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(PublishError::Protocol(other.to_owned())),
    };
    let (before, guest) = ports.rsplit_once(':').ok_or_else(form)?;
    let (address, host) = match before.rsplit_once(':') {
        None => (None, before),
        Some((address, host)) => (Some(read_address(address)?), host),
    };
    let (host, guest) = (read_ports(host)?, read_ports(guest)?);
    if host.len() != guest.len() {
        return Err(PublishError::Lengths(text.to_owned()));
    }
    Ok(PublishConfig { address, host, guest, protocol })
}

fn read_address(text: &str) -> Result<IpAddr, PublishError> {
    let address = match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::from),
        None => text.parse::<std::net::Ipv4Addr>().map(IpAddr::from),
    };
    address.map_err(|_| PublishError::Address(text.to_owned()))
}

/// Reads `PORT` or `FIRST-LAST`; `None` where it is neither, or a port is 0.
pub fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    // `parse` would take a sign.
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let port = |text: &str| text.parse().ok().filter(|port: &u16| is_number(text) && *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

fn read_ports(text: &str) -> Result<RangeInclusive<u16>, PublishError> {
    port_range(text).ok_or_else(|| PublishError::Port(text.to_owned()))
}

impl PublishConfig {
    /// A port of the host that is in both, even on different addresses: passt maps each port number to one port of the
    /// guest.
    fn shared_port(&self, other: &Self) -> Option<u16> {
        let (first, last) =
            (self.host.start().max(other.host.start()), self.host.end().min(other.host.end()));
        (self.protocol == other.protocol && first <= last).then_some(*first)
    }
}

/// Checks that no port of the host is published twice.
pub(super) fn check(published: &[PublishConfig]) -> Result<(), PublishError> {
    for (index, one) in published.iter().enumerate() {
        let twice = published.iter().take(index).find_map(|other| one.shared_port(other));
        if let Some(port) = twice {
            return Err(PublishError::Twice(port, one.protocol));
        }
    }
    Ok(())
}

/// Ports as the user writes them: one as a number, several as a range.
pub(crate) fn range(ports: &RangeInclusive<u16>) -> String {
    let (first, last) = (ports.start(), ports.end());
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

impl fmt::Display for PublishConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}:{}", range(&self.host), range(&self.guest))?;
        if self.protocol == Protocol::Udp { f.write_str("/udp") } else { Ok(()) }
    }
}

serde_as_text!(PublishConfig);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("8080:80", None, (8080, 8080), (80, 80), Protocol::Tcp)]
    #[case("8080:80/tcp", None, (8080, 8080), (80, 80), Protocol::Tcp)]
    #[case("53:53/udp", None, (53, 53), (53, 53), Protocol::Udp)]
    #[case("127.0.0.1:8080:80", Some("127.0.0.1"), (8080, 8080), (80, 80), Protocol::Tcp)]
    #[case("[::1]:8080:80/udp", Some("::1"), (8080, 8080), (80, 80), Protocol::Udp)]
    #[case("0.0.0.0:1:65535", Some("0.0.0.0"), (1, 1), (65535, 65535), Protocol::Tcp)]
    #[case("8000-8010:9000-9010", None, (8000, 8010), (9000, 9010), Protocol::Tcp)]
    fn ports_are_read(
        #[case] text: &str,
        #[case] address: Option<&str>,
        #[case] (first, last): (u16, u16),
        #[case] (guest_first, guest_last): (u16, u16),
        #[case] protocol: Protocol,
    ) {
        let address = address.map(|address| address.parse().unwrap());
        let expected =
            PublishConfig { address, host: first..=last, guest: guest_first..=guest_last, protocol };
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("", "invalid port \"\"")]
    #[case("80", "invalid port \"80\"")]
    #[case(":80", "invalid port \"\"")]
    #[case("80:", "invalid port \"\"")]
    #[case("0:80", "invalid port \"0\"")]
    #[case("8080:65536", "invalid port \"65536\"")]
    #[case("+80:80", "invalid port \"+80\"")]
    #[case("http:80", "invalid port \"http\"")]
    #[case("8010-8000:8010-8000", "invalid port \"8010-8000\"")]
    #[case("8000-:80", "invalid port \"8000-\"")]
    #[case("8000-8010:80", "differ in length")]
    #[case("8080:80/sctp", "unknown protocol \"sctp\"")]
    #[case("8080:80/", "unknown protocol \"\"")]
    #[case("localhost:8080:80", "invalid IP address \"localhost\"")]
    #[case(":8080:80", "invalid IP address \"\"")]
    #[case("::1:8080:80", "in brackets")]
    #[case("[127.0.0.1]:8080:80", "invalid IP address")]
    #[case("[::1:8080:80", "in brackets")]
    fn wrong_ports_are_refused(#[case] text: &str, #[case] expected: &str) {
        let error = text.parse::<PublishConfig>().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[rstest]
    #[case(&["8080:80", "8081:80", "8080:80/udp"], None)]
    #[case(&["8080:80", "8080:81"], Some((8080, Protocol::Tcp)))]
    #[case(&["127.0.0.1:53:53/udp", "[::1]:53:53/udp"], Some((53, Protocol::Udp)))]
    #[case(&["1-10:1-10", "20:20", "5-30:5-30"], Some((5, Protocol::Tcp)))]
    fn a_port_of_the_host_is_published_once(#[case] all: &[&str], #[case] expected: Option<(u16, Protocol)>) {
        let all: Vec<PublishConfig> = all.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(check(&all).err(), expected.map(|(port, protocol)| PublishError::Twice(port, protocol)));
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_what_was_written(
            address in proptest::option::of(any::<IpAddr>()), host in 1..=60_000_u16, guest in 1..=60_000_u16,
            more in 0..5000_u16, is_udp: bool,
        ) {
            let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
            let written =
                PublishConfig { address, host: host..=host + more, guest: guest..=guest + more, protocol };
            prop_assert_eq!(written.to_string().parse(), Ok(written));
        }

        #[test]
        fn whatever_is_read_is_written_back(text in "[0-9a-z:/\\[\\].-]{0,24}") {
            if let Ok(read) = text.parse::<PublishConfig>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
        }
    }
}
