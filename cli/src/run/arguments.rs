//! What a user says of a container, which is what docker's users say.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use agent_protocol::Size;
use clap::Args;
use container::{LongMount, RunOptions, ShortMount, Storage, Tmpfs};

use super::docker::DockerArguments;
use super::inherit::{self, VolumesFrom};
use super::network::NetworkArguments;
use super::resources::ResourceArguments;
use crate::complain;
use crate::defaults::{Defaults, TemplateUse};

/// The options of a container, whichever command makes it.
#[derive(Args)]
pub struct ContainerArguments {
    /// Pass standard input on
    #[arg(long, short)]
    pub interactive: bool,

    /// Give the container a terminal
    #[arg(long, short)]
    pub tty: bool,

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

    /// Set a label: NAME=VALUE, or NAME
    #[arg(long, short, value_name = "LABEL", value_parser = label, hide_short_help = true)]
    label: Vec<(String, String)>,

    /// Read labels from a file, one a line
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    label_file: Vec<PathBuf>,

    /// Keep an annotation, which `mvm inspect` shows: NAME=VALUE, or NAME
    #[arg(long, value_name = "NOTE", value_parser = annotation, hide_short_help = true)]
    annotation: Vec<(String, String)>,

    #[command(flatten)]
    network: NetworkArguments,

    #[command(flatten)]
    resources: ResourceArguments,

    #[command(flatten)]
    docker: DockerArguments,

    /// Make the root file system read-only
    #[arg(long, help_heading = "Files")]
    read_only: bool,

    /// Set what takes changes: size=SIZE, or memory
    ///
    /// A disk of that size, which takes as much space of the host as is written; size=20G without this option, 256M to
    /// 1T. With memory, or a size of 0, changes are in the container's memory and count to its limit.
    #[arg(long, value_name = "STORAGE", help_heading = "Files", hide_short_help = true)]
    storage_opt: Option<Storage>,

    /// Mount a folder, file or socket of the host, or a volume: HOSTPATH:PATH, NAME:PATH or PATH
    ///
    /// HOSTPATH begins with / or ./, and a folder is made where there is nothing. NAME is a volume, which is made where
    /// it is missing; without it there is one for this container alone. Behind it may follow :ro (read only) and
    /// :nocopy (a new volume stays empty).
    #[arg(long, short, value_name = "VOLUME", help_heading = "Files")]
    volume: Vec<ShortMount>,

    /// Mount as --volume does, or a temporary file system: KEY=VALUE,…
    ///
    /// KEY is type (bind, volume or tmpfs), source, target, readonly, volume-nocopy, volume-subpath, volume-driver,
    /// volume-opt, volume-label, tmpfs-size or tmpfs-mode. A folder of the host that does not exist is not made.
    #[arg(long, value_name = "MOUNT", help_heading = "Files", hide_short_help = true)]
    mount: Vec<LongMount>,

    /// Mount what another container has mounted, at the same places: NAME, or NAME:ro to read only
    ///
    /// What is mounted at one of these places by another option goes first. A volume that is a disk is used by one VM
    /// at a time: the other container may not run then. Folders, and volumes of the driver shared, may be used at once.
    #[arg(long, value_name = "NAME", help_heading = "Files", hide_short_help = true)]
    pub volumes_from: Vec<VolumesFrom>,

    /// Mount a temporary file system: PATH or PATH:OPTIONS
    ///
    /// OPTIONS are rw,noexec,nosuid,nodev without it, and size=SIZE, mode=MODE and others of tmpfs.
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

