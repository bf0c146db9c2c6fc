//! `mvm run`.

mod again;
mod arguments;
mod create;
mod details;
mod docker;
mod health;
mod keep;
mod network;
mod policy;
mod resources;
mod restore;
mod start;
mod update;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use clap::{ArgAction, Args};
use container::{Assets, Image, LogLimits, Step, Timing};
use image::Hold;
use instance::{Format, VmName};

pub use self::again::KeeperCommand;
pub use self::arguments::{environment, label, pair, terminal_size};
pub use self::create::CreateCommand;
pub use self::details::ports;
pub use self::docker::platform;
pub use self::keep::Means;
pub use self::network::{default_network, host, word};
pub use self::policy::RestartPolicy;
pub use self::resources::milli_cpus;
pub use self::restore::RestoreCommand;
pub use self::start::{RestartCommand, StartCommand, prepare, start as start_kept};
pub use self::update::UpdateCommand;

use self::arguments::ContainerArguments;
use self::health::HealthArguments;
use self::keep::{Failure, Order, Side, Which, keep};
use crate::attach::{self, AttachArguments};
use crate::background::{self, Report, Reporter};
use crate::images::{self, PullPolicy, RegistryArguments};
use crate::pod;
use crate::process::ExitCode;
use crate::{complain, exit_code, print};

const MORE: &str = "`mvm run --help` has all options, their syntax, and examples.";

const EXAMPLES: &str = "\
Examples:
  mvm run alpine echo hello                 run a command
  mvm run -it -e A=1 -w /src alpine sh      a shell on this terminal
  mvm run -m 512m --cpus 1.5 alpine nproc   with limits
  mvm run -d --name web -p 8080:80 nginx    in the background

Exit codes:
  N      that of the container's command (128 + signal where it was killed)
  125    mvm itself failed
  126    the command can't be executed
  127    there is no such command";

/// Arguments of `mvm run`, which are those of `docker run`.
#[derive(Args)]
#[command(after_help = MORE, after_long_help = EXAMPLES, disable_help_flag = true)]
#[command(mut_arg("plain_http", |argument| argument.hide_short_help(true)))]
pub struct RunCommand {
    /// Print all options, their syntax, and examples
    #[arg(long, action = ArgAction::HelpLong)]
    help: Option<bool>,

    /// Run in the background, and print the container's ID
    #[arg(long, short)]
    detach: bool,

    #[command(flatten)]
    order: OrderArguments,

    #[command(flatten)]
    attach: AttachArguments,

    /// Print how long each phase of the start took
    ///
    /// In the background the table is among mvm's messages, which `mvm.log` keeps.
    #[arg(long, help_heading = "Console and debugging", hide_short_help = true)]
    timing: bool,

    #[command(flatten)]
    what: WhatArguments,
}

/// The options of what is made.
#[derive(Args)]
struct OrderArguments {
    /// Set the container's name
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,

    /// Start it again when it ends: no, on-failure, on-failure:TIMES, always or unless-stopped
    ///
    /// After 100 ms at first, and after twice that each time, up to a minute. `mvm stop` and `mvm kill` end it for good.
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "no",
        hide_default_value = true,
        hide_short_help = true
    )]
    restart: RestartPolicy,
    /// Put the container into a pod: its ID, the beginning of that, or its name; or new:NAME
    ///
    /// It shares the pod's VM, network, host name and IPC with the pod's other containers. new:NAME makes the pod.
    #[arg(long, value_name = "POD", hide_short_help = true)]
    pod: Option<String>,

    /// Pull the image: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing", hide_possible_values = true)]
    pull: PullPolicy,

    /// Say nothing of an image that is pulled
    #[arg(long, short, hide_short_help = true)]
    quiet: bool,

    #[command(flatten)]
    registry: RegistryArguments,

    #[command(flatten)]
    container: ContainerArguments,

    #[command(flatten)]
    log: LogArguments,

    #[command(flatten)]
    health: HealthArguments,
}

/// What a container is made of.
#[derive(Args)]
struct WhatArguments {
    /// The image
    image: String,

    /// The command and its arguments, in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What becomes of a container's output.
#[derive(Args)]
struct LogArguments {
    /// Keep the output: json-file, or none
    ///
    /// `mvm logs` shows what is kept. local means the same as json-file.
    #[arg(
        long,
        value_name = "DRIVER",
        default_value = "json-file",
        value_parser = ["json-file", "local", "none"],
        hide_possible_values = true,
        hide_short_help = true
    )]
    log_driver: String,

    /// Set how much is kept: max-size=10m, max-file=2
    #[arg(long, value_name = "OPTION", value_parser = log_option, hide_short_help = true)]
    log_opt: Vec<LogOption>,
}

#[derive(Clone, Copy)]
enum LogOption {
    Size(u64),
    Files(u32),
}

/// Reads `max-size=SIZE` or `max-file=NUMBER`.
fn log_option(text: &str) -> Result<LogOption, String> {
    let error = || format!("invalid log option {text:?}: use max-size=SIZE, as in 10m, or max-file=NUMBER");
    match text.split_once('=').ok_or_else(error)? {
        ("max-size", size) => {
            let size: vmm::MemorySize = size.parse().map_err(|_| error())?;
            Some(size.bytes()).filter(|size| *size > 0).map(LogOption::Size).ok_or_else(error)
        }
        ("max-file", number) => Ok(LogOption::Files(
            number.parse().ok().filter(|number| (1..=1000).contains(number)).ok_or_else(error)?,
        )),
        _ => Err(error()),
    }
}

