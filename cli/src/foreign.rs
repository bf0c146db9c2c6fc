//! What users of docker, QEMU, Firecracker, cloud-hypervisor and virsh write, and what to write instead.

/// What to write in place of the command `word` of `group`, which is empty for one of mvm itself.
pub fn command(group: &str, word: &str) -> Option<&'static str> {
    let of_group = TEMPLATE_COMMANDS.iter().filter(|_| group == "template");
    of_group.chain(COMMANDS).find(|(words, _)| words.contains(&word)).map(|(_, advice)| *advice)
}

/// What to write in place of the option or argument `word` of `command`.
pub fn option(command: &str, word: &str) -> Option<&'static str> {
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    let row = OPTIONS.iter().find(|(commands, words, _)| {
        (commands.is_empty() || commands.contains(&command)) && words.contains(&name)
    });
    row.map(|(_, _, advice)| *advice)
}

type Words = &'static [&'static str];

const COMMANDS: &[(Words, &str)] = &[
    (&["launch", "up"], "use `mvm run -d` for a container, `mvm boot -d` for a VM"),
    (&["reboot", "reset"], "use `mvm restart NAME`"),
    (&["help"], "use `mvm --help`, or `mvm COMMAND --help` for one command"),
    (&["ssh"], "`mvm console VM` is the guest's console; for ssh, publish its port: `mvm boot … -p 2222:22`"),
    (&["log"], "use `mvm logs`"),
    (&["show"], "use `mvm inspect`"),
    (&["remove", "delete", "undefine"], "use `mvm rm`"),
    (
        &["prune"],
        "use `mvm container prune` for containers, `mvm image prune` for images, `mvm system prune` for both",
    ),
    (&["info"], "use `mvm doctor`"),
    (&["shutdown", "poweroff", "halt"], "use `mvm stop NAME`"),
    (&["destroy", "terminate"], "use `mvm kill NAME`"),
    (&["suspend"], "use `mvm pause NAME`"),
    (
        &["build", "buildx", "builder", "bake"],
        "images are built by docker, podman or buildah; `mvm load` and `mvm pull` take them",
    ),
    (&["search"], "registries are searched on their web sites; `mvm pull IMAGE` takes an image"),
    (
        &["compose"],
        "use `mvm run -d` for each container; those that reach each other go into one pod: `mvm pod --help`",
    ),
    (
        &["checkpoint"],
        "use `mvm pause --save NAME` and `mvm resume NAME`; `mvm snapshot` saves a VM of `mvm boot`",
    ),
    (&["metrics"], "use `mvm stats`, or GET /metrics on the VM's control socket"),
    (&["network"], "networks are options: `mvm run --network user`, `mvm boot --net user`"),
    (&["manifest", "scout"], "use `mvm image inspect`"),
    (&["volumes"], "use `mvm volume ls`"),
    (&["mount"], "share a folder, as in `mvm run -v ./src:/work`"),
    (&["dockerd", "daemon"], "mvm has no daemon: run containers with `mvm run`"),
    (
        &["context", "swarm", "service", "stack", "node", "plugin", "secret", "config", "trust"],
        "mvm has neither a daemon nor a cluster",
    ),
];

const TEMPLATE_COMMANDS: &[(Words, &str)] = &[
    (&["create", "make"], "use `mvm template build`"),
    (&["rm", "remove", "delete"], "use `mvm template prune`, which removes all templates"),
];

const BOOT: Words = &["boot"];
const RUN: Words = &["run", "create"];
const SIGNALLED: Words = &["stop", "kill", "pause", "resume"];