    /// Confine the VM's process on the host: best-effort, strict or off
    ///
    /// best-effort: by all that the host offers. strict: by all that there is, or the container is not started. off:
    /// not, for debuggers and profilers.
    #[arg(
        long,
        value_name = "MODE",
        value_parser = crate::values::jail_mode,
        help_heading = "Security",
        hide_short_help = true
    )]
    jail: Option<jail::Mode>,

    /// Boot the VM's kernel: do not go on from a template (see `mvm template`)
    #[arg(long, env = "MVM_COLD", hide_env = true, value_parser = clap::builder::FalseyValueParser::new(), help_heading = "Security",
        hide_short_help = true)]
    cold: bool,

    /// Set a kernel parameter: NAME=VALUE
    #[arg(long, value_name = "PARAM", value_parser = pair, help_heading = "Security", hide_short_help = true)]
    sysctl: Vec<(String, String)>,

    /// Have an init as the first process, which reaps orphans and passes signals on
    #[arg(long, hide_short_help = true)]
    init: bool,

    /// Set the signal that asks the container to end
    #[arg(long, value_name = "SIGNAL", hide_short_help = true)]
    stop_signal: Option<String>,

    /// Set how long it has to end when `mvm stop` asks it to; -1: no limit
    #[arg(long, value_name = "SECONDS", value_parser = crate::values::seconds, hide_short_help = true)]
    #[arg(allow_negative_numbers = true)]
    pub stop_timeout: Option<u64>,
}

/// Reads `PATH[:OPTIONS]`.
fn tmpfs(text: &str) -> Result<(String, String), String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if !path.starts_with('/') {
        return Err(format!("invalid path {path:?}: begin it with /"));
    }
    Tmpfs::read(options).map_err(|error| error.to_string())?;
    Ok((path.to_owned(), options.to_owned()))
}

/// Reads `NAME=VALUE`, or `NAME` for an empty value.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err(format!("invalid label {text:?}: write NAME=VALUE"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// The same for an annotation.
fn annotation(text: &str) -> Result<(String, String), String> {
    label(text).map_err(|_| format!("invalid annotation {text:?}: write NAME=VALUE"))
}

/// Reads `NAME=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| format!("invalid value {text:?}: write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The most bytes of a file of variables or labels: what a command can have in all.
const MAX_FILE: u64 = 2 << 20;

fn read_lines(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    match u64::try_from(text.len()) {
        Ok(..=MAX_FILE) => Ok(text),
        _ => Err(io::Error::other("it has more than 2 MiB, which is too much")),
    }
}

/// The labels of files of `--label-file`, and those of `--label`, which replace them.
fn labels(files: &[PathBuf], given: Vec<(String, String)>) -> Result<Vec<(String, String)>, String> {
    let mut labels = Vec::new();
    for path in files {
        let cannot = |error: &str| format!("cannot read --label-file {}: {error}", path.display());
        let text = read_lines(path).map_err(|error| cannot(&error.to_string()))?;
        for line in lines(&text) {
            labels.push(label(line).map_err(|error| cannot(&error))?);
        }
    }
    labels.extend(given);
    Ok(labels)
}

/// The lines of a file of variables or labels, without comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The variables that `--env` and files of `--env-file` set.
pub fn environment(files: &[PathBuf], variables: &[String]) -> Result<Vec<String>, String> {
    let mut env = Vec::new();
    for path in files {
        let text = read_lines(path)
            .map_err(|error| format!("cannot read --env-file {}: {error}", path.display()))?;
        env.extend(lines(&text).map(str::to_owned));
    }
    env.extend_from_slice(variables);
    if let Some(nameless) = env.iter().find(|variable| variable.is_empty() || variable.starts_with('=')) {
        return Err(format!("invalid variable {nameless:?}: write NAME=VALUE, or NAME for its value here"));
    }
    let of_host = |variable: String| {
        if variable.contains('=') {
            return Some(variable);
        }
        let value = std::env::var(&variable).ok()?;
        Some(format!("{variable}={value}"))
    };
    Ok(env.into_iter().filter_map(of_host).collect())
}

