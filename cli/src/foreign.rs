//! What users of docker, QEMU, Firecracker, cloud-hypervisor and virsh write, and what to write instead.

/// What to write in place of the command `word`.
pub fn command(word: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|(words, _)| words.contains(&word)).map(|(_, advice)| *advice)
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
    (&["start", "create", "launch", "up"], "use `mvm boot`"),
    (&["help"], "use `mvm --help`, or `mvm COMMAND --help` for one command"),
    (
        &["exec", "ssh"],
        "`mvm console VM` is the guest's console; for ssh, publish its port: `mvm boot … -p 2222:22`",
    ),
    (
        &["logs", "log"],
        "`mvm console VM` shows the latest output and follows it; the file console.log in the VM's directory keeps it",
    ),
    (&["inspect", "show"], "use `mvm ps --json`, or GET /vm/config on the VM's control socket"),
    (
        &["rm", "remove", "delete", "undefine"],
        "a VM's files are removed when it ends; `mvm kill VM` ends it now",
    ),
    (&["restart", "reboot", "reset"], "use `mvm stop VM`, then `mvm boot` again"),
    (&["shutdown", "poweroff", "halt"], "use `mvm stop VM`"),
    (&["destroy", "terminate"], "use `mvm kill VM`"),
    (&["suspend"], "use `mvm pause VM`"),
    (&["wait"], "the process of `mvm boot` ends with the VM, with its exit code"),
    (&["cp"], "share a folder with the guest: `mvm boot … --share DIR:PATH`"),
    (&["port"], "publish ports when the VM boots: `mvm boot … -p HOST:GUEST`"),
    (&["build"], "images are built by docker, podman or buildah; `mvm load` and `mvm pull` take them"),
    (&["image"], "use `mvm images`, `mvm pull`, `mvm rmi`, `mvm tag`, `mvm history`"),
    (&["login", "logout"], "use `docker login` or `podman login`, whose credentials mvm uses"),
    (&["snapshot", "restore"], "snapshots are not supported yet; `mvm pause VM` pauses a VM"),
    (&["metrics"], "use `mvm stats`, or GET /metrics on the VM's control socket"),
    (&["update"], "use `mvm balloon VM SIZE` for memory, and `mvm resize VM DISK SIZE` for disks"),
    (
        &["network", "volume"],
        "a VM's networks and folders are options: `mvm boot … --net user --share DIR:PATH`",
    ),
];

const BOOT: Words = &["boot"];
const SIGNALLED: Words = &["stop", "kill", "pause", "resume"];

const OPTIONS: &[(Words, Words, &str)] = &[
    (
        BOOT,
        &["-d", "-dit", "-itd", "--detach", "--daemonize", "-daemonize"],
        "a VM runs in the foreground; to leave it in the background: `nohup mvm boot … --console off &`",
    ),
    (
        &[],
        &["-i", "-t", "-it", "-ti", "--interactive", "--tty"],
        "leave it out: on a terminal, the console is interactive",
    ),
    (BOOT, &["-e", "--env", "--env-file"], "a VM has no environment; pass kernel arguments with --append"),
    (BOOT, &["--rm"], "leave it out: a VM's files are removed when it ends"),
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
        "containers are not supported yet; set it in the guest",
    ),
    (BOOT, &["--label", "-l"], "a VM has no labels; name it with --name"),
    (&[""], &["-v"], "use --version"),
    (&["ps"], &["-a", "--all"], "only running VMs are listed; nothing is kept of one that has ended"),
    (&["ps", "stats"], &["-f", "--filter", "--format"], "use --json"),
    (&["stats"], &["-a", "--all"], "leave it out: without a VM, all that run are shown"),
    (SIGNALLED, &["-a", "--all"], "name the VMs, as in `mvm stop $(mvm ps --quiet)`"),
    (&["stop"], &["-f", "--force"], "use `mvm kill VM`"),
    (
        &["kill"],
        &["-9", "-KILL", "-15", "-TERM", "-f", "--force"],
        "use --signal, as in `mvm kill --signal TERM VM`",
    ),
];
