//! `mvm boot`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Deserialize;
use vmm::{ConsoleConfig, DiskConfig, MemorySize, NetConfig, Timeline, Vm, VmConfig};

use crate::{chain, complain, config_file, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm boot --kernel vmlinux --rootfs rootfs.ext4
  mvm boot --kernel /boot/vmlinuz --initrd initrd.img --append \"console=ttyS0\" --cpus 4 --memory 2G \\
           --disk data.img --disk seed.iso,readonly --net tap=tap0
  mvm boot --config vm.toml --memory 4G

A configuration file has the names of the flags (paths in it are relative to it):
  kernel = \"vmlinux\"
  rootfs = \"rootfs.ext4\"
  disk = [\"data.img\", \"seed.iso,readonly\"]
  net = [\"tap=tap0\"]
  cpus = 4
  memory = \"2G\"

On a terminal, Ctrl-A x stops the VM, Ctrl-A h shows help, and all other keys go to the guest.
SIGTERM presses the guest's power button; a second one stops it.

Exit codes: 0 the guest powered off or rebooted, 2 wrong usage or configuration, 3 the host cannot do it,
4 the guest crashed, 128 + N stopped by signal N.";

/// Arguments of `mvm boot`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct BootCommand {
    /// Read the VM from a TOML file; a flag wins over what the file says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: BootOptions,

    /// Print what start-up spent its time on
    #[arg(long)]
    timing: bool,
}

/// What flags and configuration files can both say, by the same names and in the same words.
#[derive(Args, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BootOptions {
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

    /// A network device: a tap, a new port of a bridge, or the host's sockets; may be given more than once
    #[arg(long, value_name = "tap=NAME|bridge=NAME|user[,mac=ADDRESS][,queues=N][,mtu=N]")]
    #[serde(default)]
    pub net: Vec<NetConfig>,

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

    /// Where the serial console goes [default: stdio]
    #[arg(long, value_name = "stdio|off|FILE")]
    pub console: Option<ConsoleConfig>,
}

impl BootOptions {
    /// These options, completed by those of `other`.
    fn or(self, other: Self) -> Self {
        Self {
            kernel: self.kernel.or(other.kernel),
            initrd: self.initrd.or(other.initrd),
            rootfs: self.rootfs.or(other.rootfs),
            disk: if self.disk.is_empty() { other.disk } else { self.disk },
            net: if self.net.is_empty() { other.net } else { self.net },
            cpus: self.cpus.or(other.cpus),
            memory: self.memory.or(other.memory),
            append: self.append.or(other.append),
            cmdline: self.cmdline.or(other.cmdline),
            console: self.console.or(other.console),
        }
    }

    fn into_config(self) -> Result<VmConfig, String> {
        Ok(VmConfig {
            kernel: self
                .kernel
                .ok_or("no kernel: give --kernel FILE, or a line kernel = \"FILE\" in --config")?,
            initrd: self.initrd,
            rootfs: self.rootfs,
            disks: self.disk,
            nets: self.net,
            cpus: self.cpus.unwrap_or(1),
            memory: self.memory.unwrap_or(MemorySize::from_mib(512)),
            append: self.append,
            cmdline: self.cmdline,
            console: self.console.unwrap_or_default(),
        })
    }
}

/// Boots a VM and runs it to its end. `start` is when the process started.
pub fn run(command: BootCommand, start: Instant) -> ExitCode {
    let config = match configuration(command.options, command.config) {
        Ok(config) => config,
        Err(message) => {
            complain(&message);
            return exit_code::USAGE.into();
        }
    };
    let timeline = Arc::new(Timeline::starting_at(start));
    let result = Vm::new(&config, timeline.clone()).and_then(Vm::run);
    match result {
        Ok(reason) => {
            if command.timing {
                // Where standard error is closed there is nobody to tell.
                let _ = write!(io::stderr(), "{timeline}");
            }
            let code = exit_code::of_exit(&reason);
            if code == exit_code::SUCCESS {
                tracing::info!("{reason}");
            } else {
                complain(&reason.to_string());
            }
            code.into()
        }
        Err(error) => {
            complain(&chain(&error));
            exit_code::of_error(&error).into()
        }
    }
}

fn configuration(flags: BootOptions, file: Option<PathBuf>) -> Result<VmConfig, String> {
    let options = match file {
        Some(path) => flags.or(config_file::read(&path).map_err(|error| chain(&error))?),
        None => flags,
    };
    options.into_config()
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
                "memory" => "'1G'",
                "disk" => "['x']",
                "net" => "['user', 'tap=tap0,queues=2']",
                _ => "'x'",
            };
            options(&format!("{flag} = {value}"));
        }
    }

    #[test]
    fn without_a_kernel_the_message_says_how_to_give_one() {
        let error = BootOptions::default().into_config().unwrap_err();
        assert!(error.contains("--kernel"), "{error}");
    }
}
