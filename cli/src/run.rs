//! `mvm run`.

use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::Size;
use clap::Args;
use container::{Assets, NetworkOption, RunError, RunOptions, Volume};
use instance::console::RawTerminal;
use instance::{Identity, Instance, InstanceError, Summary, VmName};
use vmm::{ExitReason, Limits, MemorySize, PublishConfig, Timeline};

use crate::images::{self, PullPolicy, RegistryArguments};
use crate::process::ExitCode;
use crate::supervise::{self, lock};
use crate::{chain, complain, exit_code};

const MORE: &str = "`mvm run --help` has all options, their syntax, and examples.";

const EXAMPLES: &str = "\
Examples:
  mvm run alpine echo hello                 run a command
  mvm run -it -e A=1 -w /src alpine sh      a shell on this terminal
  mvm run -m 512m --cpus 1.5 alpine nproc   with limits

Exit codes:
  N      that of the container's command (128 + signal where it was killed)
  125    mvm itself failed
  126    the command can't be executed
  127    there is no such command";

/// Arguments of `mvm run`, which are those of `docker run`.
#[derive(Args)]
#[command(after_help = MORE, after_long_help = EXAMPLES)]
pub struct RunCommand {
    /// Set the container's name
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,

    /// Pass standard input on
    #[arg(long, short)]
    interactive: bool,

    /// Give the container a terminal
    #[arg(long, short)]
    tty: bool,

    /// Remove the container when it ends, which is always done
    #[arg(long, hide_short_help = true)]
    rm: bool,

    /// Pull the image: missing, always or never
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "missing",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pull: PullPolicy,

    #[command(flatten)]
    registry: RegistryArguments,

    /// Set a variable: NAME=VALUE
    ///
    /// Without =VALUE, the one that the variable has here. May be given more than once.
    #[arg(long, short, value_name = "VAR")]
    env: Vec<String>,

    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    env_file: Vec<PathBuf>,

    /// Set the working directory
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,

    /// Set the user, and the group: USER or USER:GROUP
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,

    /// Add a group
    #[arg(long, value_name = "GROUP", hide_short_help = true)]
    group_add: Vec<String>,

    /// Run this in place of the image's entry point
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,

    /// Set the host name
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    hostname: Option<String>,

    /// Add a line to /etc/hosts: NAME:IP
    #[arg(long, value_name = "HOST", value_parser = host, hide_short_help = true)]
    add_host: Vec<(String, String)>,

    /// Connect the container: user, none, or user,host
    ///
    /// user: to the host's networks, by passt, without root. With host as well, host.docker.internal is the host's
    /// loopback. Without this option it is user where passt is installed and the host has a network.
    #[arg(long, value_name = "NET", value_parser = network, help_heading = "Network", alias = "net")]
    network: Option<NetworkOption>,

    /// Publish a port on the host: 8080:80
    ///
    /// As in 8080:80, 127.0.0.1:8080:80, 53:53/udp or 8000-8010:8000-8010.
    #[arg(long, short, value_name = "PORTS", help_heading = "Network")]
    publish: Vec<PublishConfig>,

    /// Set a resolver's address
    #[arg(long, value_name = "IP", help_heading = "Network", hide_short_help = true)]
    dns: Vec<IpAddr>,

    /// Limit memory, as in 512m
    #[arg(long, short, value_name = "SIZE", help_heading = "Resources")]
    memory: Option<MemorySize>,

    /// Limit processor time, as in 1.5
    #[arg(long, value_name = "N", value_parser = milli_cpus, help_heading = "Resources")]
    cpus: Option<u64>,

    /// Limit processes and threads
    #[arg(long, value_name = "N", help_heading = "Resources", hide_short_help = true)]
    pids_limit: Option<i64>,

    /// Set the size of /dev/shm
    #[arg(long, value_name = "SIZE", help_heading = "Resources", hide_short_help = true)]
    shm_size: Option<MemorySize>,

