//! What a container is.

use serde::{Deserialize, Serialize};

/// A container, complete: the agent adds nothing of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// What it is called: hexadecimal digits.
    pub id: String,
    /// The guest's block device with the image, an EROFS, as in `/dev/vdb`.
    pub image: String,
    /// What takes the container's changes.
    pub writable: Writable,
    /// The container can't change its root file system.
    pub read_only: bool,
    /// The name of its host.
    pub hostname: String,
    /// File systems in the order in which they are mounted, over the root.
    pub mounts: Vec<Mount>,
    /// Files that are written into the root before it starts.
    pub files: Vec<File>,
    /// Paths that it can't read.
    pub masked_paths: Vec<String>,
    /// Paths that it can't write.
    pub read_only_paths: Vec<String>,
    /// The VM's network device, if it has one.
    pub network: Option<Network>,
    /// Kernel parameters and values.
    pub sysctls: Vec<(String, String)>,
    /// What it may use.
    pub resources: Resources,
    /// The guest's devices can be used.
    pub all_devices: bool,
    /// Its first process.
    pub process: Process,
    /// The first process is the agent's init, which starts the command, reaps orphans and passes signals on.
    pub has_init: bool,
}

/// How the VM's network device is set up. IPv4 addresses are in the order of their bytes in packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name in the guest, as in `eth0`.
    pub interface: String,
    /// The guest's address.
    pub address: [u8; 4],
    /// The bits of it that all addresses of the network have in common.
    pub prefix: u8,
    /// The address of the router to all others; zeros if there is none.
    pub router: [u8; 4],
}

/// Where a container's changes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writable {
    /// The guest's memory, up to so many bytes; without a number, half of it.
    Memory(Option<u64>),
    /// This block device of the guest, an ext4 that is grown to the device's size.
    Disk(String),
    /// The same, of which nothing is needed after the container's end: no journal is kept, and nothing is waited for.
    Scratch(String),
}

impl Default for Writable {
    fn default() -> Self {
        Self::Memory(None)
    }
}

/// A file system of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, in the container.
    pub target: String,
    /// What.
    pub kind: MountKind,
    /// Flags of mount(2).
    pub flags: u64,
    /// Options for the file system, as in `mode=1777,size=64m`.
    pub options: String,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A new file system of this type, as in `tmpfs`.
    FileSystem(String),
    /// A virtiofs of this tag.
    Share(String),
    /// The container's cgroup.
    Cgroup,
    /// A folder or file in a virtiofs that all of them have in common.
    Part {
        /// The tag of the virtiofs.
        tag: String,
        /// Its name there.
        name: String,
        /// Where it is an empty directory, it gets what the image has at its place.
        fills: bool,
    },
    /// A directory on this block device of the guest, an ext4 that is grown to the device's size.
    Disk {
        /// The device, as in `/dev/vdd`.
        device: String,
        /// Where it is empty, it gets what the image has at its place.
        fills: bool,
    },
    /// A Unix socket. A connection to it is one to a port of the host's vsock.
    Socket {
        /// The port.
        port: u32,
        /// The mode of its file.
        mode: u32,
        /// The file's owner.
        user: u32,
        /// The file's group.
        group: u32,
    },
    /// What is further down in a folder that is a [`MountKind::Part`].
    Below {
        /// The tag of the virtiofs.
        tag: String,
        /// The folder's name there.
        name: String,
        /// The path in it, without links.
        path: String,
    },
    /// What is below the directory of [`MountKind::Disk`].
    DiskBelow {
        /// The device, as in `/dev/vdd`.
        device: String,
        /// The path in the directory, of which no part is a link.
        path: String,
    },
}

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Where, in the container.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// What a container may use (cgroup v2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Microseconds of processor time in each 100,000 of real time.
    pub cpu_quota: Option<u64>,
    /// Its share of the processors beside others: 1 to 10,000.
    pub cpu_weight: Option<u64>,
    /// The processors that it may use, as in `0-1,3`.
    pub cpus: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes of memory that are taken from it last.
    pub memory_low: Option<u64>,
}

/// A process of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory, which is made where it does not exist.
    pub cwd: String,
    /// As docker writes it: user, or user:group, by name or number. Empty: root.
    pub user: String,
    /// Further groups, by name or number.
    pub groups: Vec<String>,
    /// The size of its terminal, where it has one.
    pub terminal: Option<Size>,
    /// It gets input; without that it reads the end of its input at once.
    pub has_input: bool,
    /// What it may do.
    pub capabilities: Capabilities,
    /// Programs that it executes give it no further rights.
    pub no_new_privileges: bool,
    /// Limits of setrlimit(2).
    pub limits: Vec<Limit>,
    /// Filters of its system calls: programs of BPF instructions of 8 bytes, loaded in this order.
    pub seccomp: Vec<Vec<u8>>,
    /// How soon the kernel kills it for lack of memory: -1000 (never) to 1000 (first).
    pub oom_score_adjustment: Option<i16>,
}

/// What the containers of a pod share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// The name of their host.
    pub hostname: String,
    /// The VM's network device, if it has one.
    pub network: Option<Network>,
    /// /etc/hosts, to which the containers' names are added.
    pub hosts: String,
    /// They see each other's processes.
    pub shares_processes: bool,
    /// Bytes of /dev/shm.
    pub shm_size: u64,
    /// What they may use together.
    pub resources: Resources,
}

/// A container of a pod. Its network, host name, /etc/hosts and /dev/shm are the pod's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodContainer {
    /// The container.
    pub container: Container,
    /// What the others can call it.
    pub names: Vec<String>,
    /// The disks that were put into the VM for it, which the guest's kernel may not know of yet.
    pub disks: Vec<PodDisk>,
}

/// What makes a VM that goes on from a template another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awakening {
    /// Random bytes of the host's, which change all that the guest's kernel draws from then on.
    pub seed: Vec<u8>,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// The disks that were put into the VM, which are waited for.
    pub disks: Vec<PodDisk>,
}

/// A root that is mounted before there is a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// As [`Container::image`].
    pub image: String,
    /// As [`Container::writable`].
    pub writable: Writable,
}

/// What makes the container of a VM that is a copy of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The container that it is a copy of.
    pub container: String,
    /// What it is called from now on.
    pub id: String,
    /// Its host name.
    pub hostname: String,
    /// Files that name it: they are written where they are files still.
    pub files: Vec<File>,
}

/// A disk that was put into a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDisk {
    /// The guest's block device, as in `/dev/vdc`.
    pub device: String,
    /// How many sectors of 512 bytes it has.
    pub sectors: u64,
}

/// A further process of a container: what it has in common with the first one is not said again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`, added to those of the first process.
    pub env: Vec<String>,
    /// The working directory, in place of the first process's. It has to exist.
    pub cwd: Option<String>,
    /// As [`Process::user`], in place of the first process's.
    pub user: Option<String>,
    /// The size of its terminal, where it has one.
    pub terminal: Option<Size>,
    /// It gets input.
    pub has_input: bool,
    /// What it writes is not read.
    pub is_detached: bool,
    /// What it may do, in place of what the first process may.
    pub capabilities: Option<Capabilities>,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Sets of capabilities, a bit for each (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Those that a program of root's gets, and the most that any program does.
    pub bounding: u64,
    /// Those that programs of any user keep.
    pub ambient: u64,
}

/// A limit of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The number of the resource, as `RLIMIT_NOFILE`.
    pub resource: u32,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}
