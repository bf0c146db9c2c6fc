//! What containers see and how they end, beside podman, which runs the same image with the same options.

use super::peers::{Row, Tool, command, compare, script};

/// Without options.
const ROWS: &[Row] = &[
    // Output and exit codes.
    command(&[], &["echo", "hello"]),
    script(&[], "echo out; echo err >&2; exit 7"),
    script(&[], "true"),
    script(&[], "printf 'no end of line'; printf none >&2"),
    script(&[], "printf '\\001\\033[1m\\t|\\n'"),
    script(&[], "seq 1 20000"),
    script(&[], "head -c 3000000 /dev/zero | md5sum"),
    script(&[], "nosuch; echo $?; /etc/passwd; echo $?; /bin; echo $?"),
    command(&[], &["nosuch"]),
    command(&[], &["/no/such"]),
    command(&[], &["/etc/passwd"]),
    command(&[], &["/bin"]),
    // Input.
    command(&["-i"], &["cat"]).input("some input\nand more\n"),
    command(&["-i"], &["head", "-c", "3"]).input("abcdefgh"),
    command(&[], &["cat"]).input("not passed on"),
    // Signals.
    script(&[], "kill -9 $$"),
    script(&[], "trap 'echo caught; exit 3' TERM; kill -TERM $$"),
    script(&[], "for n in HUP INT USR1 SEGV; do sh -c \"kill -$n \\$\\$\"; echo $?; done"),
    script(&[], "(yes; echo $? >&2) | head -1"),
    script(&[], "grep ^SigBlk /proc/self/status; grep ^SigIgn /proc/self/status | tail -c 8"),
    command(&[], &["sh", "-c", "kill -9 $$; kill -TERM $$; echo survived"]),
    // Processes.
    script(&[], "ps -o pid | head -2"),
    script(&[], "for i in 1 2 3; do sleep 0.01 & done; wait; echo all"),
    script(&[], "ls /proc/self/fd | wc -l; umask"),
    script(&[], "cat /proc/self/cgroup"),
    script(&[], "ulimit -c; ulimit -n; ulimit -Hn; ulimit -s; ulimit -f; ulimit -v"),
    // The view.
    script(&[], "env | grep -v -e ^HOSTNAME= -e ^container= -e ^TERM= | sort"),
    script(&[], "pwd; id -u; id -g; whoami; cat /etc/passwd /etc/group"),
    script(&[], "hostname | wc -c; test \"$(hostname)\" = \"$HOSTNAME\"; echo $?"),
    script(&[], "test -t 0 || test -t 1 || test -t 2 || echo no terminal"),
    script(&[], "ip -4 -o addr show | awk '{print $2, $4}'; ip route | wc -l; ls /sys/class/net"),
    script(&[], "ls -1 /dev | grep -v -e console -e ptmx"),
    script(
        &[],
        "cd /dev && stat -c '%n %t:%T %a' null zero full random urandom tty; readlink fd stdin stdout stderr ptmx",
    ),
    script(
        &[],
        "awk '$2 ~ \"^/(proc|proc/sys|sys|sys/fs/cgroup|dev/mqueue|dev/pts)$\" {print $2, $3, substr($4, 1, 2)}' /proc/mounts | sort",
    ),
    script(&[], "cat /proc/keys | wc -c; ls /sys/firmware | wc -l"),
    // What is forbidden.
    script(&[], "mount -t tmpfs none /tmp; echo $?"),
    script(
        &[],
        "echo 1 >/proc/sys/kernel/panic; echo b >/proc/sysrq-trigger; mkdir /sys/fs/cgroup/x; echo $?",
    ),
    script(&[], "hostname other; date -s @0 >/dev/null; dmesg; nice -n -5 true; swapoff /x; echo $?"),
    script(&[], "ip link set lo down; chroot / true; echo $?; cat /proc/1/environ | wc -c | grep -vc '^0$'"),
    script(&[], "unshare -m true; unshare -n true; echo $?"),
    // Files.
    script(&[], "mv /var /etc/var && ls /etc/var; mkdir -p /a/b && touch /a/b/c && mv /a /d && ls -R /d"),
    script(&[], "echo x >/h; ln /h /i; ln /i /tmp/j; stat -c %h /h; rm /h; cat /tmp/j; stat -c %h /i"),
    script(&[], "chmod 4711 /bin/busybox; stat -c %a /bin/busybox; chown 7:8 /root; stat -c '%u %g' /root"),
    script(
        &[],
        "truncate -s 1G /s; stat -c %s /s; mkfifo /p; stat -c %F /p; echo x >/dev/shm/x; mv /dev/shm/x /x; cat /x",
    ),
    script(
        &[],
        "rm -r /tmp && mkdir /tmp && ls -A /tmp | wc -l; stat -c %a /tmp; ln -s x /tmp/l; readlink /tmp/l; chmod 1777 /tmp",
    ),
    script(
        &[],
        "ln /bin/busybox /tmp/b && cmp /bin/busybox /tmp/b && rm /bin/busybox; ls /bin/busybox; echo $?; cp /tmp/b /bin/busybox",
    ),
];

