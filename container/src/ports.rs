//! Ports that are published, in docker's forms: the host's ports are chosen where none are named.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm::{Protocol, PublishConfig, port_range};

use crate::image::ImageConfig;
use crate::options::RunOptions;

/// A range of the container's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposedPorts {
    /// The ports, at least one.
    pub ports: RangeInclusive<u16>,
    /// Their protocol.
    pub protocol: Protocol,
}

/// Ports of the container, and where the host has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address; all of its addresses if `None`.
    pub address: Option<IpAddr>,
    /// The host's ports; any that are free if `None`. For one port of the container it may be a range, of which the
    /// first that is free is taken.
    pub host: Option<RangeInclusive<u16>>,
    /// The container's ports.
    pub container: ExposedPorts,
}

/// What is wrong with a port.
#[derive(Debug, Error)]
pub enum PortsError {
    /// Not of that form.
    #[error(
        "invalid port {0:?}: write [[ADDRESS:]HOST:]PORT[/udp], as in 80, 8080:80, 127.0.0.1:8080:80 or 8000-8010:80"
    )]
    Form(String),
    /// Not a port, nor a range of them.
    #[error("invalid port {0:?}: use a number from 1 to 65535, or a range as in 8000-8010")]
    Port(String),
    /// Not a protocol.
    #[error("unknown protocol {0:?}: use tcp or udp")]
    Protocol(String),
    /// Not an IPv4 address.
    #[error(
        "invalid address {0:?} to publish on: use one of IPv4, as in 127.0.0.1 (the container has IPv4 only)"
    )]
    Address(String),
    /// Ranges of two lengths.
    #[error("invalid ports {0:?}: the ranges of host and container differ in length")]
    Lengths(String),
    /// None of a range is free.
    #[error("no port of {first}-{last}/{protocol} is free on the host: publish others")]
    NoneFree {
        /// The first of the range.
        first: u16,
        /// The last of it.
        last: u16,
        /// Their protocol.
        protocol: Protocol,
    },
    /// The host has none.
    #[error("cannot find a free port of the host")]
    Host(#[source] io::Error),
}

impl FromStr for ExposedPorts {
    type Err = PortsError;

    /// Reads `PORT`, `FIRST-LAST`, and either with `/tcp` or `/udp`.
    fn from_str(text: &str) -> Result<Self, PortsError> {
        let (ports, protocol) = protocol(text)?;
        Ok(Self { ports: range(ports)?, protocol })
    }
}

fn protocol(text: &str) -> Result<(&str, Protocol), PortsError> {
    match text.rsplit_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((ports, word)) if word.eq_ignore_ascii_case("tcp") => Ok((ports, Protocol::Tcp)),
        Some((ports, word)) if word.eq_ignore_ascii_case("udp") => Ok((ports, Protocol::Udp)),
        Some((_, other)) => Err(PortsError::Protocol(other.to_owned())),
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, PortsError> {
    port_range(text).ok_or_else(|| PortsError::Port(text.to_owned()))
}

impl FromStr for PortMapping {
    type Err = PortsError;

    /// Reads `[[ADDRESS:][HOST]:]PORT[/tcp|/udp]`, where HOST and PORT are ports or ranges of them.
    fn from_str(text: &str) -> Result<Self, PortsError> {
        let (ports, protocol) = protocol(text)?;
        let (before, container) = match ports.rsplit_once(':') {
            None => (None, ports),
            Some((before, container)) => (Some(before), container),
        };
        let (address, host) = match before.and_then(|before| before.rsplit_once(':')) {
            None => (None, before),
            Some((address, host)) => (Some(address), Some(host)),
        };
        let address = address.map(|text| {
            let address: Option<Ipv4Addr> = text.parse().ok();
            address.map(IpAddr::V4).ok_or_else(|| PortsError::Address(text.to_owned()))
        });
        if container.is_empty() {
            return Err(PortsError::Form(text.to_owned()));
        }
        let container = ExposedPorts { ports: range(container)?, protocol };
        let host = host.filter(|host| !host.is_empty()).map(range).transpose()?;
        let is_as_long = |host: &RangeInclusive<u16>| host.len() == container.ports.len();
        if container.ports.len() > 1 && host.as_ref().is_some_and(|host| !is_as_long(host)) {
            return Err(PortsError::Lengths(text.to_owned()));
        }
        Ok(Self { address: address.transpose()?, host, container })
    }
}

/// Ports of the host that were chosen are held until all are, so that none is chosen twice.
#[derive(Default)]
struct Held {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Held {
    /// Takes `port` of the host, or any if it is 0.
    fn take(&mut self, address: Option<IpAddr>, port: u16, protocol: Protocol) -> io::Result<u16> {
        let Some(address) = address else {
            // All addresses of IPv4 and IPv6. A host may have no IPv6.
            let all = self.take(Some(Ipv6Addr::UNSPECIFIED.into()), port, protocol);
            return match all {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    self.take(Some(Ipv4Addr::UNSPECIFIED.into()), port, protocol)
                }
                result => result,
            };
        };
        let at = SocketAddr::new(address, port);
        Ok(match protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind(at)?;
                let port = socket.local_addr()?.port();
                self.tcp.push(socket);
                port
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(at)?;
                let port = socket.local_addr()?.port();
                self.udp.push(socket);
                port
            }
        })
    }
}

