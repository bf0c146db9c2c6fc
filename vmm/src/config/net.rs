//! Network devices.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use devices::virtio::net::{
    InterfaceName, InterfaceNameError, MAX_MTU, MAX_PAIRS, MIN_MTU, MacAddress, MacAddressError, NetLimits,
};
use devices::virtio::rate_limit::RateLimits;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::limit::{Bandwidth, Rate};
use super::words::{double_commas, split_at_single_commas};
use super::{ConfigError, serde_as_text};

/// What a network device is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// A tap that exists.
    Tap(InterfaceName),
    /// A tap that is made for the VM as a port of this bridge.
    Bridge(InterfaceName),
    /// The host's sockets, by a process (passt) that needs no privileges.
    User {
        /// Whether connections to the router's address go to the host's loopback.
        reaches_host: bool,
    },
}

/// The addresses of a user network, for a guest that is told them and does not ask by DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserAddresses {
    /// The guest's.
    pub guest: Ipv4Addr,
    /// The bits of it that all addresses of the network have in common.
    pub prefix: u8,
    /// The router's.
    pub router: Ipv4Addr,
    /// The resolver's, which passes questions on to the host's.
    pub resolver: Ipv4Addr,
}

/// A network device of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetConfig {
    /// What it is connected to.
    pub backend: NetBackend,
    /// The MAC address; random if `None`.
    pub mac: Option<MacAddress>,
    /// The number of queue pairs, 1 to [`MAX_PAIRS`].
    pub queues: u16,
    /// The addresses of a user network; those of the host if `None`. They have no text form.
    pub addresses: Option<UserAddresses>,
    /// The MTU in bytes, [`MIN_MTU`] to [`MAX_MTU`]; that of the backend if `None`.
    pub mtu: Option<u16>,
    /// Rate limits.
    pub limits: NetLimits,
}

impl NetConfig {
    /// Whether it is connected to the host's sockets, by which ports can be published.
    pub fn is_user(&self) -> bool {
        matches!(self.backend, NetBackend::User { .. })
    }
}

/// What is wrong with a network device's options.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NetConfigError {
    /// No backend.
    #[error("invalid network {0:?}: write tap=NAME, bridge=NAME or user")]
    Backend(String),
    /// An unknown option.
    #[error(
        "unknown network option {0:?}; valid options: mac=ADDRESS, queues=N, mtu=N, limit-rx=RATE, limit-tx=RATE, \
         limit-rx-pps=RATE, limit-tx-pps=RATE, and no-host with user"
    )]
    Option(String),
    /// The name of a tap or a bridge.
    #[error(transparent)]
    Name(#[from] InterfaceNameError),
    /// The MAC address.
    #[error(transparent)]
    Mac(#[from] MacAddressError),
    /// The count of queues.
    #[error("invalid queues={0}: use 1 to {MAX_PAIRS}")]
    Queues(String),
    /// Several queues without a tap.
    #[error("queues= needs a tap or a bridge: user has one queue")]
    UserQueues,
    /// `no-host` with a tap.
    #[error("no-host works with user only: limit a tap by the host's firewall")]
    NoHost,
    /// The MTU.
    #[error("invalid mtu={0}: use {MIN_MTU} to {MAX_MTU}")]
    Mtu(String),
}

impl NetConfig {
    /// `backend` with default options.
    fn of(backend: NetBackend) -> Self {
        Self { backend, mac: None, queues: 1, addresses: None, mtu: None, limits: NetLimits::default() }
    }

    /// A user network with default options.
    pub fn user() -> Self {
        Self::of(NetBackend::User { reaches_host: true })
    }
}

impl FromStr for NetConfig {
    type Err = ConfigError;

    /// Reads `tap=NAME|bridge=NAME|user[,mac=ADDRESS][,queues=N][,mtu=N][,no-host][,limit-rx=RATE]…`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        read(text)
    }
}