/// Options that do not touch each other's subject.
const MANY: &[&str] = &[
    "-e",
    "A=1",
    "-e",
    "B=x y=z",
    "-e",
    "PATH=/bin:/extra",
    "-w",
    "/tmp",
    "-h",
    "box",
    "--add-host",
    "db:10.1.2.3",
    "--add-host",
    "six:fd00::1",
    "--group-add",
    "44",
    "--group-add",
    "45",
    "--tmpfs",
    "/scratch:size=64k",
    "--shm-size",
    "1m",
    "--sysctl",
    "kernel.msgmax=9000",
    "--ulimit",
    "nofile=100:200",
    "--ulimit",
    "nproc=500",
    "--oom-score-adj",
    "-7",
    "-m",
    "64m",
    "--memory-reservation",
    "32m",
    "--memory-swap",
    "64m",
    "--pids-limit",
    "17",
    "--cpus",
    "0.5",
    "--cpu-shares",
    "512",
    "--cpuset-cpus",
    "0",
    "-l",
    "a=b",
    "--stop-signal",
    "INT",
];

const NARROW: &[&str] = &[
    "--read-only",
    "--tmpfs",
    "/scratch",
    "--cap-drop",
    "ALL",
    "--cap-add",
    "NET_ADMIN",
    "--security-opt",
    "no-new-privileges",
];

const OPTIONS: &[Row] = &[
    script(MANY, "echo $A; echo $B; echo $PATH; env | grep -c ^A="),
    script(MANY, "pwd; touch here; ls /tmp"),
    script(MANY, "hostname; grep -c box /etc/hostname; echo $HOSTNAME"),
    script(MANY, "grep -e 10.1.2.3 -e fd00::1 /etc/hosts"),
    script(MANY, "id -G | tr ' ' '\\n' | sort -un | tr '\\n' ' '"),
    script(MANY, "df -k /scratch | tail -1 | awk '{print $2}'; touch /scratch/x; stat -c %a /scratch"),
    script(
        MANY,
        "head -c 100000 /dev/zero >/scratch/full; echo $?; stat -c %s /scratch/full; rm /scratch/full",
    ),
    script(MANY, "df -k /dev/shm | tail -1 | awk '{print $2}'"),
    script(MANY, "cat /proc/sys/kernel/msgmax"),
    script(MANY, "ulimit -n; ulimit -Hn; ulimit -u; ulimit -n 150; ulimit -n; ulimit -n 300"),
    script(MANY, "cat /proc/self/oom_score_adj"),
    script(MANY, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.low"),
    script(MANY, "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight"),
    script(MANY, "cat /sys/fs/cgroup/cpuset.cpus; grep -c ^processor /proc/stat; nproc"),
    // The last of these: what it leaves running is in the way of others.
    script(
        MANY,
        "cat /sys/fs/cgroup/pids.max; for i in 1 2 3 4 5 6 7 8 9 a b c d e f g h; do sleep 1 & done; echo $?",
    ),
    script(NARROW, "touch /x; echo $?; touch /dev/shm/x /scratch/x /dev/x; echo $?; touch /sys/x; echo $?"),
    script(NARROW, "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"),
    script(NARROW, "ip link set lo down; echo $?; chown 1 /scratch; kill -0 1; echo $?"),
    command(&["--entrypoint", "echo"], &["one", "two"]),
    command(&["--entrypoint", "nosuch"], &["one"]),
    command(&["-e", "ONLY=1", "--entrypoint", "env"], &["-u", "HOME", "nosuch"]),
    script(&["-t"], "test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM; echo err >&2; exit 3"),
    script(&["-t"], "ls -l /dev/console | cut -c 1-10; stty size | wc -w; stat -c %t /proc/self/fd/0"),
    script(&["-t"], "stty -a | grep -o -e ' -\\?icanon' -e ' -\\?echo ' -e ' -\\?onlcr' -e ' -\\?isig'"),
    command(&["-m", "32m"], &["tail", "-c", "100000000", "/dev/zero"]).mvm_explains(),
    script(&["-m", "32m"], "tail -c 100000000 /dev/zero; echo $?"),
];

#[test]
fn containers_are_those_of_podman() {
    compare(Tool::Podman, ROWS);
}

#[test]
fn options_are_those_of_podman() {
    compare(Tool::Podman, OPTIONS);
}
