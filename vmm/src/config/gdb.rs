//! Where the VM waits for a debugger.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, serde_as_text};

/// Where GDB connects to: a port of this host, or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GdbConfig {
    /// A TCP port, of 127.0.0.1 unless another address is given.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for GdbConfig {
    type Err = ConfigError;

    /// A number is a port, text with a colon and no slash is an address with its port, and all else is a path.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Gdb(text.to_owned());
        let address = if text.is_empty() {
            return Err(bad());
        } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
            SocketAddr::from((Ipv4Addr::LOCALHOST, text.parse().map_err(|_| bad())?))
        } else if text.contains(':') && !text.contains('/') {
            text.parse().map_err(|_| bad())?
        } else {
            return Ok(Self::Unix(text.into()));
        };
        // With port 0 the kernel would choose one.
        if address.port() == 0 { Err(bad()) } else { Ok(Self::Tcp(address)) }
    }
}

impl fmt::Display for GdbConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

serde_as_text!(GdbConfig);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1234", "127.0.0.1:1234")]
    #[case("0.0.0.0:1", "0.0.0.0:1")]
    #[case("[::1]:65535", "[::1]:65535")]
    fn ports_and_addresses_are_of_tcp(#[case] text: &str, #[case] address: &str) {
        assert_eq!(text.parse(), Ok(GdbConfig::Tcp(address.parse().unwrap())));
        assert_eq!(text.parse::<GdbConfig>().unwrap().to_string(), address);
    }

    #[rstest]
    #[case("gdb.sock")]
    #[case("/run/a:b/socket")]
    #[case("./1234")]
    fn all_else_is_a_path(#[case] text: &str) {
        assert_eq!(text.parse(), Ok(GdbConfig::Unix(text.into())));
    }

    #[rstest]
    #[case("")]
    #[case("0")]
    #[case("65536")]
    #[case("99999999999999999999")]
    #[case("localhost:1234")]
    #[case("127.0.0.1:")]
    #[case("127.0.0.1:0")]
    #[case(":1234")]
    fn what_is_neither_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<GdbConfig>(), Err(ConfigError::Gdb(text.to_owned())));
    }
}
