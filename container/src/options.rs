//! What a user asks of a container.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use agent_protocol::Size;
use thiserror::Error;
use vmm::PublishConfig;

/// The options of `mvm run`, which are those of `docker run`.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The command and its arguments; empty: the image's.
    pub command: Vec<String>,
    /// In place of the image's entry point; an empty text for none.
    pub entrypoint: Option<String>,
    /// `NAME=VALUE`, added to the image's.
    pub env: Vec<String>,
    /// In place of the image's working directory.
    pub working_directory: Option<String>,
    /// In place of the image's user.
    pub user: Option<String>,
    /// Further groups.
    pub groups: Vec<String>,
    /// The host name; without one, the container's ID.
    pub hostname: Option<String>,
    /// Lines for /etc/hosts: a name and its address.
    pub hosts: Vec<(String, String)>,
    /// What it is connected to.
    pub network: NetworkOption,
    /// Ports that are published on the host.
    pub publish: Vec<PublishConfig>,
    /// Addresses of resolvers, in place of the host's.
    pub dns: Vec<IpAddr>,
    /// Whether standard input is passed on.
    pub interactive: bool,
    /// The size of its terminal, if it has one.
    pub terminal: Option<Size>,
    /// The root file system can't be changed.
    pub read_only: bool,
    /// Capabilities that are added, without `CAP_`; `ALL` for all.
    pub added_capabilities: Vec<String>,
    /// Capabilities that are dropped.
    pub dropped_capabilities: Vec<String>,
    /// All of the VM's devices and capabilities.
    pub privileged: bool,
    /// System calls are not filtered.
    pub is_unconfined: bool,
    /// Programs give no further rights.
    pub no_new_privileges: bool,
    /// Bytes of memory of the container.
    pub memory: Option<u64>,
    /// Thousandths of a processor that it may use.
    pub milli_cpus: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes of /dev/shm.
    pub shm_size: Option<u64>,
    /// The signal that asks it to end, in place of the image's, by name or number.
    pub stop_signal: Option<String>,
    /// Folders of the host.
    pub volumes: Vec<Volume>,
    /// Temporary file systems: where, and options.
    pub tmpfs: Vec<(String, String)>,
    /// Kernel parameters.
    pub sysctls: Vec<(String, String)>,
}

/// What a container is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkOption {
    /// Nothing.
    #[default]
    None,
    /// The host's sockets, by passt, without root.
    User {
        /// Whether connections to the router's address, `host.docker.internal`, go to the host's loopback.
        reaches_host: bool,
    },
}

/// A folder of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The folder.
    pub path: PathBuf,
    /// Where the container has it.
    pub target: String,
    /// The container can only read it.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = OptionsError;

    /// Reads `HOSTDIR:PATH` or `HOSTDIR:PATH:ro`.
    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let invalid = || OptionsError::Volume(text.to_owned());
        let (rest, read_only) = match text.rsplit_once(':') {
            Some((rest, "ro")) => (rest, true),
            Some((rest, "rw" | "z" | "Z")) => (rest, false),
            _ => (text, false),
        };
        let (path, target) = rest.rsplit_once(':').ok_or_else(invalid)?;
        if !target.starts_with('/') {
            return Err(invalid());
        }
        if !path.starts_with(['/', '.', '~']) {
            return Err(OptionsError::NamedVolume(path.to_owned()));
        }
        Ok(Self { path: path.into(), target: target.to_owned(), read_only })
    }
}

/// What is wrong with an option.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// Neither the image nor the user says what to run.
    #[error("no command specified: the image has none, so give one behind its name")]
    NoCommand,
    /// Not a volume.
    #[error("invalid volume {0:?}: write HOSTDIR:PATH or HOSTDIR:PATH:ro, where PATH begins with /")]
    Volume(String),
    /// A volume that is not a folder.
    #[error("there are no named volumes yet: give the path of a folder, as in ./{0}:/PATH")]
    NamedVolume(String),
    /// Not a signal.
    #[error("unknown signal {0:?}: use a name such as SIGTERM, or a number from 1 to 64")]
    Signal(String),
    /// Not a capability.
    #[error("unknown capability {0:?}: `man 7 capabilities` lists them, as in NET_ADMIN")]
    Capability(String),
    /// The filter of system calls has an error of ours.
    #[error("cannot compile the filter of system calls: {0}")]
    Filter(String),
    /// A host name that Linux does not take.
    #[error("invalid host name {0:?}: use up to 63 letters, digits, `-` and `.`")]
    Hostname(String),
    /// A path that is not absolute.
    #[error("{option} {path:?} is not an absolute path: begin it with /")]
    Relative {
        /// The option.
        option: &'static str,
        /// What it says.
        path: String,
    },
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/src:/work", "/src", "/work", false)]
    #[case("./src:/work:ro", "./src", "/work", true)]
    #[case("/a:b:/work:rw", "/a:b", "/work", false)]
    fn volumes_are_folders(
        #[case] text: &str,
        #[case] path: &str,
        #[case] target: &str,
        #[case] read_only: bool,
    ) {
        let expected = Volume { path: path.into(), target: target.into(), read_only };
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("/src", "invalid volume")]
    #[case("/src:work", "invalid volume")]
    #[case("data:/work", "no named volumes yet")]
    fn other_volumes_are_refused(#[case] text: &str, #[case] says: &str) {
        let error = text.parse::<Volume>().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