/// The size of this terminal, for a container that gets one.
pub fn terminal_size(tty: bool, interactive: bool) -> Result<Option<Size>, String> {
    if !tty {
        return Ok(None);
    }
    if interactive && !io::stdin().is_terminal() {
        return Err("the input device is not a TTY: leave -t out, or run mvm on a terminal".into());
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let size = size.map(|size| Size { rows: size.ws_row, columns: size.ws_col });
    Ok(Some(size.unwrap_or_default()))
}

impl ContainerArguments {
    /// Whether its VM is to boot.
    pub fn is_cold(&self) -> bool {
        self.cold
    }

    /// Refuses options that are those of the pod that the container is in.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn refuse_in_pod(&self) -> Result<(), String> {
        if let Some(option) = self.network.first() {
            return Err(format!(
                "{option} is the pod's, whose network and names its containers share: give it to `mvm pod create`"
            ));
        }
        Ok(())
    }

    /// What they ask for, with `command` in place of the image's, and a terminal of this size.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn options(self, command: Vec<String>, terminal: Option<Size>) -> Result<RunOptions, String> {
        let defaults = Defaults::read()?;
        if self.volume.iter().any(|volume| volume.is_labelled)
            || self.volumes_from.iter().any(VolumesFrom::is_labelled)
        {
            complain("z and Z of volumes are ignored: there is no SELinux in the VM");
        }
        let short = self.volume.into_iter().map(|volume| volume.mount);
        let mut options = RunOptions {
            command,
            entrypoint: self.entrypoint,
            env: environment(&self.env_file, &self.env)?,
            working_directory: self.workdir,
            user: self.user,
            groups: self.group_add,
            interactive: self.interactive,
            terminal,
            read_only: self.read_only,
            storage: self.storage_opt.or(defaults.storage_opt).unwrap_or_default(),
            added_capabilities: self.cap_add,
            dropped_capabilities: self.cap_drop,
            privileged: self.privileged,
            is_unconfined: self.security_opt.iter().any(|option| option.starts_with("seccomp")),
            no_new_privileges: self.security_opt.iter().any(|option| option.starts_with("no-new")),
            mounts: short.chain(self.mount.into_iter().map(|LongMount(mount)| mount)).collect(),
            tmpfs: self.tmpfs,
            labels: labels(&self.label_file, self.label)?,
            annotations: self.annotation,
            sysctls: self.sysctl,
            init: self.init,
            stop_signal: self.stop_signal,
            jail: self.jail.or(defaults.jail).unwrap_or_default(),
            jail_ids: defaults.jail_ids,
            cold: self.cold || defaults.templates == Some(TemplateUse::Off),
            ..RunOptions::default()
        };
        inherit::add(&mut options, &self.volumes_from)?;
        let quota = self.docker.milli_cpus(self.resources.cpus)?;
        let options = self.resources.add_to(options, &defaults)?;
        let milli_cpus = quota.or(options.milli_cpus);
        let options = RunOptions { milli_cpus, ..options };
        self.network.add_to(options, defaults.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_files_options_and_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        std::fs::write(&file, "# comment\n\nA=1\nMVM_NO_SUCH_VARIABLE\nPATH\n").unwrap();
        let env = environment(&[file], &["B=2=3".into()]).unwrap();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert_eq!(env, ["A=1", &path, "B=2=3"]);
        for bad in ["/no/such/file", "/dev/zero", "/"] {
            assert!(environment(&[bad.into()], &[]).unwrap_err().contains("cannot read --env-file"), "{bad}");
        }
        assert!(labels(&["/dev/zero".into()], Vec::new()).unwrap_err().contains("--label-file"));
        let file = directory.path().join("labels");
        std::fs::write(&file, "# comment\na=1\n b\n").unwrap();
        let all = labels(&[file], vec![("a".into(), "2".into())]).unwrap();
        assert_eq!(all, [("a", "1"), ("b", ""), ("a", "2")].map(|(name, value)| (name.into(), value.into())));
        for bad in ["", "=x"] {
            assert!(environment(&[], &[bad.into()]).unwrap_err().contains("write NAME=VALUE"), "{bad}");
        }
    }
}