fn read(text: &str) -> Result<NetConfig, ConfigError> {
    let mut words = split_at_single_commas(text).into_iter();
    let first = words.next().unwrap_or_default();
    let backend = match first.split_once('=') {
        Some(("tap", name)) => NetBackend::Tap(name.parse().map_err(NetConfigError::Name)?),
        Some(("bridge", name)) => NetBackend::Bridge(name.parse().map_err(NetConfigError::Name)?),
        None if first == "user" => NetBackend::User { reaches_host: true },
        _ => return Err(NetConfigError::Backend(first).into()),
    };
    let mut net = NetConfig::of(backend);
    for word in words {
        match word.split_once('=') {
            Some(("mac", address)) => net.mac = Some(address.parse().map_err(NetConfigError::Mac)?),
            Some(("queues", count)) => {
                let queues = count.parse().ok().filter(|queues| (1..=MAX_PAIRS).contains(queues));
                net.queues = queues.ok_or_else(|| NetConfigError::Queues(count.to_owned()))?;
            }
            Some(("mtu", mtu)) => {
                let number = mtu.parse().ok().filter(|mtu| (MIN_MTU..=MAX_MTU).contains(mtu));
                net.mtu = Some(number.ok_or_else(|| NetConfigError::Mtu(mtu.to_owned()))?);
            }
            Some((limit, rate)) => {
                if !read_limit(&mut net.limits, limit, rate)? {
                    return Err(NetConfigError::Option(word).into());
                }
            }
            None if word == "no-host" => match &mut net.backend {
                NetBackend::User { reaches_host } => *reaches_host = false,
                NetBackend::Tap(_) | NetBackend::Bridge(_) => return Err(NetConfigError::NoHost.into()),
            },
            None => return Err(NetConfigError::Option(word).into()),
        }
    }
    if matches!(net.backend, NetBackend::User { .. }) && net.queues > 1 {
        return Err(NetConfigError::UserQueues.into());
    }
    Ok(net)
}

/// Reads the limit that the option `name` sets; false if there is no such option.
fn read_limit(limits: &mut NetLimits, name: &str, rate: &str) -> Result<bool, ConfigError> {
    match name {
        "limit-rx" => limits.receive.bandwidth = Some(rate.parse::<Bandwidth>()?.0),
        "limit-tx" => limits.transmit.bandwidth = Some(rate.parse::<Bandwidth>()?.0),
        "limit-rx-pps" => limits.receive.operations = Some(rate.parse::<Rate>()?.0),
        "limit-tx-pps" => limits.transmit.operations = Some(rate.parse::<Rate>()?.0),
        _ => return Ok(false),
    }
    Ok(true)
}

fn write_limits(f: &mut fmt::Formatter<'_>, way: &str, limits: RateLimits) -> fmt::Result {
    if let Some(limit) = limits.bandwidth {
        write!(f, ",limit-{way}={}", Bandwidth(limit))?;
    }
    if let Some(limit) = limits.operations {
        write!(f, ",limit-{way}-pps={}", Rate(limit))?;
    }
    Ok(())
}

impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            NetBackend::Tap(name) => write!(f, "tap={}", double_commas(name.as_str()))?,
            NetBackend::Bridge(name) => write!(f, "bridge={}", double_commas(name.as_str()))?,
            NetBackend::User { reaches_host: true } => f.write_str("user")?,
            NetBackend::User { reaches_host: false } => f.write_str("user,no-host")?,
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if self.queues > 1 {
            write!(f, ",queues={}", self.queues)?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ",mtu={mtu}")?;
        }
        write_limits(f, "rx", self.limits.receive)?;
        write_limits(f, "tx", self.limits.transmit)
    }
}

serde_as_text!(NetConfig);

#[cfg(test)]
mod tests {
    use devices::virtio::rate_limit::Limit;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn tap(name: &str) -> NetBackend {
        NetBackend::Tap(name.parse().unwrap())
    }

