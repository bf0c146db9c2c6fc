//! `mvm run`.

mod again;
mod arguments;
mod cid;
mod copy;
mod create;
mod details;
mod docker;
mod front;
mod health;
mod inherit;
mod keep;
mod log;
mod network;
mod order;
mod policy;
mod resources;
mod restore;
mod saved;
mod start;
mod update;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use clap::{ArgAction, Args};
use container::{Assets, AttachStreams as Streams, Image, Step, Timing};
use image::Hold;
use instance::{Format, VmName};

pub use self::again::KeeperCommand;
pub use self::arguments::{environment, label, pair, terminal_size};
pub use self::copy::{Change, check_copy, copy};
pub use self::create::CreateCommand;
pub use self::details::ports;
pub use self::docker::platform;
pub use self::keep::Means;
pub use self::log::{in_journal, log_details};
pub use self::network::{default_network, host, word};
pub use self::policy::RestartPolicy;
pub use self::resources::milli_cpus;
pub use self::restore::RestoreCommand;
pub use self::saved::{
    discard, give_up as give_up_saves, note as note_saved, remove as remove_resumed, resume, save,
    stay as stay_saved, stay_by as stay_saved_by,
};
pub use self::start::{RestartCommand, StartCommand, prepare, start as start_kept};
pub use self::update::UpdateCommand;

use self::arguments::ContainerArguments;
use self::cid::CidFile;
use self::front::{Attached, StreamName};
use self::health::HealthArguments;
use self::inherit::VolumesFrom;
use self::keep::{Failure, Side, Which, keep};
use self::log::LogArguments;
use self::order::Order;
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
    /// After 100 ms at first, and after twice that each time, up to a minute. `mvm stop` and `mvm kill` end it for
    /// good.
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "no",
        hide_default_value = true,
        hide_short_help = true
    )]
    restart: RestartPolicy,

    /// Write the ID of the container to this file, which may not exist yet
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    cidfile: Option<PathBuf>,

    /// Connect with these streams only: stdin, stdout or stderr
    ///
    /// May be given more than once. With stdin alone the container's ID is printed, and the command ends when its input
    /// does.
    #[arg(long = "attach", short = 'a', value_name = "STREAM", hide_short_help = true)]
    streams: Vec<StreamName>,

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
    if command.detach && !command.order.streams.is_empty() {
        return Err("--attach and --detach exclude each other: use one of them".to_owned().into());
    }
    let (is_detached, shows_timing) = (command.detach, command.timing);
    let Ordered { order, assets, image, hold, name, cid_file } =
        command.order.order(command.what, is_detached)?;
    timing.mark(Step::Image);
    let means =
        Means { assets, image, hold, shows_timing, timing, cid_file, copied: None, holds: Vec::new() };
    let which = Which::New(name);
    if !is_detached {
        let has_terminal = order.options.terminal.is_some();
        let is_left = !order.attached.has_output();
        // One that can be left, or that ends more than once, is not kept by the process that ends then.
        let outlives_signals = !command.attach.passes_signals();
        if has_terminal || is_left || outlives_signals || order.restart != RestartPolicy::No {
            let streams = Streams {
                input: order.options.interactive,
                output: order.attached.stdout,
                errors: order.attached.stderr,
            };
            return Ok(in_front(&order, means, which, streams, &command.attach)?.into());
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
    streams: Streams,
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
    if !streams.output && !streams.errors {
        // As with docker it is there for the input, and the output is in the log.
        print(format!("{id}\n").as_bytes(), exit_code::SUCCESS);
    }
    Ok(attach::follow(socket, &id, &id, arguments, streams)?)
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
    cid_file: Option<CidFile>,
}

impl OrderArguments {
    /// The streams that the user's command is connected with.
    fn attached(&self) -> Attached {
        Attached::new(&self.streams, self.container.interactive)
    }

    fn order(self, what: WhatArguments, is_detached: bool) -> Result<Ordered, Failure> {
        if self.rm && self.restart != RestartPolicy::No {
            return Err("--rm and --restart exclude each other: use one of them".to_owned().into());
        }
        let (tty, is_read) = (self.container.tty, self.container.interactive && !is_detached);
        let terminal = terminal_size(tty, is_read)?;
        let stop_timeout = self.container.stop_timeout;
        // Before an image is pulled, as docker.
        let cid_file = self.cidfile.as_deref().map(CidFile::create).transpose()?;
        let volumes_from =
            self.container.volumes_from.iter().map(VolumesFrom::text).map(str::to_owned).collect();
        let attached = self.attached();
        let (log, log_details) = self.log.options()?;
        let (pod, mut options) = match self.pod {
            None => (None, self.container.options(what.command, terminal)?),
            Some(word) => {
                let (id, pod) =
                    pod::for_container(&word, self.container.is_cold(), || self.container.refuse_in_pod())?;
                let options = self.container.options(what.command, terminal)?;
                let mut options = pod.of_container(&options);
                pod.add_mounts(&mut options);
                (Some(id), options)
            }
        };
        let assets = Assets::find().map_err(|error| error.to_string())?;
        // While it is pulled, signals end the process.
        let (image, hold) = images::open(&what.image, self.pull, self.registry, self.quiet)?;
        container::settle(&mut options, &image.config).map_err(|error| error.to_string())?;
        let order = Order {
            format: Format::default(),
            image: image.id.clone(),
            image_name: what.image,
            options,
            removes: self.rm,
            log,
            log_details,
            cid_file: self.cidfile,
            volumes_from,
            attached: if is_detached { Attached::default() } else { attached },
            stop_timeout,
            input_once: !is_detached,
            restart: self.restart,
            health: self.health.options(),
            pod,
        };
        Ok(Ordered { order, assets, image, hold, name: self.name, cid_file })
    }
}