    /// Make the root file system read-only
    #[arg(long, help_heading = "Files")]
    read_only: bool,

    /// Share a folder of the host: HOSTDIR:PATH or HOSTDIR:PATH:ro
    #[arg(long, short, value_name = "FOLDER", help_heading = "Files")]
    volume: Vec<Volume>,

    /// Mount a temporary file system: PATH or PATH:OPTIONS
    #[arg(long, value_name = "PATH", value_parser = tmpfs, help_heading = "Files", hide_short_help = true)]
    tmpfs: Vec<(String, String)>,

    /// Add a capability, or ALL
    #[arg(long, value_name = "NAME", help_heading = "Security", hide_short_help = true)]
    cap_add: Vec<String>,

    /// Drop a capability, or ALL
    #[arg(long, value_name = "NAME", help_heading = "Security", hide_short_help = true)]
    cap_drop: Vec<String>,

    /// Give the container all of its VM
    #[arg(long, help_heading = "Security", hide_short_help = true)]
    privileged: bool,

    /// Set a security option
    ///
    /// no-new-privileges: programs give no further rights. seccomp=unconfined: system calls are not filtered.
    #[arg(
        long,
        value_name = "OPTION",
        value_parser = [
            "no-new-privileges", "no-new-privileges:true", "no-new-privileges=true",
            "seccomp=unconfined", "seccomp:unconfined",
        ],
        hide_possible_values = true,
        help_heading = "Security",
        hide_short_help = true
    )]
    security_opt: Vec<String>,

    /// Set a kernel parameter: NAME=VALUE
    #[arg(long, value_name = "PARAM", value_parser = pair, help_heading = "Security", hide_short_help = true)]
    sysctl: Vec<(String, String)>,

    /// Set the signal that asks the container to end
    #[arg(long, value_name = "SIGNAL", hide_short_help = true)]
    stop_signal: Option<String>,

    /// Set how long it has to end when `mvm stop` asks it to
    #[arg(long, value_name = "SECONDS", value_parser = crate::values::seconds, hide_short_help = true)]
    stop_timeout: Option<u64>,

    /// Print how long each phase of the start took
    #[arg(long, help_heading = "Console and debugging", hide_short_help = true)]
    timing: bool,

    /// The image
    image: String,

    /// The command and its arguments, in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Reads `NAME:IP`, as in `db:10.0.0.2`.
fn host(text: &str) -> Result<(String, String), String> {
    let error = || format!("invalid host {text:?}: write NAME:IP, as in db:10.0.0.2");
    let (name, address) = text.split_once([':', '=']).ok_or_else(error)?;
    let plain = address.trim_start_matches('[').trim_end_matches(']');
    plain.parse::<std::net::IpAddr>().map_err(|_| error())?;
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    if is_name { Ok((name.to_owned(), plain.to_owned())) } else { Err(error()) }
}

/// Reads what a container is connected to.
fn network(text: &str) -> Result<NetworkOption, String> {
    match text {
        "none" => Ok(NetworkOption::None),
        "user" | "bridge" | "default" => Ok(NetworkOption::User { reaches_host: false }),
        "user,host" => Ok(NetworkOption::User { reaches_host: true }),
        _ => Err(format!("unknown network {text:?}: use user, user,host or none")),
    }
}

/// The network of a container for which none is given.
fn default_network(publishes: bool) -> NetworkOption {
    if publishes || vmm::has_user_network() {
        NetworkOption::User { reaches_host: false }
    } else {
        NetworkOption::None
    }
}

/// Reads a number of CPUs with up to three digits behind the point, in thousandths.
fn milli_cpus(text: &str) -> Result<u64, String> {
    let error = || format!("invalid number of CPUs {text:?}: use 0.01 to {}, as in 1.5", vmm::MAX_CPUS);
    let number: f64 = text.parse().map_err(|_| error())?;
    let most = f64::from(vmm::MAX_CPUS);
    if !(0.01..=most).contains(&number) {
        return Err(error());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 10 and 254,000"
    )]
    Ok((number * 1000.0).round() as u64)
}

