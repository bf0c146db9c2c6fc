//! Sockets between guest and host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::words::{double_commas, split_at_single_commas};
use super::{ConfigError, looks_like_a_path, serde_as_text};

/// The guest's socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VsockConfig {
    /// The Unix socket that host programs connect to. The guest's connections to port N go to the socket `PATH_N`.
    pub path: PathBuf,
    /// The guest's CID, [`VsockConfig::MIN_CID`] to [`VsockConfig::MAX_CID`].
    pub cid: u32,
}

impl VsockConfig {
    /// The lowest CID of a guest: 2 is the host's, and those below are reserved (VIRTIO 1.2, 5.10.4).
    pub const MIN_CID: u32 = 3;
    /// The highest CID of a guest: the next one is VMADDR_CID_ANY.
    pub const MAX_CID: u32 = 0xffff_fffe;
}

impl FromStr for VsockConfig {
    type Err = ConfigError;

    /// Reads `PATH[,cid=N]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = split_at_single_commas(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty()).ok_or(ConfigError::VsockPath)?;
        if !looks_like_a_path(&path) {
            return Err(ConfigError::VsockNotAPath(path));
        }
        let mut vsock = Self { path: path.into(), cid: Self::MIN_CID };
        for word in words {
            vsock.cid = match word.split_once('=') {
                Some(("cid", cid)) => cid
                    .parse()
                    .ok()
                    .filter(|cid| (Self::MIN_CID..=Self::MAX_CID).contains(cid))
                    .ok_or_else(|| ConfigError::VsockCid(cid.to_owned()))?,
                _ => return Err(ConfigError::VsockOption(word)),
            };
        }
        Ok(vsock)
    }
}

impl fmt::Display for VsockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},cid={}", double_commas(&self.path.to_string_lossy()), self.cid)
    }
}

serde_as_text!(VsockConfig);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("v.sock", "v.sock", 3)]
    #[case("/run/v.sock,cid=52", "/run/v.sock", 52)]
    #[case("./a,,b,cid=4294967294", "./a,b", 0xffff_fffe)]
    fn sockets_are_read(#[case] text: &str, #[case] path: &str, #[case] cid: u32) {
        assert_eq!(text.parse(), Ok(VsockConfig { path: path.into(), cid }));
    }

    #[rstest]
    #[case("", ConfigError::VsockPath)]
    #[case(",cid=3", ConfigError::VsockPath)]
    #[case("3", ConfigError::VsockNotAPath("3".into()))]
    #[case("cid=3", ConfigError::VsockNotAPath("cid=3".into()))]
    #[case("./v,cid=2", ConfigError::VsockCid("2".into()))]
    #[case("./v,cid=4294967295", ConfigError::VsockCid("4294967295".into()))]
    #[case("./v,cid=", ConfigError::VsockCid("".into()))]
    #[case("./v,port=3", ConfigError::VsockOption("port=3".into()))]
    #[case("./v,", ConfigError::VsockOption("".into()))]
    fn invalid_sockets_are_refused(#[case] text: &str, #[case] expected: ConfigError) {
        assert_eq!(text.parse::<VsockConfig>(), Err(expected));
    }

    proptest! {
        #[test]
        fn a_socket_reads_back_as_written(path in "[./][a-z,./ ]{1,12}", cid in 3..=VsockConfig::MAX_CID) {
            let vsock = VsockConfig { path: path.into(), cid };
            prop_assert_eq!(vsock.to_string().parse(), Ok(vsock));
        }
    }
}
