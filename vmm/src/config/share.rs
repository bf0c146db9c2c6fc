//! Folders of the host that the guest sees, and devices that other processes serve.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::vhost_user::ShareTag;
use serde::{Deserialize, Serialize};

use super::words::{double_commas, split_at_single_commas};
use super::{ConfigError, serde_as_text};

/// How virtiofsd shuts itself in with a shared folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// In namespaces of its own, where nothing but the folder exists.
    #[default]
    Namespace,
    /// By chroot(2), which takes root but no namespace.
    Chroot,
    /// Not at all: it sees all that its user sees, and only its seccomp filter holds it.
    None,
}

impl Sandbox {
    const ALL: [Self; 3] = [Self::Namespace, Self::Chroot, Self::None];

    /// Its name, here and for virtiofsd.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Chroot => "chroot",
            Self::None => "none",
        }
    }
}

/// A folder of the host that the guest can mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareConfig {
    /// The folder.
    pub path: PathBuf,
    /// What the guest mounts it by; one that is an absolute path is where it goes, too.
    pub tag: ShareTag,
    /// The guest may only read it.
    pub read_only: bool,
    /// How the process that serves it is shut in.
    pub sandbox: Sandbox,
}

impl FromStr for ShareConfig {
    type Err = ConfigError;

    /// Reads `HOSTDIR:TAG[,readonly][,sandbox=namespace|chroot|none]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = split_at_single_commas(text).into_iter();
        let first = words.next().unwrap_or_default();
        // The last colon: a path may have some, the place in a guest hardly.
        let (path, tag) = first.rsplit_once(':').ok_or_else(|| ConfigError::ShareColon(first.clone()))?;
        if path.is_empty() {
            return Err(ConfigError::ShareColon(first));
        }
        let tag = tag.parse()?;
        let mut share = Self { path: path.into(), tag, read_only: false, sandbox: Sandbox::default() };
        for word in words {
            let named = |name: &str| Sandbox::ALL.into_iter().find(|sandbox| sandbox.name() == name);
            match word.split_once('=') {
                None if word == "readonly" => share.read_only = true,
                Some(("sandbox", name)) => {
                    share.sandbox = named(name).ok_or_else(|| ConfigError::ShareOption(word.clone()))?;
                }
                _ => return Err(ConfigError::ShareOption(word)),
            }
        }
        Ok(share)
    }
}

impl fmt::Display for ShareConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", double_commas(&self.path.to_string_lossy()), self.tag)?;
        if self.read_only {
            write!(f, ",readonly")?;
        }
        if self.sandbox != Sandbox::default() {
            write!(f, ",sandbox={}", self.sandbox.name())?;
        }
        Ok(())
    }
}

serde_as_text!(ShareConfig);

/// A device that a process serves which runs already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VhostUserConfig {
    /// A file system.
    Fs {
        /// The Unix socket of the process.
        socket: PathBuf,
        /// What the guest mounts it by.
        tag: ShareTag,
    },
}

impl VhostUserConfig {
    /// The socket of the process.
    pub fn socket_mut(&mut self) -> &mut PathBuf {
        let Self::Fs { socket, .. } = self;
        socket
    }
}

impl FromStr for VhostUserConfig {
    type Err = ConfigError;

    /// Reads `fs=SOCKET,tag=TAG`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (mut socket, mut tag) = (None, None);
        for word in split_at_single_commas(text) {
            match word.split_once('=') {
                Some(("fs", path)) if !path.is_empty() && socket.is_none() => socket = Some(path.into()),
                Some(("tag", name)) if tag.is_none() => tag = Some(name.parse()?),
                _ => return Err(ConfigError::VhostUser(text.to_owned())),
            }
        }
        match (socket, tag) {
            (Some(socket), Some(tag)) => Ok(Self::Fs { socket, tag }),
            _ => Err(ConfigError::VhostUser(text.to_owned())),
        }
    }
}

impl fmt::Display for VhostUserConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Fs { socket, tag } = self;
        write!(f, "fs={},tag={tag}", double_commas(&socket.to_string_lossy()))
    }
}

serde_as_text!(VhostUserConfig);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn share(path: &str, tag: &str, read_only: bool, sandbox: Sandbox) -> ShareConfig {
        ShareConfig { path: path.into(), tag: tag.parse().unwrap(), read_only, sandbox }
    }

    #[rstest]
    #[case("src:/work", share("src", "/work", false, Sandbox::Namespace))]
    #[case("./a:b:x,readonly", share("./a:b", "x", true, Sandbox::Namespace))]
    #[case("/a,,b:x,sandbox=none", share("/a,b", "x", false, Sandbox::None))]
    #[case(".:x,sandbox=chroot,readonly", share(".", "x", true, Sandbox::Chroot))]
    fn shares_are_read(#[case] text: &str, #[case] expected: ShareConfig) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("", ConfigError::ShareColon("".into()))]
    #[case("src", ConfigError::ShareColon("src".into()))]
    #[case(":/work", ConfigError::ShareColon(":/work".into()))]
    #[case("src:x,ro", ConfigError::ShareOption("ro".into()))]
    #[case("src:x,sandbox=jail", ConfigError::ShareOption("sandbox=jail".into()))]
    #[case("src:x,", ConfigError::ShareOption("".into()))]
    fn what_is_no_share_is_refused(#[case] text: &str, #[case] expected: ConfigError) {
        assert_eq!(text.parse::<ShareConfig>(), Err(expected));
    }

    #[test]
    fn a_tag_that_is_none_is_refused() {
        for text in ["src:", "src:a b", "src:0123456789012345678901234567890123456"] {
            assert!(matches!(text.parse::<ShareConfig>(), Err(ConfigError::ShareTag(_))), "{text}");
        }
    }

    #[test]
    fn sockets_of_other_processes_are_read() {
        let fs = VhostUserConfig::Fs { socket: "a,b.sock".into(), tag: "/x".parse().unwrap() };
        assert_eq!("fs=a,,b.sock,tag=/x".parse(), Ok(fs.clone()));
        assert_eq!("tag=/x,fs=a,,b.sock".parse(), Ok(fs));
        for bad in ["", "a.sock", "fs=a.sock", "tag=x", "fs=,tag=x", "fs=a,fs=b,tag=x", "blk=a,tag=x"] {
            assert_eq!(bad.parse::<VhostUserConfig>(), Err(ConfigError::VhostUser(bad.into())));
        }
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_what_was_written(
            path in "[a-z,:./ =]{1,12}", tag in "[a-z/._-]{1,36}", read_only: bool, sandbox in 0..3_usize,
        ) {
            let written = share(&path, &tag, read_only, Sandbox::ALL[sandbox]);
            prop_assert_eq!(written.to_string().parse(), Ok(written.clone()));
            let written = VhostUserConfig::Fs { socket: path.into(), tag: written.tag };
            prop_assert_eq!(written.to_string().parse(), Ok(written));
        }
    }
}
