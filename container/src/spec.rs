//! A container as the agent gets it.

use agent_protocol::{Capabilities, Container, Limit, Mount, MountKind, Process, Resources, Writable};

use crate::image::ImageConfig;
use crate::limits::{MAX_FILES, weight};
use crate::machine::available_cpus;
use crate::mounts::{Prepared, Tmpfs};
use crate::network;
use crate::options::{OptionsError, RunOptions, Storage};
use crate::seccomp;

/// The search path of an image that has none, as docker's.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of /dev/shm, as docker's.
pub const SHM_SIZE: u64 = 64 << 20;
/// The disk with the image.
const IMAGE: &str = "/dev/vdb";

/// The disk for changes.
const CHANGES: &str = "/dev/vdc";

/// Capabilities by number (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Those that docker gives.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What docker hides from containers.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What docker makes read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const NOSUID: u64 = libc::MS_NOSUID;
const NODEV: u64 = libc::MS_NODEV;
const NOEXEC: u64 = libc::MS_NOEXEC;
const RDONLY: u64 = libc::MS_RDONLY;

/// The container `id` of an image with `options`.
///
/// # Errors
///
/// [`OptionsError`] names the option that can't be used.
pub fn container(
    id: &str,
    image: &ImageConfig,
    options: &RunOptions,
    prepared: &Prepared,
) -> Result<Container, OptionsError> {
    let hostname = options.hostname.clone().unwrap_or_else(|| id.to_owned());
    if !is_name(&hostname, b"-.") {
        return Err(OptionsError::Hostname(hostname));
    }
    let users = users_mounts(options, prepared)?;
    let is_replaced = |path: &str| users.iter().any(|mount| mount.target == path);
    let mut mounts = mounts(options);
    mounts.retain(|mount| !is_replaced(&mount.target));
    let mut files = network::files(&hostname, options)?;
    files.retain(|file| !is_replaced(&file.path));
    mounts.extend(users);
    Ok(Container {
        id: id.to_owned(),
        image: IMAGE.to_owned(),
        writable: match storage(options) {
            // What is in it counts as the container's memory: more than half, and its programs' own pages would go
            // first.
            Storage::Memory => Writable::Memory(options.memory.map(|limit| limit / 2)),
            Storage::Disk(_) => Writable::Disk(CHANGES.to_owned()),
        },
        read_only: options.read_only,
        mounts,
        files,
        masked_paths: strings(&MASKED, options.privileged),
        read_only_paths: strings(&READ_ONLY, options.privileged),
        network: network::interface(options),
        sysctls: sysctls(options)?,
        resources: resources(options)?,
        all_devices: options.privileged,
        process: process(&hostname, image, options)?,
        has_init: options.init,
        hostname,
    })
}

/// What the user mounts: what lies below another one behind it.
fn users_mounts(options: &RunOptions, prepared: &Prepared) -> Result<Vec<Mount>, OptionsError> {
    let mut mounts = Vec::new();
    for (target, words) in &options.tmpfs {
        absolute("--tmpfs", target)?;
        let Tmpfs { flags, data } = Tmpfs::read(words)?;
        mounts.push(file_system(target.trim_end_matches('/'), "tmpfs", flags, &data));
    }
    mounts.extend(prepared.mounts.iter().cloned());
    mounts.sort_by_key(|mount| mount.target.split('/').count());
    Ok(mounts)
}

/// Whether Linux takes it for the name of a host.
pub fn is_name(name: &str, others: &[u8]) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
    (1..=63).contains(&name.len()) && name.bytes().all(is_plain)
}

/// Kernel parameters: those that the user gives, and the domain.
fn sysctls(options: &RunOptions) -> Result<Vec<(String, String)>, OptionsError> {
    let mut sysctls = options.sysctls.clone();
    if let Some(domain) = &options.domain {
        if !is_name(domain, b"-_.") {
            return Err(OptionsError::Domain(domain.clone()));
        }
        sysctls.push(("kernel.domainname".into(), domain.clone()));
    }
    Ok(sysctls)
}

