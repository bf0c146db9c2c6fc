//! What a container is connected to, and the names and addresses that it gets.

use std::net::Ipv4Addr;
use std::str::FromStr;

use agent_protocol::{File, Network};
use serde::{Deserialize, Serialize};
use vmm::{InterfaceName, NetBackend, NetConfig, UserAddresses};

use crate::options::{OptionsError, RunOptions};

/// The addresses of a container's user network, which no other can see.
const ADDRESSES: UserAddresses = UserAddresses {
    guest: Ipv4Addr::new(10, 88, 0, 2),
    prefix: 24,
    router: Ipv4Addr::new(10, 88, 0, 1),
    resolver: Ipv4Addr::new(10, 88, 0, 3),
};

/// The interface in the container.
const INTERFACE: &str = "eth0";
/// In place of an address of --add-host: that of the host.
pub const HOST_GATEWAY: &str = "host-gateway";

/// What a container is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkOption {
    /// Nothing.
    #[default]
    None,
    /// The host's sockets, by passt, without root.
    User {
        /// Whether connections to the router's address, `host.docker.internal`, go to the host's loopback.
        reaches_host: bool,
    },
    /// A tap that exists.
    Tap(InterfaceName, StaticAddress),
    /// A tap that is made as a port of this bridge.
    Bridge(InterfaceName, StaticAddress),
}

/// A container's address in a network of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The bits of it that all addresses of the network have in common, 1 to 32.
    pub prefix: u8,
    /// The router to all others, if there is one.
    pub router: Option<Ipv4Addr>,
}

impl FromStr for NetworkOption {
    type Err = OptionsError;

    /// Reads `none`, `user`, `user,host`, or `tap=NAME` or `bridge=NAME` with `,ip=ADDRESS/PREFIX[,gateway=ADDRESS]`.
    /// Docker's `bridge` and `default` are `user`.
    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let unknown = || OptionsError::Network(text.to_owned());
        match text {
            "none" => return Ok(Self::None),
            "user" | "bridge" | "default" => return Ok(Self::User { reaches_host: false }),
            "user,host" => return Ok(Self::User { reaches_host: true }),
            // Docker's others.
            "host" => return Err(OptionsError::OthersNetwork(text.to_owned())),
            _ if text.starts_with("container:") => return Err(OptionsError::OthersNetwork(text.to_owned())),
            _ => {}
        }
        let mut words = text.split(',');
        let first = words.next().and_then(|word| word.split_once('='));
        let (kind, name) = first.filter(|(kind, _)| matches!(*kind, "tap" | "bridge")).ok_or_else(unknown)?;
        let name: InterfaceName = name.parse().map_err(|_| OptionsError::Interface(name.to_owned()))?;
        let (mut ip, mut router) = (None, None);
        for word in words {
            match word.split_once('=') {
                Some(("ip", text)) => ip = Some(subnet(text)?),
                Some(("gateway", text)) => router = Some(address(text)?),
                _ => return Err(OptionsError::NetworkWord(word.to_owned())),
            }
        }
        // There is no DHCP client in the VM.
        let (address, prefix) = ip.ok_or_else(|| OptionsError::NoAddress(text.to_owned()))?;
        let address = StaticAddress { address, prefix, router };
        Ok(if kind == "tap" { Self::Tap(name, address) } else { Self::Bridge(name, address) })
    }
}

fn address(text: &str) -> Result<Ipv4Addr, OptionsError> {
    let address: Option<Ipv4Addr> = text.parse().ok();
    let is_one = |address: &Ipv4Addr| !address.is_unspecified() && !address.is_multicast();
    address.filter(is_one).ok_or_else(|| OptionsError::Address(text.to_owned()))
}

/// Reads `ADDRESS/PREFIX`.
fn subnet(text: &str) -> Result<(Ipv4Addr, u8), OptionsError> {
    let invalid = || OptionsError::Address(text.to_owned());
    let (ip, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix)).ok_or_else(invalid)?;
    Ok((address(ip).map_err(|_| invalid())?, prefix))
}