/// Reads `PATH[:OPTIONS]`.
fn tmpfs(text: &str) -> Result<(String, String), String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if path.starts_with('/') {
        Ok((path.to_owned(), options.to_owned()))
    } else {
        Err(format!("invalid path {path:?}: begin it with /"))
    }
}

/// Reads `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| format!("invalid value {text:?}: write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The variables that `--env` and files of `--env-file` set.
fn environment(files: &[PathBuf], variables: &[String]) -> Result<Vec<String>, String> {
    let mut env = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read --env-file {}: {error}", path.display()))?;
        let lines =
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        env.extend(lines.map(str::to_owned));
    }
    env.extend_from_slice(variables);
    let of_host = |variable: String| {
        if variable.contains('=') {
            return Some(variable);
        }
        let value = std::env::var(&variable).ok()?;
        Some(format!("{variable}={value}"))
    };
    Ok(env.into_iter().filter_map(of_host).collect())
}

/// Runs a container to its end. `start` is when the process started.
pub fn run(command: RunCommand, start: Instant) -> ExitCode {
    let _writer = match devices::log::Writer::start() {
        Ok(writer) => writer,
        Err(error) => return failed(&format!("cannot start a thread: {error}")),
    };
    match try_run(command, start) {
        Ok(code) => code.into(),
        Err(Failure { code, message }) => {
            complain(&message);
            code.into()
        }
    }
}

/// What ends mvm with a code of its own.
struct Failure {
    code: u8,
    message: String,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { code: exit_code::CONTAINER, message }
    }
}

fn failed(message: &str) -> ExitCode {
    complain(message);
    exit_code::CONTAINER.into()
}

fn try_run(command: RunCommand, start: Instant) -> Result<u8, Failure> {
    let size = terminal_size(&command)?;
    let (name, timing, image) = (command.name.clone(), command.timing, command.image.clone());
    let (pull, registry, stop_timeout) = (command.pull, command.registry, command.stop_timeout);
    let options = options(command, size)?;
    let assets = Assets::find().map_err(|error| error.to_string())?;
    // While it is pulled, signals end the process.
    let (image, _hold) = images::open(&image, pull, registry)?;
    let limits = Limits { stop_timeout: Duration::ZERO, timeout: None };
    let host = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
    // The container gets them, so that the VM does not end by one.
    instance::ignore_limits_and_terminal();
    let signals = instance::take_for_container().map_err(host("take signals"))?;
    let (place, supervisor) =
        supervise::start(None, limits, |_| exit_code::CONTAINER).map_err(host("start a thread"))?;
    let identity = Identity { name, ..Identity::default() };
    let (cpus, memory) = container::size(&options);
    let summary = Summary {
        cpus,
        memory,
        kernel: assets.kernel.display().to_string(),
        rootfs: None,
        stop_timeout_ms: stop_timeout.map(|seconds| seconds.saturating_mul(1000)),
    };
    let instance = Instance::claim(&identity, summary).map_err(|error: InstanceError| chain(&error))?;
    let timeline = Arc::new(Timeline::starting_at(start));
    let (identity, removal) = (instance.identity(), instance.watch_removal().ok());
    *lock(&place) = Some(instance);
    let result = {
        let raw = options.terminal.map(|_| RawTerminal::enter()).transpose();
        let _raw = raw.map_err(host("set up the terminal"))?.flatten();
        let requests = supervisor.requests();
        let of = (&assets, &image, &options);
        container::run(of, (&identity, removal), requests, Some(signals), &timeline)
    };
    drop(lock(&place).take());
    if timing {
        devices::log::print(&timeline.to_string());
    }
    std::mem::forget(supervisor);
    match result {
        Ok(ended) => {
            if ended.out_of_memory && ended.code == exit_code::of_signal(libc::SIGKILL) {
                complain("the container was killed: it had no memory left; give it more by -m");
            }
            Ok(ended.code)
        }
        Err(error) => {
            let code = match &error {
                RunError::NotFound(_) => exit_code::NOT_FOUND,
                RunError::NotExecutable(_) => exit_code::NOT_EXECUTABLE,
                // As if the container itself had got it.
                RunError::VmEnded(ExitReason::Signal(signal)) => return Ok(exit_code::of_signal(*signal)),
                _ => exit_code::CONTAINER,
            };
            Err(Failure { code, message: chain(&error) })
        }
    }
}