/// What takes the container's changes: a root that can't be changed takes directories to mount on and no more.
pub fn storage(options: &RunOptions) -> Storage {
    if options.read_only { Storage::Memory } else { options.storage }
}

fn strings(paths: &[&str], is_privileged: bool) -> Vec<String> {
    let all = paths.iter().map(|path| (*path).to_owned());
    if is_privileged { Vec::new() } else { all.collect() }
}

/// Refuses paths of options that are not absolute.
pub fn absolute(option: &'static str, path: &str) -> Result<(), OptionsError> {
    if path.starts_with('/') { Ok(()) } else { Err(OptionsError::Relative { option, path: path.to_owned() }) }
}

fn file_system(target: &str, kind: &str, flags: u64, options: &str) -> Mount {
    let kind = MountKind::FileSystem(kind.to_owned());
    Mount { target: target.to_owned(), kind, flags, options: options.to_owned() }
}

/// The file systems of every container.
fn mounts(options: &RunOptions) -> Vec<Mount> {
    let plain = NOSUID | NODEV | NOEXEC;
    let read_only = if options.privileged { plain } else { plain | RDONLY };
    // A container may make device nodes in it, and use those alone that are mounted there.
    let no_devices = if options.privileged { 0 } else { NODEV };
    let shm = format!("mode=1777,size={}", options.shm_size.unwrap_or(SHM_SIZE));
    let cgroup = Mount {
        target: "/sys/fs/cgroup".into(),
        kind: MountKind::Cgroup,
        flags: read_only,
        options: String::new(),
    };
    vec![
        file_system("/proc", "proc", plain, ""),
        file_system("/dev", "tmpfs", NOSUID | no_devices, "mode=755,size=65536k"),
        file_system("/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        file_system("/sys", "sysfs", read_only, ""),
        cgroup,
        file_system("/dev/mqueue", "mqueue", plain, ""),
        file_system("/dev/shm", "tmpfs", plain, &shm),
    ]
}

fn resources(options: &RunOptions) -> Result<Resources, OptionsError> {
    let available = available_cpus(options);
    if let Some(set) = options.cpu_set.as_ref().filter(|set| set.last() >= available) {
        return Err(OptionsError::NoCpu(set.last(), available));
    }
    if options.memory_reservation.zip(options.memory).is_some_and(|(kept, memory)| kept > memory) {
        return Err(OptionsError::Reservation);
    }
    Ok(Resources {
        memory: options.memory,
        // In each period of 100 ms.
        cpu_quota: options.milli_cpus.map(|milli| milli.saturating_mul(100)),
        cpu_weight: options.cpu_shares.map(weight),
        cpus: options.cpu_set.as_ref().map(ToString::to_string),
        pids: options.pids,
        memory_low: options.memory_reservation,
    })
}

/// Docker's own limit, and those of the user.
fn limits(options: &RunOptions) -> Vec<Limit> {
    let mut limits = vec![Limit { resource: libc::RLIMIT_NOFILE, soft: MAX_FILES, hard: MAX_FILES }];
    for ulimit in &options.limits {
        limits.retain(|limit| limit.resource != ulimit.limit.resource);
        limits.push(ulimit.limit);
    }
    limits
}

/// The command of a container of `image` with `options`, and its arguments; empty where neither says what to run.
pub fn command(image: &ImageConfig, options: &RunOptions) -> Vec<String> {
    let (entrypoint, command) = entrypoint_and_command(image, options);
    [entrypoint, command].concat()
}

/// Its entry point and the arguments of that, either of which may be empty.
pub fn entrypoint_and_command(image: &ImageConfig, options: &RunOptions) -> (Vec<String>, Vec<String>) {
    let entrypoint = match &options.entrypoint {
        Some(text) => Some(text).filter(|text| !text.is_empty()).cloned().into_iter().collect(),
        None => image.entrypoint.clone(),
    };
    // A new entry point does without the image's command.
    let command = match (&options.entrypoint, options.command.is_empty()) {
        (None, true) => image.command.clone(),
        _ => options.command.clone(),
    };
    (entrypoint, command)
}

fn process(hostname: &str, image: &ImageConfig, options: &RunOptions) -> Result<Process, OptionsError> {
    let args = command(image, options);
    if args.is_empty() {
        return Err(OptionsError::NoCommand);
    }
    let cwd = options.working_directory.clone().unwrap_or_else(|| image.working_directory.clone());
    if !cwd.is_empty() {
        absolute("--workdir", &cwd)?;
    }
    let capabilities = if options.privileged { all_capabilities() } else { capabilities(options)? };
    Ok(Process {
        args,
        env: environment(hostname, image, options),
        cwd,
        user: options.user.clone().unwrap_or_else(|| image.user.clone()),
        groups: options.groups.clone(),
        terminal: options.terminal,
        has_input: options.interactive,
        capabilities: Capabilities { bounding: capabilities, ambient: 0 },
        no_new_privileges: options.no_new_privileges,
        limits: limits(options),
        // See `filters`.
        seccomp: Vec::new(),
        oom_score_adjustment: options.oom_score_adjustment,
    })
}

/// The filters of a container's system calls. They take a while to make, and no option makes them fail: what else there
/// is of a container comes first.
///
/// # Errors
///
/// [`OptionsError`].
pub fn filters(options: &RunOptions) -> Result<Vec<Vec<u8>>, OptionsError> {
    if options.privileged || options.is_unconfined {
        return Ok(Vec::new());
    }
    let capabilities = capabilities(options)?;
    let has = |name: &str| bit(name).is_ok_and(|bit| capabilities & bit != 0);
    seccomp::programs(has).map_err(|error| OptionsError::Filter(error.to_string()))
}

/// Later values replace earlier ones, at their place.
fn environment(hostname: &str, image: &ImageConfig, options: &RunOptions) -> Vec<String> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if options.terminal.is_some() {
        env.push("TERM=xterm".to_owned());
    }
    agent_protocol::set_variables(&mut env, image.env.iter().chain(&options.env));
    env
}

