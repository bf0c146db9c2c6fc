//! What a user asks of a container.

use std::net::IpAddr;
use std::str::FromStr;

use agent_protocol::Size;
use instance::{IdRange, VolumeName};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm::{MacAddress, MemorySize};

use crate::attach::DetachKeys;
use crate::limits::{CpuSet, Ulimit};
use crate::mounts::{MountError, MountOption, MountSource};
use crate::network::NetworkOption;
use crate::ports::{ExposedPorts, PortMapping};

/// The options of `mvm run`, which are those of `docker run`. They are kept with the container: those that another
/// version of mvm has beyond these are passed over, and those that it lacks are as if they had not been given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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
    /// The domain of its name.
    pub domain: Option<String>,
    /// Lines for /etc/hosts: a name and its address, or [`HOST_GATEWAY`](crate::network::HOST_GATEWAY).
    pub hosts: Vec<(String, String)>,
    /// What it is connected to.
    pub network: NetworkOption,
    /// Ports that are published on the host.
    pub publish: Vec<PortMapping>,
    /// All ports that are exposed are published.
    pub publish_all: bool,
    /// Ports that are exposed, beside those of the image.
    pub exposed: Vec<ExposedPorts>,
    /// Its VM boots, where it could go on from a template.
    pub cold: bool,
    /// The address of its network card; random if `None`.
    pub mac: Option<MacAddress>,
    /// Addresses of resolvers, in place of the host's.
    pub dns: Vec<IpAddr>,
    /// Domains that names are looked up in.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf(5).
    pub dns_options: Vec<String>,
    /// Whether standard input is passed on.
    pub interactive: bool,
    /// The size of its terminal, if it has one.
    pub terminal: Option<Size>,
    /// The root file system can't be changed.
    pub read_only: bool,
    /// What takes changes of the root file system.
    pub storage: Storage,
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
    /// Processors of the VM that it may use.
    pub cpu_set: Option<CpuSet>,
    /// Its share of the processors beside others, as docker counts it: 2 to 262,144.
    pub cpu_shares: Option<u64>,
    /// Bytes of memory that are taken from it last.
    pub memory_reservation: Option<u64>,
    /// How soon the kernel kills it for lack of memory: -1000 (never) to 1000 (first).
    pub oom_score_adjustment: Option<i16>,
    /// Limits of its processes; a later one of the same name replaces an earlier one.
    pub limits: Vec<Ulimit>,
    /// The agent's init is its first process, and starts the command.
    pub init: bool,
    /// Bytes of /dev/shm.
    pub shm_size: Option<u64>,
    /// The signal that asks it to end, in place of the image's, by name or number.
    pub stop_signal: Option<String>,
    /// Folders, files and sockets of the host, volumes, and temporary file systems of `--mount`.
    pub mounts: Vec<MountOption>,
    /// Temporary file systems: where, and options.
    pub tmpfs: Vec<(String, String)>,
    /// What the user calls it besides: names and values.
    pub labels: Vec<(String, String)>,
    /// What else is kept with it: names and values.
    pub annotations: Vec<(String, String)>,
    /// Kernel parameters.
    pub sysctls: Vec<(String, String)>,
    /// How its VM's process is confined.
    pub jail: jail::Mode,
    /// The users of whom it becomes one, where root runs it; the default ones if `None`.
    pub jail_ids: Option<IdRange>,
}

impl RunOptions {
    /// The names of the volumes that it has.
    pub fn volumes(&self) -> Vec<VolumeName> {
        let name = |mount: &MountOption| match &mount.source {
            MountSource::Volume(volume) => volume.name.clone(),
            _ => None,
        };
        let mut names: Vec<_> = self.mounts.iter().filter_map(name).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The options of `mvm exec`, which are those of `docker exec`.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// `NAME=VALUE`, added to the container's.
    pub env: Vec<String>,
    /// In place of the container's working directory.
    pub working_directory: Option<String>,
    /// In place of the container's user.
    pub user: Option<String>,
    /// Whether standard input is passed on.
    pub interactive: bool,
    /// The size of its terminal, if it has one.
    pub terminal: Option<Size>,
    /// It is not waited for.
    pub detached: bool,
    /// All capabilities.
    pub privileged: bool,
    /// Typed at a terminal, they end the wait for it.
    pub detach_keys: DetachKeys,
}

/// What takes the changes of a container's root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    /// The container's memory.
    Memory,
    /// A disk of that many bytes, of which the host keeps what is written.
    Disk(u64),
}

impl Storage {
    /// The bytes of a disk of which nothing else is said.
    pub const SIZE: u64 = 20 << 30;
}

impl Default for Storage {
    fn default() -> Self {
        Self::Disk(Self::SIZE)
    }
}

impl Storage {
    /// The smallest disk in bytes, which is the smallest template.
    pub const MIN: u64 = 256 << 20;
    /// The largest in bytes: the time that it takes to grow a disk is proportional to its size.
    pub const MAX: u64 = 1 << 40;
}

impl FromStr for Storage {
    type Err = OptionsError;

    /// Reads `size=SIZE` or `memory`; a size of 0 is memory too.
    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let invalid = || OptionsError::Storage(text.to_owned());
        if text == "memory" {
            return Ok(Self::Memory);
        }
        let size: MemorySize =
            text.strip_prefix("size=").ok_or_else(invalid)?.parse().map_err(|_| invalid())?;
        match size.bytes() {
            0 => Ok(Self::Memory),
            // Sectors and blocks are whole.
            bytes @ Self::MIN..=Self::MAX => Ok(Self::Disk(bytes.next_multiple_of(1 << 20))),
            _ => Err(invalid()),
        }
    }
}

