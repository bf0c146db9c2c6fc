//! What describes a VM, by flags and in a configuration file.

use std::path::PathBuf;

use clap::Args;
use instance::{Identity, VmId, VmName};
use serde::Deserialize;
use vmm::{
    ConsoleConfig, DiskConfig, GdbConfig, MemorySize, NetConfig, PmemConfig, PublishConfig, ShareConfig,
    TimeLimit, VhostUserConfig, VmConfig, VsockConfig,
};

use crate::root_config::RootConfig;
use crate::values;

// The headings of `mvm boot --help`.
const KERNEL: &str = "Kernel";
const MACHINE: &str = "Machine";
const DISKS: &str = "Disks";
const NETWORK: &str = "Network";
const SHARES: &str = "Shared folders";
const LIFE: &str = "End";
const CONSOLE: &str = "Console and debugging";

/// What flags and configuration files have in common, under the same names and in the same form.
///
/// The first paragraph of each comment is the line of `mvm boot -h`, all of it is the text of `mvm boot --help`.
#[derive(Args, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are the help, with brackets around what is optional"
)]
pub struct BootOptions {
    /// Name the VM
    ///
    /// Other commands accept the name in place of the ID. No two running VMs of a user have the same name. It has 1 to
    /// 64 letters, digits, '_', '.' and '-'.
    #[arg(long, value_name = "NAME")]
    #[serde(default, deserialize_with = "values::text")]
    pub name: Option<VmName>,

    /// Set the VM's ID, 12 hexadecimal digits [default: random]
    #[arg(long, value_name = "ID", hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    pub id: Option<VmId>,

    /// Kernel: a vmlinux (ELF) or bzImage
    ///
    /// An ELF vmlinux, with or without a PVH note, or a bzImage such as a distribution's /boot/vmlinuz. Required, here
    /// or in the file of --config, unless --rootfs is an image.
    #[arg(long, value_name = "FILE", help_heading = KERNEL)]
    #[serde(default, deserialize_with = "values::path")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk
    ///
    /// Distributions' kernels need theirs to find their disks: their drivers for virtio are modules.
    #[arg(long, value_name = "FILE", help_heading = KERNEL)]
    #[serde(default, deserialize_with = "values::path")]
    pub initrd: Option<PathBuf>,

    /// Add kernel arguments
    ///
    /// They go behind mvm's own (console=, panic=-1, and root=/dev/vda rw with --rootfs), so that they win.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, help_heading = KERNEL)]
    #[serde(default, deserialize_with = "values::text")]
    pub append: Option<String>,

    /// Replace mvm's own kernel arguments
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, help_heading = KERNEL, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    pub cmdline: Option<String>,

    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N", help_heading = MACHINE, value_parser = values::cpus)]
    #[serde(default, deserialize_with = "values::number")]
    pub cpus: Option<u32>,

    /// RAM of the guest, such as 512M or 2G [default: 512M]
    ///
    /// A number with K, M, G or T, which are powers of 1024: 512M, 512m, 512MB and 512MiB are the same. A number
    /// without a unit counts bytes, as with docker; QEMU and Firecracker count MiB.
    #[arg(long, short, value_name = "SIZE", help_heading = MACHINE, alias = "mem")]
    #[serde(default, deserialize_with = "values::text")]
    pub memory: Option<MemorySize>,

    /// Add a memory balloon
    ///
    /// Memory that the guest frees goes back to the host, and `mvm balloon` takes more from the guest.
    #[arg(long, help_heading = MACHINE, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::switch")]
    pub balloon: bool,

    /// Let the guest run VMs itself
    ///
    /// The host's KVM must allow nested virtualization; `mvm doctor` says whether it does.
    #[arg(long, help_heading = MACHINE, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::switch")]
    pub nested: bool,

    /// Let the guest use performance counters
    ///
    /// For perf(1) in the guest. Without it the guest sees none.
    #[arg(long, help_heading = MACHINE, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::switch")]
    pub pmu: bool,

    /// Disk with the root file system, or image:IMAGE
    ///
    /// DISK becomes /dev/vda, and root=/dev/vda is added to the kernel's arguments. Options as for --disk.
    ///
    /// image:IMAGE[,changes=FILE][,size=SIZE][,memory]
    ///
    /// With image: the root has the files of an OCI image, which is pulled where it is missing. Its init runs
    /// (/sbin/init and the like), or a shell where it has none. What the guest writes goes to a disk of 20G, or SIZE,
    /// and is gone when the VM ends; with changes=FILE it stays in FILE, which is made where it is missing; with memory
    /// it is in the guest's memory. Without --kernel the kernel is that of containers. `mvm exec` and `mvm cp` reach
    /// the guest as with --agent.
    #[arg(long, value_name = "DISK", help_heading = DISKS)]
    #[serde(default, deserialize_with = "values::text")]
    pub rootfs: Option<RootConfig>,