/// The size of this terminal, for a container that gets one.
fn terminal_size(command: &RunCommand) -> Result<Option<Size>, String> {
    if !command.tty {
        return Ok(None);
    }
    if command.interactive && !io::stdin().is_terminal() {
        return Err("the input device is not a TTY: leave -t out, or run mvm on a terminal".into());
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let size = size.map(|size| Size { rows: size.ws_row, columns: size.ws_col });
    Ok(Some(size.unwrap_or_default()))
}

fn options(command: RunCommand, terminal: Option<Size>) -> Result<RunOptions, Failure> {
    Ok(RunOptions {
        command: command.command,
        entrypoint: command.entrypoint,
        env: environment(&command.env_file, &command.env)?,
        working_directory: command.workdir,
        user: command.user,
        groups: command.group_add,
        hostname: command.hostname,
        hosts: command.add_host,
        network: command.network.unwrap_or_else(|| default_network(!command.publish.is_empty())),
        publish: command.publish,
        dns: command.dns,
        interactive: command.interactive,
        terminal,
        read_only: command.read_only,
        added_capabilities: command.cap_add,
        dropped_capabilities: command.cap_drop,
        privileged: command.privileged,
        is_unconfined: command.security_opt.iter().any(|option| option.starts_with("seccomp")),
        no_new_privileges: command.security_opt.iter().any(|option| option.starts_with("no-new")),
        memory: command.memory.map(MemorySize::bytes),
        milli_cpus: command.cpus,
        pids: command.pids_limit.and_then(|most| u64::try_from(most).ok()).filter(|most| *most > 0),
        shm_size: command.shm_size.map(MemorySize::bytes),
        volumes: command.volume,
        tmpfs: command.tmpfs,
        sysctls: command.sysctl,
        stop_signal: command.stop_signal,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1.5", Ok(1500))]
    #[case("0.01", Ok(10))]
    #[case("254", Ok(254_000))]
    #[case("0", Err(()))]
    #[case("nan", Err(()))]
    #[case("1e9", Err(()))]
    #[case("x", Err(()))]
    fn cpus_are_read_as_docker_reads_them(#[case] text: &str, #[case] expected: Result<u64, ()>) {
        assert_eq!(milli_cpus(text).map_err(drop), expected);
    }

    #[rstest]
    #[case("db:10.0.0.2", Ok(("db", "10.0.0.2")))]
    #[case("db=::1", Ok(("db", "::1")))]
    #[case("db:[::1]", Ok(("db", "::1")))]
    #[case("db", Err(()))]
    #[case(":1.2.3.4", Err(()))]
    #[case("db:x", Err(()))]
    fn hosts_are_names_and_addresses(#[case] text: &str, #[case] expected: Result<(&str, &str), ()>) {
        let expected = expected.map(|(name, address)| (name.to_owned(), address.to_owned()));
        assert_eq!(host(text).map_err(drop), expected);
    }

    #[test]
    fn variables_come_from_files_options_and_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        std::fs::write(&file, "# comment\n\nA=1\nMVM_NO_SUCH_VARIABLE\nPATH\n").unwrap();
        let env = environment(&[file], &["B=2=3".into()]).unwrap();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert_eq!(env, ["A=1", &path, "B=2=3"]);
        assert!(environment(&["/no/such/file".into()], &[]).unwrap_err().contains("--env-file"));
    }
}
