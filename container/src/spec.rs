//! A container as the agent gets it.

use agent_protocol::{
    Capabilities, Container, File, Limit, Mount, MountKind, Network, Process, Resources, Writable,
};

use crate::image::ImageConfig;
use crate::machine::{ADDRESSES, volume_tag};
use crate::options::{NetworkOption, OptionsError, RunOptions};
use crate::seccomp;

/// The search path of an image that has none, as docker's.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of /dev/shm, as docker's.
const SHM_SIZE: u64 = 64 << 20;
/// The disk with the image.
const IMAGE: &str = "/dev/vdb";

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
pub fn container(id: &str, image: &ImageConfig, options: &RunOptions) -> Result<Container, OptionsError> {
    let hostname = options.hostname.clone().unwrap_or_else(|| id.to_owned());
    let is_plain =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    if hostname.is_empty() || hostname.len() > 63 || !is_plain(&hostname) {
        return Err(OptionsError::Hostname(hostname));
    }
    let mut mounts = mounts(options);
    for (target, flags) in &options.tmpfs {
        absolute("--tmpfs", target)?;
        let options = if flags.is_empty() { "mode=1777".to_owned() } else { flags.clone() };
        mounts.push(file_system(target, "tmpfs", NOSUID | NODEV | NOEXEC, &options));
    }
    for (number, volume) in options.volumes.iter().enumerate() {
        let kind = MountKind::Share(volume_tag(number));
        let flags = if volume.read_only { NOSUID | NODEV | RDONLY } else { NOSUID | NODEV };
        mounts.push(Mount { target: volume.target.clone(), kind, flags, options: String::new() });
    }
    Ok(Container {
        id: id.to_owned(),
        image: IMAGE.to_owned(),
        // What is in it counts as the container's memory: more than half, and its programs' own pages would go first.
        writable: Writable::Memory(options.memory.map(|limit| limit / 2)),
        read_only: options.read_only,
        mounts,
        files: files(&hostname, options),
        masked_paths: strings(&MASKED, options.privileged),
        read_only_paths: strings(&READ_ONLY, options.privileged),
        network: network(options.network),
        sysctls: options.sysctls.clone(),
        resources: resources(options),
        all_devices: options.privileged,
        process: process(&hostname, image, options)?,
        hostname,
    })
}

fn strings(paths: &[&str], is_privileged: bool) -> Vec<String> {
    let all = paths.iter().map(|path| (*path).to_owned());
    if is_privileged { Vec::new() } else { all.collect() }
}

fn absolute(option: &'static str, path: &str) -> Result<(), OptionsError> {
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

fn network(option: NetworkOption) -> Option<Network> {
    let NetworkOption::User { .. } = option else { return None };
    Some(Network {
        interface: "eth0".into(),
        address: ADDRESSES.guest.octets(),
        prefix: ADDRESSES.prefix,
        router: ADDRESSES.router.octets(),
    })
}

/// The container's resolvers: those that the user gives, or the network's own.
fn resolvers(options: &RunOptions) -> String {
    let own = match options.network {
        NetworkOption::User { .. } => Some(ADDRESSES.resolver.into()),
        NetworkOption::None => None,
    };
    let given = if options.dns.is_empty() { Vec::from_iter(own) } else { options.dns.clone() };
    given.iter().map(|address| format!("nameserver {address}\n")).collect()
}

fn files(hostname: &str, options: &RunOptions) -> Vec<File> {
    let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    hosts.push_str(
        "fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    if let NetworkOption::User { reaches_host } = options.network {
        hosts.push_str(&format!("{}\t{hostname}\n", ADDRESSES.guest));
        if reaches_host {
            hosts.push_str(&format!("{}\thost.docker.internal\n", ADDRESSES.router));
        }
    }
    for (name, address) in &options.hosts {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let file = |path: &str, content: String| File { path: path.into(), content: content.into_bytes() };
    vec![
        file("/etc/hosts", hosts),
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/resolv.conf", resolvers(options)),
    ]
}

fn resources(options: &RunOptions) -> Resources {
    Resources {
        memory: options.memory,
        // In each period of 100 ms.
        cpu_quota: options.milli_cpus.map(|milli| milli.saturating_mul(100)),
        pids: options.pids,
        ..Resources::default()
    }
}

fn process(hostname: &str, image: &ImageConfig, options: &RunOptions) -> Result<Process, OptionsError> {
    let entrypoint = match &options.entrypoint {
        Some(text) => Some(text).filter(|text| !text.is_empty()).cloned().into_iter().collect(),
        None => image.entrypoint.clone(),
    };
    // A new entry point does without the image's command.
    let command = match (&options.entrypoint, options.command.is_empty()) {
        (None, true) => image.command.clone(),
        _ => options.command.clone(),
    };
    let args = [entrypoint, command].concat();
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
        limits: vec![Limit { resource: libc::RLIMIT_NOFILE, soft: 1 << 20, hard: 1 << 20 }],
        seccomp: filters(options, capabilities)?,
    })
}

/// The filters of its system calls, for these capabilities.
fn filters(options: &RunOptions, capabilities: u64) -> Result<Vec<Vec<u8>>, OptionsError> {
    if options.privileged || options.is_unconfined {
        return Ok(Vec::new());
    }
    let has = |name: &str| bit(name).is_ok_and(|bit| capabilities & bit != 0);
    seccomp::programs(has).map_err(|error| OptionsError::Filter(error.to_string()))
}

/// Later values replace earlier ones, at their place.
fn environment(hostname: &str, image: &ImageConfig, options: &RunOptions) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut set = |variable: &str| {
        let name = variable.split('=').next().unwrap_or_default();
        let is_same = |known: &&mut String| known.split('=').next() == Some(name);
        match env.iter_mut().find(is_same) {
            Some(known) => *known = variable.to_owned(),
            None => env.push(variable.to_owned()),
        }
    };
    set(PATH);
    set(&format!("HOSTNAME={hostname}"));
    if options.terminal.is_some() {
        set("TERM=xterm");
    }
    image.env.iter().chain(&options.env).for_each(|variable| set(variable));
    env
}

fn all_capabilities() -> u64 {
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
        assert_eq!(container("c", &image(), &options).unwrap().process.args, words(args));
    }

    #[test]
    fn variables_replace_those_before_them() {
        let options = RunOptions { env: words(&["A=2", "B=3"]), ..RunOptions::default() };
        let process = container("c0de", &image(), &options).unwrap().process;
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
            let mounts = container("c", &image(), &options).unwrap().mounts;
            let dev = mounts.iter().find(|mount| mount.target == "/dev").unwrap();
            assert_eq!(dev.flags & NODEV == 0, privileged);
        }
    }

    #[rstest]
    #[case(RunOptions { hostname: Some("a b".into()), ..RunOptions::default() }, "invalid host name")]
    #[case(RunOptions { working_directory: Some("x".into()), ..RunOptions::default() }, "--workdir \"x\" is not an absolute")]
    #[case(RunOptions { tmpfs: vec![("x".into(), String::new())], ..RunOptions::default() }, "--tmpfs \"x\"")]
    #[case(RunOptions { added_capabilities: vec!["FLY".into()], ..RunOptions::default() }, "unknown capability \"FLY\"")]
    #[case(RunOptions { entrypoint: Some(String::new()), ..RunOptions::default() }, "no command specified")]
    fn bad_options_are_named(#[case] options: RunOptions, #[case] says: &str) {
        let error = container("c", &image(), &options).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