    #[test]
    fn networks_are_read() {
        let limits = NetLimits::default();
        let plain =
            NetConfig { backend: tap("tap0"), mac: None, queues: 1, addresses: None, mtu: None, limits };
        assert_eq!("tap=tap0".parse(), Ok(plain.clone()));
        let user = NetConfig { backend: NetBackend::User { reaches_host: true }, ..plain.clone() };
        assert_eq!("user".parse(), Ok(user));
        let alone = NetConfig { backend: NetBackend::User { reaches_host: false }, ..plain.clone() };
        assert_eq!("user,no-host".parse(), Ok(alone));
        let all = NetConfig {
            addresses: None,
            backend: NetBackend::Bridge("br0".parse().unwrap()),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            queues: 4,
            mtu: Some(9000),
            limits,
        };
        assert_eq!("bridge=br0,mtu=9000,queues=4,mac=02:00:00:00:00:01".parse(), Ok(all));
    }

    #[test]
    fn limits_are_read_each_to_its_place() {
        let limit = |per_second: u64, burst: u64| {
            Some(Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
        };
        let text = "tap=t,limit-rx=1M:2M,limit-rx-pps=3:4,limit-tx=5K:6K,limit-tx-pps=7:8";
        let limits = NetLimits {
            receive: RateLimits { bandwidth: limit(1 << 20, 2 << 20), operations: limit(3, 4) },
            transmit: RateLimits { bandwidth: limit(5 << 10, 6 << 10), operations: limit(7, 8) },
        };
        assert_eq!(text.parse::<NetConfig>().unwrap().limits, limits);
    }

    #[rstest]
    #[case("", "invalid network")]
    #[case("tap0", "invalid network")]
    #[case("user=passt", "invalid network")]
    #[case("tap=", "1 to 15 bytes")]
    #[case("tap=a-name-of-16-byt", "1 to 15 bytes")]
    #[case("bridge=a/b", "invalid interface name")]
    #[case("tap=t,script=no", "unknown network option")]
    #[case("tap=t,", "unknown network option")]
    #[case("tap=t,limit=1M", "unknown network option")]
    #[case("tap=t,limit-rx", "unknown network option")]
    #[case("tap=t,limit-rx=0", "would let nothing pass")]
    #[case("tap=t,limit-tx-pps=5:0", "would let nothing pass")]
    #[case("tap=t,limit-tx=fast", "invalid size")]
    #[case("tap=t,limit-rx-pps=1M", "invalid rate")]
    #[case("tap=t,queues=0", "use 1 to 16")]
    #[case("tap=t,queues=17", "use 1 to 16")]
    #[case("tap=t,queues=many", "use 1 to 16")]
    #[case("user,queues=2", "user has one queue")]
    #[case("tap=t,no-host", "no-host works with user only")]
    #[case("tap=t,mtu=67", "use 68 to 65521")]
    #[case("tap=t,mtu=65522", "use 68 to 65521")]
    #[case("tap=t,mac=02:00", "use six bytes")]
    #[case("tap=t,mac=01:00:00:00:00:00", "multicast")]
    fn wrong_networks_are_refused(#[case] text: &str, #[case] expected: &str) {
        let error = text.parse::<NetConfig>().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    proptest! {
        #[test]
        fn a_network_reads_back_as_written(
            kind in 0..4,
            name in "[a-z0-9,.@=-]{3,15}",
            bytes in proptest::option::of(any::<[u8; 6]>()),
            queues in 1..=MAX_PAIRS,
            mtu in proptest::option::of(MIN_MTU..=MAX_MTU),
            rates in any::<[Option<(u64, u64)>; 4]>(),
        ) {
            let name = name.parse().unwrap();
            let (backend, queues) = match kind {
                0 => (NetBackend::Tap(name), queues),
                1 => (NetBackend::Bridge(name), queues),
                _ => (NetBackend::User { reaches_host: kind == 2 }, 1),
            };
            let [a, b, c, d] = rates.map(|rate| {
                let (per_second, burst) = rate?;
                Some(Limit { per_second: per_second.try_into().ok()?, burst: burst.try_into().ok()? })
            });
            let limits = NetLimits {
                receive: RateLimits { bandwidth: a, operations: b },
                transmit: RateLimits { bandwidth: c, operations: d },
            };
            let mac = bytes.and_then(MacAddress::new);
            let net = NetConfig { backend, mac, queues, addresses: None, mtu, limits };
            prop_assert_eq!(net.to_string().parse(), Ok(net));
        }
    }
}