    /// Add a disk: a raw image or block device
    ///
    /// PATH[,OPTION...], with the options readonly, id=ID, format=raw, limit-bandwidth=RATE and limit-iops=RATE
    ///
    /// Disks become /dev/vda, /dev/vdb and so on, after that of --rootfs. The guest finds ID as the disk's serial
    /// number. An image of another format, such as qcow2, is refused unless format=raw is given.
    /// A RATE is what may pass in a second and, after a colon, at once after a pause: 50M or 50M:200M of bytes, 1000 or
    /// 1000:5000 of requests. Write a comma in PATH as two. May be given more than once.
    #[arg(long, value_name = "DISK", help_heading = DISKS)]
    #[serde(default, deserialize_with = "values::list")]
    pub disk: Vec<DiskConfig>,

    /// Add a file as persistent memory (/dev/pmem0)
    ///
    /// PATH[,readonly|,cow][,format=raw]
    ///
    /// The guest maps the file's pages from the host's page cache. With readonly it only reads the file; with cow it
    /// writes to copies of the pages, which are lost when the VM ends. May be given more than once.
    #[arg(long, value_name = "PMEM", help_heading = DISKS, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::list")]
    pub pmem: Vec<PmemConfig>,

    /// Add a network: user, tap=NAME or bridge=NAME
    ///
    /// user[,no-host] | tap=NAME | bridge=NAME
    ///
    /// "user" needs no root: passt translates the guest's connections to the host's sockets (no-host keeps the guest
    /// from services on the host's loopback). "tap=" uses a tap that exists; "bridge=" makes a tap on that bridge. For
    /// each of them: [,mac=ADDRESS][,mtu=N], for tap and bridge [,queues=N], and limits: limit-rx=RATE (to the guest)
    /// and limit-tx=RATE (from it) in bytes, limit-rx-pps=RATE and limit-tx-pps=RATE in packets, with RATE as for
    /// --disk. May be given more than once.
    #[arg(long, value_name = "NET", help_heading = NETWORK)]
    #[serde(default, deserialize_with = "values::list")]
    pub net: Vec<NetConfig>,

    /// Publish a guest port on the host: 8080:80
    ///
    /// [ADDRESS:]HOST:GUEST[/udp]
    ///
    /// As in 8080:80, 127.0.0.1:8080:80, [::1]:53:53/udp or 8000-8010:8000-8010. Needs --net user, and adds it where
    /// there is no --net. May be given more than once.
    #[arg(short, long, value_name = "PORTS", help_heading = NETWORK)]
    #[serde(default, deserialize_with = "values::list")]
    pub publish: Vec<PublishConfig>,

    /// Add a socket device between guest and host
    ///
    /// PATH[,cid=N]
    ///
    /// Host programs connect to the Unix socket at PATH and write "CONNECT PORT"; the guest's connections to port N of
    /// CID 2 go to the Unix socket at PATH_N. The guest's CID is 3 unless set.
    #[arg(long, value_name = "VSOCK", help_heading = NETWORK, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    pub vsock: Option<VsockConfig>,

    /// Let `mvm exec` and `mvm cp` reach the guest
    ///
    /// Adds a socket device for mvm's agent, which has to run in the guest: put mvm-agent of mvm's share/mvm there, and
    /// have the guest's init run `mvm-agent --service` as root; for systemd, mvm-agent.service beside it does. With
    /// --vsock the agent is reached by that device without this option.
    #[arg(long, help_heading = MACHINE, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::switch")]
    pub agent: bool,

    /// Share a host folder with the guest: src:/work
    ///
    /// DIR:PATH[,readonly][,sandbox=namespace|chroot|none], or as docker has it, DIR:PATH:ro
    ///
    /// The guest mounts it with `mount -t virtiofs PATH PATH`; the init of mvm's own images does so by itself.
    /// virtiofsd serves it, which is looked for in PATH unless MVM_VIRTIOFSD names it. May be given more than once.
    #[arg(short = 'v', long, value_name = "SHARE", help_heading = SHARES, alias = "volume")]
    #[serde(default, deserialize_with = "values::list")]
    pub share: Vec<ShareConfig>,

    /// Add a device that another process serves
    ///
    /// fs=SOCKET,tag=TAG
    ///
    /// The process listens on the Unix socket SOCKET and speaks vhost-user. May be given more than once.
    #[arg(long, value_name = "DEVICE", help_heading = SHARES, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::list")]
    pub vhost_user: Vec<VhostUserConfig>,

    /// Console: stdio, virtio, off or a file [default: stdio]
    ///
    /// "stdio" is the serial port on standard input and output. "virtio" is faster and follows the terminal's size, but
    /// needs a driver in the guest. "off" shows nothing. A path, with a slash or a dot in it, is a file to which the
    /// serial port's output is appended.
    #[arg(long, value_name = "KIND", help_heading = CONSOLE)]
    #[serde(default, deserialize_with = "values::text")]
    pub console: Option<ConsoleConfig>,

    /// End the VM after this time, with exit code 124
    ///
    /// Seconds, or a number with ms, s, m, h or d. mvm presses the guest's power button, and ends the VM by force
    /// --stop-timeout later.
    #[arg(long, value_name = "TIME", help_heading = LIFE)]
    #[serde(default, deserialize_with = "values::text")]
    pub timeout: Option<TimeLimit>,

