//! `mvm boot`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use instance::{Identity, Instance, Summary};
use vmm::{ExitReason, Frontend, Timeline, VmConfig, VmError};

use crate::options::BootOptions;
use crate::{chain, complain, config_file, exit_code};

const EXAMPLES: &str = "\
Examples:
  mvm boot --kernel vmlinux --rootfs rootfs.ext4
  mvm boot --kernel /boot/vmlinuz --initrd initrd.img --append \"console=ttyS0\" --cpus 4 --memory 2G \\
           --disk data.img --disk seed.iso,readonly --net tap=tap0
  mvm boot --kernel vmlinux --rootfs rootfs.ext4 --share ./src:/work --share /usr:/host,readonly
  mvm boot --kernel vmlinux --rootfs rootfs.ext4 --net user -p 8080:80 -p 127.0.0.1:5353:53/udp
  mvm boot --config vm.toml --memory 4G

A configuration file has the names of the flags (paths in it are relative to it):
  kernel = \"vmlinux\"
  rootfs = \"rootfs.ext4\"
  disk = [\"data.img\", \"seed.iso,readonly\"]
  share = [\"src:/work\"]
  net = [\"user\"]
  publish = [\"8080:80\"]
  cpus = 4
  memory = \"2G\"

While it runs, `mvm ps` lists the VM, and stop, kill, pause, resume and stats take its ID or --name.
On a terminal, Ctrl-A x stops the VM, Ctrl-A h shows help, and all other keys go to the guest.
SIGTERM presses the guest's power button; a second one stops it.

Exit codes: 0 the guest powered off or rebooted, 2 wrong usage or configuration, 3 the host cannot do it,
4 the guest crashed, 128 + N stopped by signal N (137 by `mvm kill`).";

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

/// Boots a VM and runs it to its end. `start` is when the process started.
pub fn run(command: BootCommand, start: Instant) -> ExitCode {
    // Before there is a VM: from here on, nothing that it causes waits for who reads standard error.
    let _writer = match devices::log::Writer::start() {
        Ok(writer) => writer,
        Err(error) => {
            complain(&format!("cannot start a thread: {error}"));
            return exit_code::HOST.into();
        }
    };
    let (config, asked) = match configuration(command.options, command.config) {
        Ok(described) => described,
        Err(message) => {
            complain(&message);
            return exit_code::USAGE.into();
        }
    };
    // Until the VM's end: then its directory is removed.
    let instance = match Instance::claim(&asked, Summary::from(&config)) {
        Ok(instance) => instance,
        Err(error) => {
            complain(&chain(&error));
            return if error.is_the_hosts() { exit_code::HOST } else { exit_code::USAGE }.into();
        }
    };
    let identity = instance.identity();
    let timeline = Arc::new(Timeline::starting_at(start));
    let result = Frontend::of_process(&config.console, identity.directory.as_deref())
        .and_then(|frontend| vmm::launch(&config, &identity, frontend, &timeline));
    drop(instance);
    if command.timing && result.is_ok() {
        devices::log::print(&timeline.to_string());
    }
    ending(result).into()
}

/// Says how the VM ended, and returns the exit code for it.
fn ending(result: Result<ExitReason, VmError>) -> u8 {
    match result {
        Ok(reason) => {
            let code = exit_code::of_exit(&reason);
            if code == exit_code::SUCCESS {
                tracing::info!("{reason}");
            } else {
                complain(&reason.to_string());
            }
            code
        }
        Err(error) => {
            complain(&chain(&error));
            exit_code::of_error(&error)
        }
    }
}

/// What to run, and what it is to be called.
fn configuration(flags: BootOptions, file: Option<PathBuf>) -> Result<(VmConfig, Identity), String> {
    let options = match file {
        Some(path) => flags.or(config_file::read(&path).map_err(|error| chain(&error))?),
        None => flags,
    };
    let identity = options.identity();
    Ok((options.into_config()?, identity))
}
