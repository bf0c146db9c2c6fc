//! `mvm boot`.

mod agent;
mod image;
mod kept;
mod ready;
mod restore;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use devices::log::Writer;
use instance::{Identity, Instance, InstanceError, Keep, Signals, Summary};
use vmm::{
    ConsoleConfig, ExitReason, Fault, Keeping, Limits, Outcome, Progress, Split, User, VmConfig, VmProcess,
};

pub use self::restore::{RestoreCommand, go_on, restore, resume};

use self::ready::{Awaited, ReadyArguments};
use crate::background::{self, Report, Reporter, SharedReporter};
use crate::defaults::Defaults;
use crate::options::BootOptions;
use crate::process::ExitCode;
use crate::run::{remove_resumed, stay_saved_by};
use crate::snapshot::PrivateDisks;
use crate::{chain, complain, config_file, exit_code, print, snapshot};

const MORE: &str = "`mvm boot --help` has all options, their syntax, and examples.";

const EXAMPLES: &str = "\
Examples:
  A VM with a console on this terminal:
    mvm boot --kernel vmlinux --rootfs rootfs.ext4

  A distribution's kernel with its initial RAM disk, and more of everything:
    mvm boot --kernel /boot/vmlinuz --initrd initrd.img --rootfs debian.img \\
        --cpus 4 --memory 2G --disk data.img --disk seed.iso,readonly

  A network without root, and ssh to the guest through port 2222:
    mvm boot --kernel vmlinux --rootfs rootfs.ext4 --net user -p 2222:22

  Two shared folders:
    mvm boot --kernel vmlinux --rootfs rootfs.ext4 \\
        --share src:/work --share /usr:/host,readonly

  In the background, with commands in the guest where it runs mvm's agent:
    mvm boot -d --agent --name vm --ready login: --kernel vmlinux --rootfs debian.img
    mvm exec vm uname -a; mvm cp vm:/var/log/syslog .

  The files of a container image as the root, with its init or a shell:
    mvm boot --rootfs image:alpine
    mvm boot -d --name vm --memory 2G --rootfs image:registry.lan/debian-systemd,changes=vm.ext4

  A configuration file; options win over it:
    mvm boot --config vm.toml --memory 4G