impl NetworkOption {
    /// The container's address, its network's length, and the way to all others.
    fn place(&self) -> Option<StaticAddress> {
        match self {
            Self::None => None,
            Self::User { .. } => Some(StaticAddress {
                address: ADDRESSES.guest,
                prefix: ADDRESSES.prefix,
                router: Some(ADDRESSES.router),
            }),
            Self::Tap(_, address) | Self::Bridge(_, address) => Some(*address),
        }
    }
}

/// The address of a container with `options`, if it has one.
pub fn container_address(options: &RunOptions) -> Option<Ipv4Addr> {
    Some(options.network.place()?.address)
}

/// The VM's network device.
pub fn device(options: &RunOptions) -> Option<NetConfig> {
    let (backend, addresses) = match &options.network {
        NetworkOption::None => return None,
        NetworkOption::User { reaches_host } => {
            // Who names the host means to reach it.
            let reaches_host =
                *reaches_host || options.hosts.iter().any(|(_, address)| address == HOST_GATEWAY);
            (NetBackend::User { reaches_host }, Some(ADDRESSES))
        }
        NetworkOption::Tap(name, _) => (NetBackend::Tap(name.clone()), None),
        NetworkOption::Bridge(name, _) => (NetBackend::Bridge(name.clone()), None),
    };
    Some(NetConfig { backend, addresses, mac: options.mac, ..NetConfig::user() })
}

/// How the agent sets it up.
pub fn interface(options: &RunOptions) -> Option<Network> {
    let StaticAddress { address, prefix, router } = options.network.place()?;
    Some(Network {
        interface: INTERFACE.into(),
        address: address.octets(),
        prefix,
        router: router.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
    })
}

/// The files that say who is where.
///
/// # Errors
///
/// [`OptionsError::NoGateway`].
pub fn files(hostname: &str, options: &RunOptions) -> Result<Vec<File>, OptionsError> {
    let file = |path: &str, content: String| File { path: path.into(), content: content.into_bytes() };
    Ok(vec![
        file("/etc/hosts", hosts(hostname, options)?),
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/resolv.conf", resolvers(options)),
    ])
}

/// /etc/hosts.
///
/// # Errors
///
/// [`OptionsError::NoGateway`].
pub fn hosts(hostname: &str, options: &RunOptions) -> Result<String, OptionsError> {
    let mut hosts = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    let place = options.network.place();
    if let Some(StaticAddress { address, .. }) = place {
        let long = options.domain.as_ref().map(|domain| format!("{hostname}.{domain} ")).unwrap_or_default();
        hosts.push_str(&format!("{address}\t{long}{hostname}\n"));
    }
    if options.network == (NetworkOption::User { reaches_host: true }) {
        hosts.push_str(&format!("{}\thost.docker.internal\n", ADDRESSES.router));
    }
    for (name, address) in &options.hosts {
        if address == HOST_GATEWAY {
            let router = place.and_then(|place| place.router).ok_or(OptionsError::NoGateway)?;
            hosts.push_str(&format!("{router}\t{name}\n"));
        } else {
            hosts.push_str(&format!("{address}\t{name}\n"));
        }
    }
    Ok(hosts)
}

