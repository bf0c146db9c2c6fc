//! What a VM can be told to be, by flags and by a configuration file.

use std::path::PathBuf;

use clap::Args;
use instance::{Identity, VmId, VmName};
use serde::Deserialize;
use vmm::{
    ConsoleConfig, DiskConfig, GdbConfig, MemorySize, NetConfig, PmemConfig, PublishConfig, ShareConfig,
    VhostUserConfig, VmConfig, VsockConfig,
};

/// What flags and configuration files can both say, by the same names and in the same words.
#[derive(Args, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BootOptions {
    /// A name for the VM, by which other commands find it; no two running VMs of a user have the same
    #[arg(long, value_name = "NAME")]
    pub name: Option<VmName>,

    /// The VM's ID, 12 hexadecimal digits [default: random]
    #[arg(long, value_name = "ID")]
    pub id: Option<VmId>,

    /// The guest's kernel: an ELF vmlinux (with or without PVH note) or a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// An initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// The disk that becomes /dev/vda and the root file system
    #[arg(long, value_name = "PATH[,readonly]")]
    pub rootfs: Option<DiskConfig>,

    /// A further disk: a raw image or a block device; may be given more than once. RATE is what there may be in a
    /// second, and at once after a pause: 50M or 50M:200M of bytes, 1000 or 1000:5000 of requests
    #[arg(long, value_name = "PATH[,readonly][,id=ID][,limit-bandwidth=RATE][,limit-iops=RATE]")]
    #[serde(default)]
    pub disk: Vec<DiskConfig>,

    /// Sockets between guest and host: host programs connect to the Unix socket at PATH and write "CONNECT port";
    /// the guest's connections to host port P go to the socket at PATH_P [default cid: 3]
    #[arg(long, value_name = "PATH[,cid=N]")]
    pub vsock: Option<VsockConfig>,

    /// A file as persistent memory (/dev/pmem0, …), with its pages in the host's page cache alone; the guest writes
    /// to it, or only reads, or writes to copies that end with the VM; may be given more than once
    #[arg(long, value_name = "PATH[,readonly|,cow]")]
    #[serde(default)]
    pub pmem: Vec<PmemConfig>,

    /// Give the guest a memory balloon: what it has free goes back to the host
    #[arg(long)]
    #[serde(default)]
    pub balloon: bool,

    /// A folder of the host, and where the guest is to see it: `mount -t virtiofs PATH PATH` mounts it in the guest,
    /// if its init does not do so by itself; may be given more than once. It is served by virtiofsd, which is looked
    /// for in PATH unless MVM_VIRTIOFSD names it
    #[arg(long, value_name = "HOSTDIR:PATH[,readonly][,sandbox=MODE]")]
    #[serde(default)]
    pub share: Vec<ShareConfig>,

    /// A device that a running process serves on a Unix socket; may be given more than once
    #[arg(long, value_name = "fs=SOCKET,tag=TAG")]
    #[serde(default)]
    pub vhost_user: Vec<VhostUserConfig>,

    /// A network device: a tap, a new port of a bridge, or the host's sockets (user, by passt, which takes no root;
    /// no-host keeps what listens on the host's loopback from it); may be given more than once. limit-rx=RATE (to the
    /// guest) and limit-tx=RATE (from it) limit bytes, limit-rx-pps=RATE and limit-tx-pps=RATE packets, with RATE as
    /// for disks
    #[arg(
        long,
        value_name = "tap=NAME|bridge=NAME|user[,mac=ADDRESS][,queues=N][,mtu=N][,no-host][,limit-rx=RATE]…"
    )]
    #[serde(default)]
    pub net: Vec<NetConfig>,

    /// Lead a port of the host to one of the guest, as in 8080:80, 127.0.0.1:8080:80, `[::1]:53:53/udp` or
    /// 8000-8010:8000-8010; without any --net, this is a --net user as well; may be given more than once
    #[arg(short, long, value_name = "[ADDRESS:]HOST:GUEST[/udp]")]
    #[serde(default)]
    pub publish: Vec<PublishConfig>,

    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,

    /// The guest's memory, in bytes or with K, M, G or T [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<MemorySize>,

    /// Kernel arguments added to mvm's own
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Kernel arguments in place of mvm's own
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub cmdline: Option<String>,

    /// The console: the serial port on standard input and output (stdio), a faster one that knows the window's size
    /// in its place (virtio), nothing (off), or the serial port to a file [default: stdio]
    #[arg(long, value_name = "stdio|virtio|off|FILE")]
    pub console: Option<ConsoleConfig>,

    /// Let the guest run VMs of its own, where this host's KVM can nest them
    #[arg(long)]
    #[serde(default)]
    pub nested: bool,

    /// Wait for GDB before the first instruction, on a Unix socket or a port of 127.0.0.1
    #[arg(long, value_name = "PATH|[ADDR:]PORT")]
    pub gdb: Option<GdbConfig>,
}

