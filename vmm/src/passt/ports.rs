//! Checks whether ports can be published. passt ignores those of a range that it can't bind, so mvm tries them first.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use thiserror::Error;

use crate::config::{Protocol, PublishConfig};

/// Why a port can't be published.
#[derive(Debug, Error)]
pub enum PortError {
    /// The port is in use.
    #[error(
        "port {port}/{protocol} of the host is in use: publish another; `ss -lp` shows the process that has it"
    )]
    Taken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// The port is privileged.
    #[error(
        "no permission to publish port {port}/{protocol}: use a port from 1024 on, or lower `sysctl \
         net.ipv4.ip_unprivileged_port_start`"
    )]
    Permission {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// The address is not one of this host.
    #[error("{0} is not an address of this host: publish on one of `ip addr`")]
    Address(IpAddr),
    /// Any other error of the host.
    #[error("cannot publish port {port}/{protocol}")]
    Host {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

impl PortError {
    /// Whether the cause is the host, not the configuration.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Permission { .. } | Self::Host { .. } => true,
            Self::Taken { .. } | Self::Address(_) => false,
        }
    }
}

/// Binds each of the host's ports for a moment.
pub(super) fn probe(publish: &PublishConfig) -> Result<(), PortError> {
    publish.host.clone().try_for_each(|port| match publish.address {
        Some(address) => take(address, port, publish.protocol),
        // All addresses of IPv4 and IPv6. A host may have no IPv6.
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
    fn a_port_in_use_is_named_wherever_it_is_in_a_range() {
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
        assert!(
            !error.is_the_hosts() && error.to_string().contains("203.0.113.77 is not an address"),
            "{error}"
        );
    }
}