impl LogArguments {
    fn limits(&self) -> Option<LogLimits> {
        let mut limits = LogLimits::default();
        for option in &self.log_opt {
            match option {
                LogOption::Size(size) => limits.size = *size,
                LogOption::Files(files) => limits.files = *files,
            }
        }
        (self.log_driver != "none").then_some(limits)
    }
}

/// Runs a container to its end, or starts one in the background. `start` is when the process started.
pub fn run(command: RunCommand, start: Instant) -> ExitCode {
    match try_run(command, start) {
        Ok(code) => code,
        Err(Failure { code, message }) => {
            complain(&message);
            code.into()
        }
    }
}

fn try_run(command: RunCommand, start: Instant) -> Result<ExitCode, Failure> {
    let timing = Timing::starting_at(start);
    let (is_detached, shows_timing) = (command.detach, command.timing);
    let Ordered { order, assets, image, hold, name } = command.order.order(command.what, is_detached)?;
    timing.mark(Step::Image);
    let means = Means { assets, image, hold, shows_timing, timing };
    let which = Which::New(name);
    if !is_detached {
        let is_interactive = order.options.interactive && order.options.terminal.is_some();
        // One that can be left, or that ends more than once, is not kept by the process that ends then.
        let outlives_signals = !command.attach.passes_signals();
        if is_interactive || outlives_signals || order.restart != RestartPolicy::No {
            return Ok(in_front(&order, means, which, order.options.interactive, &command.attach)?.into());
        }
        return Ok(keep(&order, means, which, Side::Foreground).into());
    }
    let id =
        in_the_background(|reporter| keep(&order, means, which, Side::Background { reporter, front: None }))?;
    Ok(print(format!("{id}\n").as_bytes(), exit_code::SUCCESS))
}

/// Has a process in the background keep a container, to which this one is attached from the beginning; returns its exit
/// code.
fn in_front(
    order: &Order,
    means: Means,
    which: Which,
    reads_input: bool,
    arguments: &AttachArguments,
) -> Result<u8, Failure> {
    let (ours, front) = UnixStream::pair().map_err(|error| format!("cannot make a socket: {error}"))?;
    let mut ours = Some(ours);
    let id = in_the_background(|reporter| {
        // The other process sees the end of this one by it.
        drop(ours.take());
        keep(order, means, which, Side::Background { reporter, front: Some(front) })
    })?;
    let socket = ours.ok_or_else(|| "cannot make a process".to_owned())?;
    Ok(attach::follow(socket, &id, &id, arguments, reads_input)?)
}

/// Has a process in the background keep a container; returns its ID when its command runs.
fn in_the_background(keep: impl FnOnce(Reporter) -> u8) -> Result<String, Failure> {
    let report = background::start(keep);
    match report.map_err(|error: io::Error| format!("cannot run in the background: {error}"))? {
        Report::Started { id } => Ok(id),
        Report::Failed { code, message } => Err(Failure { code, message }),
    }
}

/// What was ordered, and what it needs.
struct Ordered {
    order: Order,
    assets: Assets,
    image: Image,
    hold: Hold,
    name: Option<VmName>,
}

impl OrderArguments {
    fn order(self, what: WhatArguments, is_detached: bool) -> Result<Ordered, Failure> {
        if self.rm && self.restart != RestartPolicy::No {
            return Err("--rm and --restart exclude each other: use one of them".to_owned().into());
        }
        let (tty, is_read) = (self.container.tty, self.container.interactive && !is_detached);
        let terminal = terminal_size(tty, is_read)?;
        let stop_timeout = self.container.stop_timeout;
        let log = self.log.limits();
        let (pod, mut options) = match self.pod {
            None => (None, self.container.options(what.command, terminal)?),
            Some(word) => {
                let (id, pod) = pod::for_container(&word, || self.container.refuse_in_pod())?;
                let options = self.container.options(what.command, terminal)?;
                (Some(id), pod.of_container(&options))
            }
        };
        let assets = Assets::find().map_err(|error| error.to_string())?;
        // While it is pulled, signals end the process.
        let (image, hold) = images::open(&what.image, self.pull, self.registry, self.quiet)?;
        container::settle(&mut options, &image.config).map_err(|error| error.to_string())?;
        if pod.is_some() {
            // Volumes of the image's are directories in what takes the container's changes.
            options.mounts.clear();
        }
        let order = Order {
            format: Format::default(),
            image: image.id.clone(),
            image_name: what.image,
            options,
            removes: self.rm,
            log,
            stop_timeout,
            input_once: !is_detached,
            restart: self.restart,
            health: self.health.options(),
            pod,
        };
        Ok(Ordered { order, assets, image, hold, name: self.name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options_are_dockers() {
        let limits = |options: &[&str], driver: &str| {
            let log_opt = options.iter().map(|option| log_option(option).unwrap()).collect();
            LogArguments { log_driver: driver.into(), log_opt }.limits()
        };
        assert_eq!(limits(&[], "json-file"), Some(LogLimits::default()));
        let set = limits(&["max-size=1m", "max-file=5"], "local");
        assert_eq!(set, Some(LogLimits { size: 1 << 20, files: 5 }));
        assert_eq!(limits(&["max-size=1m"], "none"), None);
        for bad in
            ["", "max-size", "max-size=x", "max-size=0", "max-file=0", "max-file=1001", "compress=true"]
        {
            assert!(log_option(bad).is_err(), "{bad}");
        }
    }
}
