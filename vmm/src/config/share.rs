//! Shared folders, and devices that other processes serve.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devices::virtio::vhost_user::ShareTag;
use serde::{Deserialize, Serialize};

use super::words::{double_commas, split_at_single_commas};
use super::{ConfigError, serde_as_text};

/// What keeps virtiofsd from the host's other files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Namespaces of its own, in which nothing but the folder exists.
    #[default]
    Namespace,
    /// chroot(2), which needs root but no namespace.
    Chroot,
    /// Nothing but its seccomp filter: it can open all that its user can.
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

/// Whether the option `word` makes a share read-only, as mvm or as docker writes it; `None` for other words.
fn read_only(word: &str) -> Option<bool> {
    match word {
        "readonly" | "ro" => Some(true),
        "rw" => Some(false),
        _ => None,
    }
}

/// Options that docker has behind the second colon of a volume, and mvm has not.
const OF_DOCKER_ONLY: [&str; 6] = ["z", "Z", "cached", "delegated", "consistent", "nocopy"];

/// A folder or file of the host that is a part of a [`ShareConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPart {
    /// What the guest finds it by: a name without a slash, which no other part has.
    pub name: String,
    /// The folder or file.
    pub path: PathBuf,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

/// A folder of the host that the guest can mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShareConfig {
    /// The folder; or, with parts, a directory that they hide from the process that serves them.
    pub path: PathBuf,
    /// Folders and files that it is composed of. They have no text form.
    pub parts: Vec<SharedPart>,
    /// The name by which the guest mounts it. If it is an absolute path, mvm's init mounts the folder there.
    pub tag: ShareTag,
    /// Whether the guest can only read it.
    pub read_only: bool,
    /// What keeps the process that serves it from the host's other files.
    pub sandbox: Sandbox,
}

impl FromStr for ShareConfig {
    type Err = ConfigError;

    /// Reads `HOSTDIR:TAG[:ro|:rw][,readonly|,ro|,rw][,sandbox=namespace|chroot|none]`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut words = split_at_single_commas(text).into_iter();
        let first = words.next().unwrap_or_default();
        // The last colon: a path may have some, the place in a guest hardly.
        let split = |text: &str| text.rsplit_once(':').map(|(path, tag)| (path.to_owned(), tag.to_owned()));
        let colon = || ConfigError::ShareColon(first.clone());
        let (mut path, mut tag) = split(&first).filter(|(path, _)| !path.is_empty()).ok_or_else(colon)?;
        let mut is_read_only = false;
        if let Some((folder, before)) = split(&path).filter(|(folder, _)| !folder.is_empty()) {
            if let Some(read_only) = read_only(&tag) {
                (path, tag, is_read_only) = (folder, before, read_only);
            } else if OF_DOCKER_ONLY.contains(&tag.as_str()) {
                return Err(ConfigError::ShareOption(tag));
            }
        }
        let (path, tag, sandbox) = (path.into(), tag.parse()?, Sandbox::default());
        let mut share = Self { path, parts: Vec::new(), tag, read_only: is_read_only, sandbox };
        for word in words {
            let named = |name: &str| Sandbox::ALL.into_iter().find(|sandbox| sandbox.name() == name);
            match word.split_once('=') {
                None => {
                    share.read_only =
                        read_only(&word).ok_or_else(|| ConfigError::ShareOption(word.clone()))?;
                }
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
        // A tag that looks like docker's option, behind a path with a colon, would be taken for one.
        if read_only(self.tag.as_str()).is_some() || OF_DOCKER_ONLY.contains(&self.tag.as_str()) {
            f.write_str(":rw")?;
        }
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

/// A device that is served by a process that runs already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VhostUserConfig {
    /// A file system.
    Fs {
        /// The Unix socket of the process.
        socket: PathBuf,
        /// The name by which the guest mounts it.
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
        ShareConfig { path: path.into(), parts: Vec::new(), tag: tag.parse().unwrap(), read_only, sandbox }
    }

    #[rstest]
    #[case("src:/work", share("src", "/work", false, Sandbox::Namespace))]
    #[case("./a:b:x,readonly", share("./a:b", "x", true, Sandbox::Namespace))]
    #[case("/a,,b:x,sandbox=none", share("/a,b", "x", false, Sandbox::None))]
    #[case(".:x,sandbox=chroot,readonly", share(".", "x", true, Sandbox::Chroot))]
    #[case("src:/work:ro", share("src", "/work", true, Sandbox::Namespace))]
    #[case("src:/work:rw", share("src", "/work", false, Sandbox::Namespace))]
    #[case("./a:b:x:ro,sandbox=none", share("./a:b", "x", true, Sandbox::None))]
    #[case("src:/work,ro", share("src", "/work", true, Sandbox::Namespace))]
    #[case("src:/work:ro,rw", share("src", "/work", false, Sandbox::Namespace))]
    #[case("src:ro", share("src", "ro", false, Sandbox::Namespace))]
    #[case("src:z", share("src", "z", false, Sandbox::Namespace))]
    #[case("./a:ro:rw,readonly", share("./a", "ro", true, Sandbox::Namespace))]
    fn shares_are_read(#[case] text: &str, #[case] expected: ShareConfig) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("", ConfigError::ShareColon("".into()))]
    #[case("src", ConfigError::ShareColon("src".into()))]
    #[case(":/work", ConfigError::ShareColon(":/work".into()))]
    #[case("src:x,read-only", ConfigError::ShareOption("read-only".into()))]
    #[case("src:/work:z", ConfigError::ShareOption("z".into()))]
    #[case("src:/work:ro,z", ConfigError::ShareOption("z".into()))]
    #[case("src:x,sandbox=jail", ConfigError::ShareOption("sandbox=jail".into()))]
    #[case("src:x,", ConfigError::ShareOption("".into()))]
    fn wrong_shares_are_refused(#[case] text: &str, #[case] expected: ConfigError) {
        assert_eq!(text.parse::<ShareConfig>(), Err(expected));
    }

    #[test]
    fn a_wrong_tag_is_refused() {
        for text in ["src:", "src:a b", "src:0123456789012345678901234567890123456"] {
            assert!(matches!(text.parse::<ShareConfig>(), Err(ConfigError::ShareTag(_))), "{text}");
        }
    }

    #[test]
    fn sockets_of_running_back_ends_are_read() {
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
            path in "[a-z,:./ =]{1,12}", tag in "[a-z/._-]{1,36}|ro|rw|[zZ]|nocopy", read_only: bool, sandbox in 0..3_usize,
        ) {
            let written = share(&path, &tag, read_only, Sandbox::ALL[sandbox]);
            prop_assert_eq!(written.to_string().parse(), Ok(written.clone()));
            let written = VhostUserConfig::Fs { socket: path.into(), tag: written.tag };
            prop_assert_eq!(written.to_string().parse(), Ok(written));
        }
    }
}