const OPTIONS: &[(Words, Words, &str)] = &[
    (BOOT, &["-dit", "-itd", "--daemonize", "-daemonize"], "use --detach"),
    (
        &["boot", "console"],
        &["-i", "-t", "-it", "-ti", "--interactive", "--tty"],
        "leave it out: on a terminal, the console is interactive",
    ),
    (BOOT, &["-e", "--env", "--env-file"], "a VM has no environment; pass kernel arguments with --append"),
    (BOOT, &["-c", "-smp", "--smp", "--cpu", "--vcpus", "--vcpu-count"], "use --cpus N"),
    (BOOT, &["--ram", "--mem-size", "--mem-size-mib"], "use --memory SIZE"),
    (
        BOOT,
        &["-drive", "--drive", "-blockdev", "--blockdev", "-hda", "-hdb", "-hdc", "--hda", "--hdb"],
        "use --rootfs PATH for the root file system, and --disk PATH for other disks",
    ),
    (
        BOOT,
        &["-device", "--device"],
        "use --disk, --net, --vsock, --share or --balloon for a device of that kind",
    ),
    (BOOT, &["--root-drive", "--root", "--image", "--root-disk"], "use --rootfs PATH"),
    (BOOT, &["-cdrom", "--cdrom"], "use --disk FILE,readonly"),
    (
        BOOT,
        &["-net", "-nic", "-netdev", "--network", "--nic", "--netdev", "--tap", "--bridge"],
        "use --net user, --net tap=NAME or --net bridge=NAME",
    ),
    (BOOT, &["--port", "--ports", "-P", "--publish-all"], "use --publish HOST:GUEST"),
    (BOOT, &["-kernel", "--kernel-image"], "use --kernel FILE"),
    (BOOT, &["-initrd", "--initramfs", "--initrd-path"], "use --initrd FILE"),
    (
        BOOT,
        &["-append", "--args", "--kernel-args", "--kernel-cmdline", "--boot-args"],
        "use --append ARGS, or --cmdline ARGS to replace mvm's own arguments",
    ),
    (
        BOOT,
        &[
            "-nographic",
            "--nographic",
            "-display",
            "-vga",
            "-vnc",
            "-serial",
            "--serial",
            "-monitor",
            "-chardev",
        ],
        "leave it out, or use --console: by default, the console is on standard input and output",
    ),
    (
        BOOT,
        &["-enable-kvm", "--enable-kvm", "-accel", "--accel", "-machine", "--machine", "-M", "-cpu"],
        "leave it out: mvm always uses KVM and the host's CPU",
    ),
    (BOOT, &["--config-file", "-f", "--file"], "use --config FILE, a TOML file"),
    (
        BOOT,
        &["--api-sock", "--api-socket", "--no-api", "-qmp"],
        "each VM has a control socket; `mvm ps --json` shows its path",
    ),
    (
        BOOT,
        &["--mount", "--bind", "--fs", "-virtfs", "--virtfs", "-fsdev", "--shared-dir", "--virtiofs"],
        "use --share DIR:PATH",
    ),
    (BOOT, &["-s", "-S", "-gdb"], "use --gdb PORT"),
    (BOOT, &["--restart"], "mvm does not restart a VM; a systemd unit with Restart= does"),
    (BOOT, &["--privileged"], "use --nested for a guest that runs VMs itself"),
    (
        BOOT,
        &["--hostname", "--user", "-u", "--workdir", "-w", "--entrypoint"],
        "those are options of `mvm run`; in a VM, set it in the guest",
    ),
    (BOOT, &["--label", "-l"], "a VM has no labels; name it with --name"),
    (
        RUN,
        &["--volume-driver"],
        "use --mount type=volume,volume-driver=shared,… or `mvm volume create --driver`",
    ),
    (
        RUN,
        &["--link", "--network-alias", "--net-alias"],
        "containers cannot reach each other yet; a port that one publishes is at host.docker.internal for one \
         with --network user,host",
    ),
    (
        RUN,
        &["--device", "--device-cgroup-rule", "--gpus"],
        "a container has its VM's devices and none of the host's: use --privileged for those of the VM, -v for folders",
    ),
    (RUN, &["--oom-kill-disable"], "use --oom-score-adj: with control groups v2 nothing switches this off"),
    (RUN, &["--runtime", "--cgroup-parent"], "leave it out: each container has a VM of its own"),
    (
        RUN,
        &[
            "--blkio-weight",
            "--blkio-weight-device",
            "--device-read-bps",
            "--device-read-iops",
            "--device-write-bps",
            "--device-write-iops",
        ],
        "the disks of containers have no limits yet; those of `mvm boot` have",
    ),
    (
        RUN,
        &["--cpu-count", "--cpu-percent", "--io-maxbandwidth", "--io-maxiops"],
        "leave it out: it is for containers of Windows; use --cpus N",
    ),
    (
        &["run", "create", "update"],
        &["--cpu-rt-period", "--cpu-rt-runtime"],
        "leave it out: control groups v2 have no limits of real-time processes; use --cap-add SYS_NICE --ulimit rtprio=N",
    ),
    (RUN, &["--kernel-memory"], "leave it out: --memory counts the kernel's memory too"),
    (RUN, &["--link-local-ip"], "use --network tap=NAME,ip=ADDRESS/PREFIX or bridge=NAME,ip=ADDRESS/PREFIX"),
    (RUN, &["--use-api-socket"], "leave it out: mvm has no daemon and no socket of one"),
    (RUN, &["--volume-driver"], "leave it out: volumes are folders, files and disks of this host"),
    (RUN, &["--ip", "--ip6"], "use --network tap=NAME,ip=ADDRESS/PREFIX or bridge=NAME,ip=ADDRESS/PREFIX"),
    (&[""], &["-H", "--host", "-c", "--context"], "mvm has no daemon, so it works on this host only"),
    (&[""], &["-D", "--debug"], "use --log-level debug"),
    (&[""], &["-v"], "use --version"),
    (&["update"], &["--cpuset-mems"], "leave it out: the VM's memory is one node"),
    (
        &["update"],
        &["--blkio-weight"],
        "the disks of containers have no limits yet; those of `mvm boot` have",
    ),
    (&["start"], &["--checkpoint", "--checkpoint-dir"], "use `mvm pause --save` and `mvm resume`"),
    (&["rm"], &["-l", "--link"], "leave it out: containers have no links"),
    (&["stats"], &["-f", "--filter"], "name them, as in `mvm stats web db`"),
    (SIGNALLED, &["-a", "--all"], "name them, as in `mvm stop $(mvm ps --quiet)`"),
    (&["stop"], &["-f", "--force"], "use `mvm kill NAME`"),
    (
        &["kill"],
        &["-9", "-KILL", "-15", "-TERM", "-f", "--force"],
        "use --signal, as in `mvm kill --signal TERM NAME`",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::CommandFactory;

    use super::option;

    const DOCS: &str = include_str!("../../docs/containers.md");
    const DOCKERS: &str = include_str!("docker-options.txt");

    /// The table of docs/containers.md: what is said of each option of each command.
    fn table() -> BTreeMap<(&'static str, &'static str), &'static str> {
        let (_, rest) = DOCS.split_once("\n## Docker's options\n").unwrap();
        let (section, _) = rest.split_once("\n## ").unwrap();
        let rows = section.lines().filter_map(|line| {
            let [_, command, option, says, _] = *line.split('|').map(str::trim).collect::<Vec<_>>() else {
                return None;
            };
            Some(((command, option.strip_prefix('`')?.strip_suffix('`')?), says))
        });
        let (count, table) = (rows.clone().count(), rows.collect::<BTreeMap<_, _>>());
        assert_eq!(count, table.len(), "no row is there twice");
        table
    }

    #[test]
    fn each_option_of_docker_has_a_row_that_is_true() {
        let table = table();
        let mut mvm = crate::Cli::command();
        mvm.build();
        let dockers = DOCKERS.lines().filter(|line| !line.starts_with('#'));
        let dockers: Vec<_> = dockers.map(|line| line.split_once(' ').unwrap()).collect();
        for (command, long) in &dockers {
            // They have a table.
            let row = if *command == "create" { "run" } else { *command };
            let says = table.get(&(row, *long));
            let described = mvm.find_subcommand(command).unwrap();
            let is_taken = described.get_arguments().any(|arg| {
                let aliases = arg.get_all_aliases().unwrap_or_default();
                arg.get_long().into_iter().chain(aliases).any(|name| Some(name) == long.strip_prefix("--"))
            });
            // Those of the command that starts it are of none that only makes it.
            if *command == "create" && ["--detach", "--detach-keys", "--sig-proxy"].contains(long) {
                continue;
            }
            match says.map(|says| says.split_once(": ").unwrap_or((says, ""))) {
                Some(("works" | "differs", _)) => assert!(is_taken, "{command} {long}"),
                Some(("refused", advice)) => {
                    assert!(!is_taken, "{command} {long}");
                    assert_eq!(option(command, long), Some(advice), "{command} {long}");
                }
                says => panic!("{command} {long}: {says:?}"),
            }
        }
        for (command, long) in table.keys() {
            assert!(dockers.contains(&(*command, *long)), "docker has no {command} {long}");
        }
    }
}