/// All that there are.
pub fn all_capabilities() -> u64 {
    (1 << CAPABILITIES.len()) - 1
}

fn bit(name: &str) -> Result<u64, OptionsError> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if plain == "ALL" {
        return Ok(all_capabilities());
    }
    let number = CAPABILITIES.iter().position(|known| *known == plain);
    number.map(|number| 1 << number).ok_or_else(|| OptionsError::Capability(name.to_owned()))
}

/// Docker's own, without those dropped, with those added.
fn capabilities(options: &RunOptions) -> Result<u64, OptionsError> {
    let of = |names: &[String]| names.iter().try_fold(0, |all, name| Ok::<_, OptionsError>(all | bit(name)?));
    let own = DEFAULT_CAPABILITIES.iter().try_fold(0, |all, name| Ok::<_, OptionsError>(all | bit(name)?))?;
    let (added, dropped) = (of(&options.added_capabilities)?, of(&options.dropped_capabilities)?);
    let adds_all = added == all_capabilities();
    Ok(if adds_all { added & !dropped } else { own & !dropped | added })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            command: vec!["serve".into()],
            env: vec!["PATH=/x".into(), "A=1".into()],
            working_directory: "/srv".into(),
            user: "web".into(),
            ..ImageConfig::default()
        }
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[rstest]
    #[case(None, &[], &["/entry", "serve"])]
    #[case(None, &["x"], &["/entry", "x"])]
    #[case(Some("/other"), &[], &["/other"])]
    #[case(Some("/other"), &["x"], &["/other", "x"])]
    #[case(Some(""), &["x"], &["x"])]
    fn the_command_is_that_of_docker(
        #[case] entrypoint: Option<&str>,
        #[case] command: &[&str],
        #[case] args: &[&str],
    ) {
        let options = RunOptions {
            entrypoint: entrypoint.map(str::to_owned),
            command: words(command),
            ..RunOptions::default()
        };
        assert_eq!(
            container("c", &image(), &options, &Prepared::default()).unwrap().process.args,
            words(args)
        );
    }

    #[test]
    fn variables_replace_those_before_them() {
        let options = RunOptions { env: words(&["A=2", "B=3"]), ..RunOptions::default() };
        let process = container("c0de", &image(), &options, &Prepared::default()).unwrap().process;
        assert_eq!(process.env, ["PATH=/x", "HOSTNAME=c0de", "A=2", "B=3"]);
        assert_eq!((&*process.user, &*process.cwd), ("web", "/srv"));
    }

    #[rstest]
    #[case(&[], &[], 0xa804_25fb)]
    #[case(&["net_admin"], &["ALL"], 1 << 12)]
    #[case(&["ALL"], &["CAP_SYS_ADMIN"], 0x1ff_ffff_ffff & !(1 << 21))]
    #[case(&[], &["CHOWN"], 0xa804_25fa)]
    fn capabilities_are_those_of_docker(
        #[case] added: &[&str],
        #[case] dropped: &[&str],
        #[case] expected: u64,
    ) {
        let options = RunOptions {
            added_capabilities: words(added),
            dropped_capabilities: words(dropped),
            ..RunOptions::default()
        };
        assert_eq!(capabilities(&options), Ok(expected));
    }

    #[test]
    fn device_nodes_in_dev_are_of_no_use_without_privileges() {
        for privileged in [false, true] {
            let options = RunOptions { privileged, ..RunOptions::default() };
            let mounts = container("c", &image(), &options, &Prepared::default()).unwrap().mounts;
            let dev = mounts.iter().find(|mount| mount.target == "/dev").unwrap();
            assert_eq!(dev.flags & NODEV == 0, privileged);
        }
    }

    #[test]
    fn later_limits_replace_earlier_ones() {
        let limits = words(&["nofile=5", "core=0", "nofile=7:8"]);
        let limits = limits.iter().map(|text| text.parse().unwrap()).collect();
        let limits =
            container("c", &image(), &RunOptions { limits, ..RunOptions::default() }, &Prepared::default())
                .unwrap()
                .process
                .limits;
        let plain = limits.iter().map(|limit| (limit.resource, limit.soft, limit.hard));
        assert_eq!(plain.collect::<Vec<_>>(), [(libc::RLIMIT_CORE, 0, 0), (libc::RLIMIT_NOFILE, 7, 8)]);
    }

    #[test]
    fn processors_are_those_that_the_vm_has() {
        let options = RunOptions {
            milli_cpus: Some(200_500),
            cpu_set: Some("200,2".parse().unwrap()),
            cpu_shares: Some(1024),
            ..RunOptions::default()
        };
        let resources = container("c", &image(), &options, &Prepared::default()).unwrap().resources;
        assert_eq!((resources.cpus.as_deref(), resources.cpu_weight), (Some("2,200"), Some(39)));
        assert_eq!(crate::size(&options).0, 201);
        let options = RunOptions { cpu_set: Some("0-253".parse().unwrap()), ..RunOptions::default() };
        // Hosts of 254 processors have them.
        if available_cpus(&options) < 254 {
            let error = container("c", &image(), &options, &Prepared::default()).unwrap_err().to_string();
            assert!(error.contains("there is no CPU 253: use 0 to "), "{error}");
        }
    }

    #[rstest]
    #[case(RunOptions { memory: Some(1 << 20), memory_reservation: Some(2 << 20), ..RunOptions::default() }, "--memory-reservation is more")]
    #[case(RunOptions { hostname: Some("a b".into()), ..RunOptions::default() }, "invalid host name")]
    #[case(RunOptions { domain: Some("a b".into()), ..RunOptions::default() }, "invalid domain")]
    #[case(RunOptions { working_directory: Some("x".into()), ..RunOptions::default() }, "--workdir \"x\" is not an absolute")]
    #[case(RunOptions { tmpfs: vec![("x".into(), String::new())], ..RunOptions::default() }, "--tmpfs \"x\"")]
    #[case(RunOptions { added_capabilities: vec!["FLY".into()], ..RunOptions::default() }, "unknown capability \"FLY\"")]
    #[case(RunOptions { entrypoint: Some(String::new()), ..RunOptions::default() }, "no command specified")]
    fn bad_options_are_named(#[case] options: RunOptions, #[case] says: &str) {
        let error = container("c", &image(), &options, &Prepared::default()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
