//! Whether ports can be published. passt takes what it can of a range and keeps silent about the rest, so that mvm looks
//! first.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use thiserror::Error;

use crate::config::{Protocol, PublishConfig};

/// Why a port can't be published.
#[derive(Debug, Error)]
pub enum PortError {
    /// Somebody has it.
    #[error("port {port}/{protocol} of the host is in use: publish another, or see `ss -lp` for who has it")]
    Taken {
        /// The port.
        port: u16,
        /// What it is one of.
        protocol: Protocol,
    },
    /// A low one.
    #[error(
        "no permission to publish port {port}/{protocol}: ports below 1024 are root's, unless `sysctl \
         net.ipv4.ip_unprivileged_port_start` says otherwise"
    )]
    Permission {
        /// The port.
        port: u16,
        /// What it is one of.
        protocol: Protocol,
    },
    /// Another host's address.
    #[error("{0} is no address of this host, so that no port of it can be published: see `ip addr`")]
    Address(IpAddr),
    /// Whatever else the host refuses.
    #[error("cannot publish port {port}/{protocol}")]
    Host {
        /// The port.
        port: u16,
        /// What it is one of.
        protocol: Protocol,
        /// The host's refusal.
        #[source]
        source: io::Error,
    },
}

impl PortError {
    /// Whether the host is at fault, and not what it was asked for.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Permission { .. } | Self::Host { .. } => true,
            Self::Taken { .. } | Self::Address(_) => false,
        }
    }
}

/// Takes each of the host's ports for a moment.
pub(super) fn probe(publish: &PublishConfig) -> Result<(), PortError> {
    publish.host.clone().try_for_each(|port| match publish.address {
        Some(address) => take(address, port, publish.protocol),
        // All addresses of both kinds. A host without IPv6 has fewer.
        None => match take(Ipv6Addr::UNSPECIFIED.into(), port, publish.protocol) {
            Err(PortError::Address(_)) => take(Ipv4Addr::UNSPECIFIED.into(), port, publish.protocol),
            result => result,
        },
    })
}

fn take(address: IpAddr, port: u16, protocol: Protocol) -> Result<(), PortError> {
    let at = SocketAddr::new(address, port);
    let taken = match protocol {
        Protocol::Tcp => TcpListener::bind(at).map(drop),
        Protocol::Udp => UdpSocket::bind(at).map(drop),
    };
    taken.map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => PortError::Taken { port, protocol },
        Some(libc::EACCES) => PortError::Permission { port, protocol },
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => PortError::Address(address),
        _ => PortError::Host { port, protocol, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Result<(), PortError> {
        probe(&text.parse().unwrap())
    }

    #[test]
    fn a_port_that_is_taken_is_named_wherever_it_is_in_a_range() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        for text in
            [format!("{port}:80"), format!("127.0.0.1:{port}:80"), format!("0.0.0.0:{port}-{port}:80-80")]
        {
            let taken = publish(&text).unwrap_err();
            assert!(
                matches!(taken, PortError::Taken { port: named, protocol: Protocol::Tcp } if named == port)
            );
        }
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        assert!(matches!(publish(&format!("{port}:53/udp")), Err(PortError::Taken { .. })));
        drop(holder);
        publish(&format!("127.0.0.1:{port}:53/udp")).unwrap();
    }

    #[test]
    fn an_address_of_another_host_is_refused() {
        let error = publish("203.0.113.77:8080:80").unwrap_err();
        assert!(!error.is_the_hosts() && error.to_string().contains("203.0.113.77 is no address"), "{error}");
    }
}