impl BootOptions {
    /// These options, completed by those of `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            id: self.id.or(other.id),
            kernel: self.kernel.or(other.kernel),
            initrd: self.initrd.or(other.initrd),
            rootfs: self.rootfs.or(other.rootfs),
            disk: if self.disk.is_empty() { other.disk } else { self.disk },
            vsock: self.vsock.or(other.vsock),
            pmem: if self.pmem.is_empty() { other.pmem } else { self.pmem },
            balloon: self.balloon || other.balloon,
            share: if self.share.is_empty() { other.share } else { self.share },
            vhost_user: if self.vhost_user.is_empty() { other.vhost_user } else { self.vhost_user },
            net: if self.net.is_empty() { other.net } else { self.net },
            publish: if self.publish.is_empty() { other.publish } else { self.publish },
            cpus: self.cpus.or(other.cpus),
            memory: self.memory.or(other.memory),
            append: self.append.or(other.append),
            cmdline: self.cmdline.or(other.cmdline),
            console: self.console.or(other.console),
            nested: self.nested || other.nested,
            gdb: self.gdb.or(other.gdb),
        }
    }

    /// What the VM is to be called.
    pub fn identity(&self) -> Identity {
        Identity { id: self.id.clone(), name: self.name.clone(), directory: None }
    }

    /// The VM that they describe.
    ///
    /// # Errors
    ///
    /// What is missing, for the user to read.
    pub fn into_config(mut self) -> Result<VmConfig, String> {
        // As with containers, whoever publishes a port has a network.
        if self.net.is_empty() && !self.publish.is_empty() {
            self.net.push(NetConfig::user());
        }
        let kernel =
            self.kernel.ok_or("no kernel: give --kernel FILE, or a line kernel = \"FILE\" in --config")?;
        let default = VmConfig::new(kernel);
        Ok(VmConfig {
            initrd: self.initrd,
            rootfs: self.rootfs,
            disks: self.disk,
            nets: self.net,
            publish: self.publish,
            vsock: self.vsock,
            shares: self.share,
            vhost_user: self.vhost_user,
            pmem: self.pmem,
            balloon: self.balloon,
            cpus: self.cpus.unwrap_or(default.cpus),
            memory: self.memory.unwrap_or(default.memory),
            append: self.append,
            cmdline: self.cmdline,
            console: self.console.unwrap_or_default(),
            nested: self.nested,
            gdb: self.gdb,
            ..default
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(toml: &str) -> BootOptions {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = options("kernel = 'a'\ncpus = 2\nmemory = '1G'\ndisk = ['x', 'y,readonly']");
        let flags = BootOptions { cpus: Some(4), disk: vec!["z".parse().unwrap()], ..Default::default() };
        let config = flags.or(file).into_config().unwrap();
        assert_eq!((config.cpus, config.memory.to_string()), (4, "1G".to_owned()));
        assert_eq!(config.disks, ["z".parse().unwrap()]);
    }

    #[test]
    fn every_flag_has_its_line_in_the_file() {
        use clap::Args as _;
        let flags = BootOptions::augment_args(clap::Command::new("boot"));
        for flag in flags.get_arguments().filter_map(|argument| argument.get_long()) {
            let value = match flag {
                "cpus" => "1",
                "nested" => "true",
                "memory" => "'1G'",
                "disk" | "pmem" => "['x']",
                "net" => "['user', 'tap=tap0,queues=2']",
                "publish" => "['8080:80']",
                "share" => "['x:/x']",
                "vhost-user" => "['fs=x,tag=x']",
                "balloon" => "true",
                "id" => "'0123456789ab'",
                _ => "'x'",
            };
            options(&format!("{flag} = {value}"));
        }
    }

    #[test]
    fn a_published_port_brings_its_network() {
        let nets = |toml: &str| {
            let nets =
                options(&format!("kernel = 'a'\npublish = ['8080:80']\n{toml}")).into_config().unwrap().nets;
            nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(nets(""), "user");
        assert_eq!(nets("net = ['user,mtu=1400']"), "user,mtu=1400");
        assert_eq!(nets("net = ['tap=tap0']"), "tap=tap0");
    }

    #[test]
    fn without_a_kernel_the_message_says_how_to_give_one() {
        let error = BootOptions::default().into_config().unwrap_err();
        assert!(error.contains("--kernel"), "{error}");
    }
}