/// The container's resolvers: those that the user gives, or the network's own.
fn resolvers(options: &RunOptions) -> String {
    let own = match options.network {
        NetworkOption::User { .. } => Some(ADDRESSES.resolver.into()),
        _ => None,
    };
    let given = if options.dns.is_empty() { Vec::from_iter(own) } else { options.dns.clone() };
    let mut text = String::new();
    // Docker's way to say that there is none.
    let search: Vec<&str> =
        options.dns_search.iter().map(String::as_str).filter(|name| *name != ".").collect();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    for address in given {
        text.push_str(&format!("nameserver {address}\n"));
    }
    if !options.dns_options.is_empty() {
        text.push_str(&format!("options {}\n", options.dns_options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn bridge(router: Option<[u8; 4]>) -> NetworkOption {
        let (address, router) = ([192, 168, 1, 5].into(), router.map(Ipv4Addr::from));
        NetworkOption::Bridge("br0".parse().unwrap(), StaticAddress { address, prefix: 24, router })
    }

    #[rstest]
    #[case("none", NetworkOption::None)]
    #[case("bridge", NetworkOption::User { reaches_host: false })]
    #[case("user,host", NetworkOption::User { reaches_host: true })]
    #[case("bridge=br0,ip=192.168.1.5/24", bridge(None))]
    #[case("bridge=br0,ip=192.168.1.5/24,gateway=192.168.1.1", bridge(Some([192, 168, 1, 1])))]
    fn networks_are_read(#[case] text: &str, #[case] expected: NetworkOption) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("", "unknown network \"\"")]
    #[case("host", "use `user,host` to reach the host's loopback")]
    #[case("mynet", "unknown network \"mynet\"")]
    #[case("container:web", "and a pod for containers that share a network")]
    #[case("tap=", "invalid interface name \"\"")]
    #[case("tap=a/b,ip=10.0.0.2/8", "invalid interface name \"a/b\"")]
    #[case("tap=tap0", "needs the container's address")]
    #[case("tap=tap0,gateway=10.0.0.1", "needs the container's address")]
    #[case("tap=tap0,ip=10.0.0.2", "invalid address \"10.0.0.2\"")]
    #[case("tap=tap0,ip=10.0.0.2/33", "invalid address \"10.0.0.2/33\"")]
    #[case("tap=tap0,ip=10.0.0.2/0", "invalid address \"10.0.0.2/0\"")]
    #[case("tap=tap0,ip=fd00::2/64", "invalid address \"fd00::2/64\"")]
    #[case("tap=tap0,ip=10.0.0.2/8,gateway=x", "invalid address \"x\"")]
    #[case("tap=tap0,ip=10.0.0.2/8,mtu=1", "unknown word \"mtu=1\"")]
    fn other_networks_are_refused(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<NetworkOption>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    fn text(options: &RunOptions, path: &str) -> String {
        let files = files("box", options).unwrap();
        String::from_utf8(files.into_iter().find(|file| file.path == path).unwrap().content).unwrap()
    }

    #[test]
    fn names_are_in_the_files() {
        let options = RunOptions {
            network: NetworkOption::User { reaches_host: false },
            domain: Some("lan".into()),
            hosts: vec![("db".into(), "10.1.2.3".into()), ("up".into(), HOST_GATEWAY.into())],
            dns: vec!["9.9.9.9".parse().unwrap()],
            dns_search: vec!["a.example".into(), "b.example".into()],
            dns_options: vec!["ndots:2".into()],
            ..RunOptions::default()
        };
        let hosts = text(&options, "/etc/hosts");
        assert!(hosts.ends_with("10.88.0.2\tbox.lan box\n10.1.2.3\tdb\n10.88.0.1\tup\n"), "{hosts}");
        let expected = "search a.example b.example\nnameserver 9.9.9.9\noptions ndots:2\n";
        assert_eq!(text(&options, "/etc/resolv.conf"), expected);
        let device = device(&options).unwrap();
        assert_eq!(device.backend, NetBackend::User { reaches_host: true });
        let options = RunOptions { dns_search: vec![".".into()], ..RunOptions::default() };
        assert_eq!(text(&options, "/etc/resolv.conf"), "");
    }

    #[test]
    fn the_host_is_reached_through_a_router() {
        let hosts = vec![("up".into(), HOST_GATEWAY.into())];
        for network in [NetworkOption::None, bridge(None)] {
            let options = RunOptions { network, hosts: hosts.clone(), ..RunOptions::default() };
            assert_eq!(files("box", &options), Err(OptionsError::NoGateway));
        }
        let options = RunOptions { network: bridge(Some([192, 168, 1, 1])), hosts, ..RunOptions::default() };
        assert!(text(&options, "/etc/hosts").ends_with("192.168.1.5\tbox\n192.168.1.1\tup\n"));
        let interface = interface(&options).unwrap();
        assert_eq!((interface.address, interface.router), ([192, 168, 1, 5], [192, 168, 1, 1]));
    }
}