/// What is wrong with an option.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// Neither the image nor the user says what to run.
    #[error("no command specified: the image has none, so give one behind its name")]
    NoCommand,
    /// What it has below its root.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A name for a volume without one can't be made.
    #[error("cannot get a random name for a volume: {0}")]
    Random(String),
    /// Not a storage for changes.
    #[error("invalid storage option {0:?}: write size=SIZE, from 256M to 1T, or memory")]
    Storage(String),
    /// Not a network.
    #[error(
        "unknown network {0:?}: use `user` (the host's networks), `user,host` (its loopback too), `none`, or \
         `tap=NAME` or `bridge=NAME` with `,ip=ADDRESS/PREFIX`"
    )]
    Network(String),
    /// A network of docker's that a VM can't have.
    #[error(
        "network {0:?}: each container's VM has a network of its own: use `user,host` to reach the host's loopback, \
         and a pod for containers that share a network (`mvm pod --help`)"
    )]
    OthersNetwork(String),
    /// A word behind a tap or a bridge.
    #[error("unknown word {0:?} of --network: use ip=ADDRESS/PREFIX and gateway=ADDRESS")]
    NetworkWord(String),
    /// Not a name of an interface.
    #[error("invalid interface name {0:?}: use that of a tap or a bridge, as `ip link` shows it")]
    Interface(String),
    /// Not an address.
    #[error("invalid address {0:?}: use IPv4, as in ip=192.168.1.5/24 and gateway=192.168.1.1")]
    Address(String),
    /// A tap or a bridge without an address.
    #[error(
        "{0} needs the container's address, as nothing asks for one by DHCP: add ,ip=ADDRESS/PREFIX, and \
         ,gateway=ADDRESS for other networks"
    )]
    NoAddress(String),
    /// `host-gateway` without a way to it.
    #[error("--add-host with host-gateway needs a network with a router: use --network user")]
    NoGateway,
    /// Not a domain.
    #[error("invalid domain {0:?}: use up to 63 letters, digits, `-`, `_` and `.`")]
    Domain(String),
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
    /// Processors that the VM can't have.
    #[error("there is no CPU {0}: use 0 to {last} for --cpuset-cpus", last = .1.saturating_sub(1))]
    NoCpu(u32, u32),
    /// The memory that is kept is more than there is.
    #[error("--memory-reservation is more than --memory: use that or less")]
    Reservation,
    /// More memory than its VM has.
    #[error(
        "its VM has {vm} MiB of memory, and no more while it runs: use up to {most} MiB, or stop it first"
    )]
    VmMemory {
        /// What it has, in MiB.
        vm: u64,
        /// The largest limit, in MiB.
        most: u64,
    },
    /// More processors than its VM has.
    #[error("its VM has {0} CPUs, and no more while it runs: use up to {0}, or stop it first")]
    VmCpus(u32),
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
    #[test]
    fn options_read_back_as_written_and_those_of_other_versions_are_passed_over() {
        let options = RunOptions {
            command: vec!["sh".into()],
            network: "bridge=br0,ip=10.0.0.2/24,gateway=10.0.0.1".parse().unwrap(),
            publish: vec!["127.0.0.1:8080-8081:80-81/udp".parse().unwrap(), "53".parse().unwrap()],
            exposed: vec!["80/tcp".parse().unwrap()],
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            dns: vec!["1.1.1.1".parse().unwrap()],
            terminal: Some(Size { rows: 24, columns: 80 }),
            storage: Storage::Disk(1 << 30),
            cpu_set: Some("0-2,5".parse().unwrap()),
            limits: vec!["nofile=5:7".parse().unwrap(), "core=-1".parse().unwrap()],
            mounts: ["/src:/work:ro", "data:/data:nocopy", "/other"]
                .map(|text| text.parse::<crate::ShortMount>().unwrap().mount)
                .into(),
            ..RunOptions::default()
        };
        let mut written = serde_json::to_value(&options).unwrap();
        assert_eq!(serde_json::from_value::<RunOptions>(written.clone()).unwrap(), options);
        let object = written.as_object_mut().unwrap();
        object.insert("later".into(), serde_json::json!({"a": [1]}));
        object.remove("command").unwrap();
        let read: RunOptions = serde_json::from_value(written).unwrap();
        assert_eq!(read, RunOptions { command: Vec::new(), ..options });
    }

    #[rstest]
    #[case("memory", Some(Storage::Memory))]
    #[case("size=0", Some(Storage::Memory))]
    #[case("size=20G", Some(Storage::default()))]
    #[case("size=256m", Some(Storage::Disk(Storage::MIN)))]
    #[case("size=268435457", Some(Storage::Disk(257 << 20)))]
    #[case("size=1T", Some(Storage::Disk(Storage::MAX)))]
    #[case("size=255m", None)]
    #[case("size=2T", None)]
    #[case("size=99999999999T", None)]
    #[case("size=", None)]
    #[case("20G", None)]
    #[case("overlay2.size=1G", None)]
    fn storage_has_a_size_or_is_memory(#[case] text: &str, #[case] expected: Option<Storage>) {
        let read = text.parse::<Storage>();
        assert_eq!(read.as_ref().ok(), expected.as_ref());
        assert!(expected.is_some() || read.unwrap_err().to_string().contains("from 256M to 1T"));
    }
}