    /// How long the guest has to power off [default: 10s]
    ///
    /// Once it was asked to by SIGTERM, SIGINT, SIGHUP, SIGQUIT or --timeout. Then the VM ends by force.
    #[arg(long, value_name = "TIME", help_heading = LIFE, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    pub stop_timeout: Option<TimeLimit>,

    /// Wait for GDB before the first instruction
    ///
    /// On a Unix socket (PATH), a port of 127.0.0.1 (PORT), or ADDRESS:PORT.
    #[arg(long, value_name = "PLACE", help_heading = CONSOLE, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    pub gdb: Option<GdbConfig>,

    /// Confine the VM's process on the host: best-effort, strict or off [default: best-effort]
    ///
    /// best-effort: by all that the host offers. strict: by all that there is, or the VM is not started. off: not, for
    /// debuggers and profilers of mvm itself.
    #[arg(long, value_name = "MODE", value_parser = values::jail_mode, help_heading = LIFE, hide_short_help = true)]
    #[serde(default, deserialize_with = "values::text")]
    pub jail: Option<jail::Mode>,
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
            agent: self.agent || other.agent,
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
            pmu: self.pmu || other.pmu,
            gdb: self.gdb.or(other.gdb),
            timeout: self.timeout.or(other.timeout),
            stop_timeout: self.stop_timeout.or(other.stop_timeout),
            jail: self.jail.or(other.jail),
        }
    }

    /// The VM's identity.
    pub fn identity(&self) -> Identity {
        Identity { id: self.id.clone(), name: self.name.clone(), directory: None }
    }

    /// The VM that they describe.
    ///
    /// # Errors
    ///
    /// A message that says what is missing.
    pub fn into_config(mut self) -> Result<VmConfig, String> {
        // As with containers, a published port implies a network.
        if self.net.is_empty() && !self.publish.is_empty() {
            self.net.push(NetConfig::user());
        }
        let kernel = self
            .kernel
            .ok_or("no kernel: use --kernel FILE, or a line kernel = \"FILE\" in the file of --config")?;
        let default = VmConfig::new(&kernel);
        // Every field is named, so that a new one cannot be forgotten here.
        Ok(VmConfig {
            slots: 0,
            in_slots: default.in_slots,
            kernel,
            initrd: self.initrd,
            rootfs: self.rootfs.and_then(RootConfig::into_disk),
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
            pmu: self.pmu,
            gdb: self.gdb,
            timeout: self.timeout,
            stop_timeout: self.stop_timeout.unwrap_or(default.stop_timeout),
            jail: self.jail.unwrap_or(default.jail),
            jail_ids: default.jail_ids,
            limits_cpus: default.limits_cpus,
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

    /// A line of the file does what the flag does: the value arrives, and in the same field.
    #[test]
    fn every_flag_has_its_line_in_the_file() {
        use clap::{Args as _, FromArgMatches as _};
        let flags = || BootOptions::augment_args(clap::Command::new("boot"));
        let nothing = format!("{:?}", BootOptions::default());
        for argument in flags().get_arguments() {
            let Some(flag) = argument.get_long() else { continue };
            let value = match flag {
                "cpus" => "3",
                "memory" => "1G",
                "console" | "vsock" => "./x",
                "net" => "tap=tap0,queues=2",
                "publish" => "8080:80",
                "share" => "x:/x",
                "vhost-user" => "fs=x,tag=x",
                "timeout" | "stop-timeout" => "90s",
                "id" => "0123456789ab",
                "jail" => "strict",
                _ => "x",
            };
            let is_switch = matches!(argument.get_action(), clap::ArgAction::SetTrue);
            let words =
                if is_switch { vec![format!("--{flag}")] } else { vec![format!("--{flag}"), value.into()] };
            let given = flags().no_binary_name(true).try_get_matches_from(words).unwrap();
            let given = BootOptions::from_arg_matches(&given).unwrap();
            let line = match flag {
                _ if is_switch => format!("{flag} = true"),
                "cpus" => format!("{flag} = {value}"),
                _ => format!("{flag} = '{value}'"),
            };
            let read = options(&line);
            assert_eq!(format!("{read:?}"), format!("{given:?}"), "{line}");
            assert_ne!(format!("{read:?}"), nothing, "{line}");
            // Nor is it lost where flags and file are put together.
            assert_eq!(format!("{:?}", BootOptions::default().or(read)), format!("{given:?}"), "{line}");
        }
    }

    #[test]
    fn a_list_of_one_needs_no_brackets() {
        let one = options("disk = 'd.img'\nnet = 'user'\npublish = '1:2'\nshare = 'a:/a'\npmem = 'p'");
        let list =
            options("disk = ['d.img']\nnet = ['user']\npublish = ['1:2']\nshare = ['a:/a']\npmem = ['p']");
        assert_eq!(format!("{one:?}"), format!("{list:?}"));
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