/// The ports that a container of this image has published.
///
/// # Errors
///
/// [`PortsError`].
pub fn of(options: &RunOptions, image: &ImageConfig) -> Result<Vec<PublishConfig>, PortsError> {
    // What an image says in another form is of no use, and no reason not to run it.
    let of_image = image.exposed.iter().filter_map(|text| text.parse().ok());
    let exposed: Vec<ExposedPorts> = of_image.chain(options.exposed.iter().cloned()).collect();
    resolve(&options.publish, &exposed, options.publish_all)
}

/// The ports of the host for `published`.
///
/// # Errors
///
/// [`PortsError`].
pub fn publish(published: &[PortMapping]) -> Result<Vec<PublishConfig>, PortsError> {
    resolve(published, &[], false)
}

/// The ports of the host for `published` and, if `all`, for those of `exposed` that are not published otherwise.
///
/// # Errors
///
/// [`PortsError::NoneFree`] and [`PortsError::Host`].
fn resolve(
    published: &[PortMapping],
    exposed: &[ExposedPorts],
    all: bool,
) -> Result<Vec<PublishConfig>, PortsError> {
    let mut held = Held::default();
    let mut resolved = Vec::new();
    for PortMapping { address, host, container } in published {
        let ExposedPorts { ports, protocol } = container;
        let mut publish = |host: RangeInclusive<u16>, guest: RangeInclusive<u16>| {
            resolved.push(PublishConfig { address: *address, host, guest, protocol: *protocol });
        };
        match host {
            Some(host) if host.len() == ports.len() => publish(host.clone(), ports.clone()),
            Some(host) => {
                let free = host.clone().find(|port| held.take(*address, *port, *protocol).is_ok());
                let (first, last, protocol) = (*host.start(), *host.end(), *protocol);
                let free = free.ok_or(PortsError::NoneFree { first, last, protocol })?;
                publish(free..=free, ports.clone());
            }
            None => {
                for port in ports.clone() {
                    let free = held.take(*address, 0, *protocol).map_err(PortsError::Host)?;
                    publish(free..=free, port..=port);
                }
            }
        }
    }
    for ExposedPorts { ports, protocol } in exposed.iter().filter(|_| all) {
        for port in ports.clone() {
            let has = |known: &PublishConfig| known.protocol == *protocol && known.guest.contains(&port);
            if resolved.iter().any(has) {
                continue;
            }
            let free = held.take(None, 0, *protocol).map_err(PortsError::Host)?;
            let (host, guest) = (free..=free, port..=port);
            resolved.push(PublishConfig { address: None, host, guest, protocol: *protocol });
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("80", None, None, (80, 80), Protocol::Tcp)]
    #[case("53/udp", None, None, (53, 53), Protocol::Udp)]
    #[case("8000-8003", None, None, (8000, 8003), Protocol::Tcp)]
    #[case("8080:80", None, Some((8080, 8080)), (80, 80), Protocol::Tcp)]
    #[case("8080:80/TCP", None, Some((8080, 8080)), (80, 80), Protocol::Tcp)]
    #[case(":80", None, None, (80, 80), Protocol::Tcp)]
    #[case("127.0.0.1::80", Some("127.0.0.1"), None, (80, 80), Protocol::Tcp)]
    #[case("127.0.0.1:8080:80", Some("127.0.0.1"), Some((8080, 8080)), (80, 80), Protocol::Tcp)]
    #[case("8000-8010:80", None, Some((8000, 8010)), (80, 80), Protocol::Tcp)]
    #[case("0.0.0.0:8000-8010:9000-9010/udp", Some("0.0.0.0"), Some((8000, 8010)), (9000, 9010), Protocol::Udp)]
    fn ports_are_read_as_docker_reads_them(
        #[case] text: &str,
        #[case] address: Option<&str>,
        #[case] host: Option<(u16, u16)>,
        #[case] (first, last): (u16, u16),
        #[case] protocol: Protocol,
    ) {
        let expected = PortMapping {
            address: address.map(|address| address.parse().unwrap()),
            host: host.map(|(first, last)| first..=last),
            container: ExposedPorts { ports: first..=last, protocol },
        };
        assert_eq!(text.parse::<PortMapping>().unwrap(), expected);
    }

    #[rstest]
    #[case("", "invalid port \"\"")]
    #[case("80:", "invalid port \"80:\"")]
    #[case("0", "invalid port \"0\"")]
    #[case("http:80", "invalid port \"http\"")]
    #[case("+80", "invalid port \"+80\"")]
    #[case("8010-8000:80", "invalid port \"8010-8000\"")]
    #[case("80:8000-8010", "differ in length")]
    #[case("1-2:8000-8010", "differ in length")]
    #[case("80/sctp", "unknown protocol \"sctp\"")]
    #[case("[::1]:8080:80", "IPv4 only")]
    #[case("localhost:8080:80", "invalid address \"localhost\"")]
    fn other_ports_are_refused(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<PortMapping>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    fn exposed(text: &str) -> ExposedPorts {
        text.parse().unwrap()
    }

    #[test]
    fn free_ports_of_the_host_are_chosen_and_none_twice() {
        let published = ["127.0.0.1::80", "9000-9002", "1-1:1-1"].map(|text| text.parse().unwrap());
        let exposed = [exposed("80"), exposed("53/udp"), exposed("80/udp")];
        let resolved = resolve(&published, &exposed, true).unwrap();
        let guests: Vec<_> = resolved.iter().map(|one| (*one.guest.start(), one.protocol)).collect();
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        assert_eq!(
            guests,
            [(80, tcp), (9000, tcp), (9001, tcp), (9002, tcp), (1, tcp), (53, udp), (80, udp)]
        );
        let mut hosts: Vec<_> = resolved.iter().map(|one| (one.protocol == udp, *one.host.start())).collect();
        hosts.sort_unstable();
        hosts.dedup();
        assert_eq!(hosts.len(), resolved.len());
        assert_eq!(resolve(&published, &exposed, false).unwrap().len(), 5);
    }

    #[test]
    fn the_first_free_port_of_a_range_is_taken() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().port();
        let of = |text: String| resolve(&[text.parse().unwrap()], &[], false);
        assert!(of(format!("127.0.0.1:{taken}-{taken}:80")).is_ok(), "one port for one is the user's choice");
        let last = taken.saturating_add(40);
        let resolved = of(format!("127.0.0.1:{taken}-{last}:80")).unwrap();
        assert!((taken + 1..=last).contains(resolved[0].host.start()));
    }
}