Configuration file:
  Keys are the names of the options; paths are relative to the file.
    kernel = \"vmlinux\"
    rootfs = \"rootfs.ext4\"
    disk = [\"data.img\", \"seed.iso,readonly\"]
    net = \"user\"
    publish = \"8080:80\"
    cpus = 4
    memory = \"2G\"

Keys and signals:
  On a terminal, Ctrl-A x stops the VM and Ctrl-A h shows help; all other keys
  go to the guest. SIGTERM, SIGINT, SIGHUP and SIGQUIT press the guest's power
  button. If the guest does not power off within --stop-timeout, or at another
  signal a second or more later, the VM ends by force.

Exit codes:
  0        the guest powered off or rebooted
  N        the guest set exit code N and powered off or rebooted
  2        wrong usage or configuration
  3        the host cannot run the VM
  4        the guest crashed
  124      --timeout expired
  128 + N  stopped by signal N (137: mvm kill)";

/// Arguments of `mvm boot`.
#[derive(Args)]
#[command(after_help = MORE, after_long_help = EXAMPLES)]
pub struct BootCommand {
    /// Read options from a TOML file
    ///
    /// Its keys are the names of the options. An option on the command line wins over the file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: BootOptions,

    /// Run in the background, and print the VM's ID
    ///
    /// `mvm logs` shows what its console showed, `mvm wait` waits for its end, and what is kept of it stays until
    /// `mvm rm`.
    #[arg(long, short)]
    detach: bool,

    /// Remove what is kept of a VM in the background when it ends; of others nothing is
    #[arg(long, hide_short_help = true)]
    rm: bool,

    #[command(flatten)]
    ready: ReadyArguments,

    /// Print how long each phase of the start took
    #[arg(long, help_heading = "Console and debugging", hide_short_help = true)]
    timing: bool,
}

/// Boots a VM and runs it to its end, or has it run in the background. `start` is when the process started. Without a
/// directory of its own (`has_directory`) the VM cannot be found by other commands.
pub fn run(command: BootCommand, has_directory: bool, start: Instant) -> ExitCode {
    let Described { config, asked, has_agent, image } = match configuration(command.options, command.config) {
        Ok(described) => described,
        Err(message) => {
            complain(&message);
            return exit_code::USAGE.into();
        }
    };
    let ready = command.ready.into_awaited();
    // An image's VM has the agent without --agent too.
    let has_agent = has_agent || (image.is_some() && has_directory);
    let (removes, timing, snapshot) = (command.rm, command.timing, None);
    let again = None;
    let order = Order { config, asked, has_agent, image, snapshot, removes, again, ready, timing, start };
    run_order(order, command.detach, has_directory)
}

fn run_order(order: Order, detach: bool, has_directory: bool) -> ExitCode {
    if !detach {
        return boot(order, has_directory, None).into();
    }
    if !has_directory {
        complain("a VM in the background needs a directory: leave --runtime-dir none or --detach out");
        return exit_code::USAGE.into();
    }
    match background::start(|reporter| boot(order, true, Some(reporter))) {
        Ok(Report::Started { id }) => print(format!("{id}\n").as_bytes(), exit_code::SUCCESS),
        Ok(Report::Failed { code, message }) => {
            complain(&message);
            code.into()
        }
        Err(error) => {
            complain(&format!("cannot run in the background: {error}"));
            exit_code::HOST.into()
        }
    }
}

/// What the user has ordered.
struct Order {
    config: VmConfig,
    asked: Identity,
    /// The agent in its guest can be reached.
    has_agent: bool,
    /// The image that its root is made of.
    image: Option<image::Opened>,
    /// Where it goes on from, if it does not boot.
    snapshot: Option<snapshot::Opened>,
    /// What is kept of it in the background is removed when it ends.
    removes: bool,
    /// What is kept already of one that goes on from what was saved of itself.
    again: Option<Keep>,
    /// In the background, what tells that the guest is ready.
    ready: Option<Awaited>,
    timing: bool,
    start: Instant,
}

/// What ends mvm before there is a VM.
struct Refusal {
    code: u8,
    message: String,
}

impl Refusal {
    fn host(what: &str, error: &dyn std::error::Error) -> Self {
        Self { code: exit_code::HOST, message: format!("cannot {what}: {}", chain(error)) }
    }
}

/// Runs the VM in a process of its own, which this one keeps; in the background, with a `reporter`, something is kept
/// of it. Returns the exit code.
fn boot(order: Order, has_directory: bool, reporter: Option<Reporter>) -> u8 {
    let reporter = SharedReporter::new(reporter);
    // Until the last line is written.
    let mut writer = None;
    match try_boot(order, has_directory, &reporter, &mut writer) {
        Ok(code) => code,
        Err(Refusal { code, message }) => {
            if !reporter.report(&Report::Failed { code, message: message.clone() }) {
                complain(&message);
            }
            code
        }
    }
}

fn try_boot(
    order: Order,
    has_directory: bool,
    reporter: &SharedReporter,
    writer: &mut Option<Writer>,
) -> Result<u8, Refusal> {
    let Order { mut config, asked, has_agent, image, snapshot, ready, timing, start, removes, again } = order;
    instance::ignore_limits_and_terminal();
    let shown = image.as_ref().map(|image| image.shown.clone());
    let shown = shown.or_else(|| snapshot.as_ref()?.root(&config));
    // That may take long, and is ended by a signal as any program.
    let (snapshot, own_disks) = restore::take_disks(snapshot, &mut config)?;
    let signals = instance::take_ending().map_err(|error| Refusal::host("take signals", &error))?;
    let instance = claim(has_directory, &asked, &config, shown.as_deref())?;
    agent::give_place(&mut config, has_agent, instance.as_ref().map(Instance::path))?;
    let identity = instance.as_ref().map_or(asked, Instance::identity);
    let is_background = reporter.lock().is_some();
    let keep = instance.as_ref().filter(|_| is_background);
    let keep = match (keep, again) {
        (Some(_), Some(mut again)) => {
            kept::begin(&mut again)?;
            Some(again)
        }
        (instance, _) => {
            let keep = |instance| kept::keep(instance, &config, shown.as_deref(), removes);
            instance.map(keep).transpose()?
        }
    };
    let (messages, log) = (keep.as_ref().map(Keep::messages), keep.as_ref().map(Keep::output));
    let limits = Limits::from(&config);
    let awaited = ready.as_ref().map(|ready| ready.text().to_owned());
    let leave = || drop(reporter.lock().take());
    let order = vmm::Order {
        config: &config,
        identity: &identity,
        log,
        user: Some(User { limits, awaited }),
        snapshot,
        split: Split { until_open: Box::new(image), leave: Box::new(leave) },
        start,
    };
    let started = VmProcess::start_for(order, instance, (keep, signals));
    let (vm, instance, (keep, signals)) = started.map_err(|error| {
        let _ = identity.id.as_ref().map(stay_saved_by);
        Refusal::host("make a process for the VM", &error)
    })?;
    // Where it is slow to read what mvm says, the VM ends in time all the same.
    *writer = Some(Writer::start().map_err(|error| Refusal::host("start a thread", &error))?);
    let kept = Kept { vm: Arc::new(vm), instance, keep, signals, messages, ready, own_disks };
    kept.run(&config, &identity, (timing, start), reporter)
}

/// What this process has of a VM that runs in another one.
struct Kept {
    vm: Arc<VmProcess>,
    instance: Option<Instance>,
    /// In the background, what stays.
    keep: Option<Keep>,
    signals: Signals,
    /// Where what mvm says goes then.
    messages: Option<PathBuf>,
    ready: Option<Awaited>,
    /// Copies of disks that are this VM's alone.
    own_disks: PrivateDisks,
}

impl Kept {
    /// Keeps it until it has ended, and says how; returns the exit code.
    fn run(
        self,
        config: &VmConfig,
        identity: &Identity,
        (timing, start): (bool, Instant),
        reporter: &SharedReporter,
    ) -> Result<u8, Refusal> {
        let Self { vm, instance, keep, signals, messages, ready, mut own_disks } = self;
        if let Some((messages, reporter)) = messages.zip(reporter.lock().as_mut()) {
            let kept = reporter.keep_messages(messages);
            kept.map_err(|error| Refusal::host("write messages to a file", &error))?;
        }
        let id = identity.id.as_ref().map(ToString::to_string).unwrap_or_default();
        let started = Report::Started { id: id.clone() };
        let watch = |ready: &Awaited| ready.watch(reporter.clone(), started.clone(), vm.clone());
        let printed = ready.as_ref().map(watch).transpose();
        let printed = printed.map_err(|error| Refusal::host("start a thread", &error))?;
        let keeping = Keeping {
            vm,
            signals,
            limits: config.into(),
            start,
            // Without a watch, where the user has no inotify instance left, a removal is reported at the VM's end.
            removal: instance.as_ref().and_then(|instance| instance.watch_removal().ok()),
            reads_stdin: matches!(config.console, ConsoleConfig::Stdio | ConsoleConfig::Virtio),
        };
        let outcome = keeping.run(|progress| {
            if progress == Progress::Built {
                own_disks.keep();
                keep.iter().for_each(|keep| remove_resumed(keep.directory()));
            }
            match (progress, &printed) {
                (Progress::Built, None) => drop(reporter.report(&started)),
                (Progress::Printed, Some(printed)) => printed(),
                _ => {}
            }
        });
        drop(instance);
        drop(own_disks);
        if timing && let Outcome::Ended(_, nanoseconds) = &outcome {
            devices::log::print(&vmm::timing_table(vmm::phases(nanoseconds)));
        }
        finish((outcome, keep), (ready, &id), reporter)
    }
}

/// Says how the VM ended, and notes it where something is kept of it; returns the exit code.
fn finish(
    (outcome, keep): (Outcome, Option<Keep>),
    (ready, id): (Option<Awaited>, &str),
    reporter: &SharedReporter,
) -> Result<u8, Refusal> {
    let (code, reason) = match outcome {
        Outcome::Failed(failure) if failure.fault != Fault::Guest || keep.is_none() => {
            keep.into_iter().for_each(kept::forget);
            return Err(Refusal { code: exit_code::of_failure(&failure), message: failure.text });
        }
        Outcome::Failed(failure) => {
            complain(&failure.text);
            (exit_code::of_failure(&failure), failure.text)
        }
        Outcome::Ended(reason, _) => (ending(&reason), reason.to_string()),
        Outcome::Died(code) => {
            let text = format!("the VM ended: {}", vmm::end_without_a_word(code));
            complain(&text);
            (code, text)
        }
    };
    if let Some(keep) = keep {
        let failure = ready.and_then(|ready| ready.failure(id, &reason, code));
        let error = match &failure {
            Some((_, message)) => message.clone(),
            None if code == exit_code::SUCCESS => String::new(),
            None => reason.clone(),
        };
        kept::finish(keep, code, error);
        // One that has started has been reported.
        let (code, message) = failure.unwrap_or((code, reason));
        reporter.report(&Report::Failed { code, message });
    }
    Ok(code)
}

/// Makes the directory of a VM, whose root may be an `image`.
fn claim(
    has_directory: bool,
    asked: &Identity,
    config: &VmConfig,
    image: Option<&str>,
) -> Result<Option<Instance>, Refusal> {
    let mut summary = Summary::from(config);
    if let Some(image) = image {
        summary.rootfs = Some(image.to_owned());
    }
    let claim = || has_directory.then(|| Instance::claim(asked, summary)).transpose();
    claim().map_err(|error| match error {
        InstanceError::Directory { .. } => Refusal {
            code: exit_code::HOST,
            message: format!(
                "{}: --runtime-dir DIR keeps VMs elsewhere, --runtime-dir none runs this one without a directory",
                chain(&error)
            ),
        },
        error => {
            let code = if error.is_the_hosts() { exit_code::HOST } else { exit_code::USAGE };
            Refusal { code, message: chain(&error) }
        }
    })
}

/// Says how the VM ended, and returns the exit code for it.
fn ending(reason: &ExitReason) -> u8 {
    let code = exit_code::of_exit(reason);
    if *reason == ExitReason::Stopped {
        // The guest's last line has no end.
        devices::log::print("\n");
        complain(&reason.to_string());
    } else if code == exit_code::SUCCESS {
        tracing::info!("{reason}");
    } else {
        complain(&reason.to_string());
        if let Some(hint) = reason.hint() {
            complain(hint);
        }
    }
    code
}

/// What options and file describe.
struct Described {
    config: VmConfig,
    asked: Identity,
    has_agent: bool,
    image: Option<image::Opened>,
}

fn configuration(flags: BootOptions, file: Option<PathBuf>) -> Result<Described, String> {
    let mut options = match file {
        Some(path) => flags.or(config_file::read(&path).map_err(|error| chain(&error))?),
        None => flags,
    };
    let (asked, has_agent) = (options.identity(), options.agent);
    let image = image::open(&mut options)?;
    let jail = options.jail;
    let config = confined(options.into_config()?, jail)?;
    if let Some(warning) = memory_warning(config.memory.bytes(), vmm::total_memory()) {
        tracing::warn!("{warning}");
    }
    Ok(Described { config, asked, has_agent, image })
}

/// A VM of `config`, confined as the option and the configuration file say.
pub fn confined(config: VmConfig, jail: Option<jail::Mode>) -> Result<VmConfig, String> {
    let defaults = Defaults::read()?;
    let jail = jail.or(defaults.jail).unwrap_or_default();
    Ok(VmConfig { jail, jail_ids: defaults.jail_ids, ..config })
}

/// A warning if a guest of `memory` bytes does not fit into a host of `total` bytes.
fn memory_warning(memory: u64, total: u64) -> Option<String> {
    let asked = vmm::MemorySize::from_bytes(memory);
    (memory > total).then(|| {
        format!(
            "--memory {asked} is more than this host's {}: a guest that uses it all swaps, or is killed",
            crate::table::bytes(total)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::memory_warning;

    #[test]
    fn memory_beyond_the_hosts_is_warned_of() {
        let warning = memory_warning(900 << 30, 24 << 30).unwrap();
        assert!(warning.starts_with("--memory 900G is more than this host's 24.0GiB"), "{warning}");
        assert_eq!(memory_warning(24 << 30, 24 << 30), None);
    }
}
