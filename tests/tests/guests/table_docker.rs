//! What containers see and how they end where podman is not docker: beside docker's daemon, which decides there.

use super::containers::{IMAGE, run, text};
use super::peers::{Row, Tool, command, compare, script};

const FOURTEEN: &str = "has 11 capabilities of docker's 14";
const NO_INIT: &str = "has another program for it, or none";
const DIES: &str = "fails while its runtime sets the container up";

/// Names and a directory that does not exist.
const NAMED: &[&str] = &[
    "--hostname",
    "box",
    "-w",
    "/new/directory",
    "--dns",
    "9.9.9.9",
    "--dns-search",
    "a.example",
    "--dns-option",
    "ndots:2",
];
const INIT: &[&str] = &["--init"];
const INIT_USER: &[&str] = &["--init", "-u", "1000", "--security-opt", "no-new-privileges"];
const USER: &[&str] = &["-u", "1000:1001", "--ulimit", "nofile=64", "--ulimit", "core=0"];

const ROWS: &[Row] = &[
    script(&[], "id").podman("leaves the user's own group out"),
    script(&[], "env | grep -v ^HOSTNAME= | sort").podman("sets container and TERM"),
    script(&[], "mknod /n c 1 3; stat -c %F /n; rm /n").podman(FOURTEEN),
    script(&[], "grep -E '^Cap|^Seccomp:|^NoNew' /proc/self/status").podman(FOURTEEN),
    script(&[], "ping -c 1 -W 5 127.0.0.1 | grep -c ttl; nc -l -p 80 -w 1; echo $?").podman(FOURTEEN),
    script(&[], "unshare -U true; echo $?").podman("lets it have a user namespace"),
    script(&[], "stat -c '%n %a %u %g' / /tmp /proc /dev /sys /etc /etc/passwd /etc/hosts /etc/hostname /etc/resolv.conf")
        .podman("gives the root directory the mode 555 where the image does not name it"),
    script(&[], "grep -v $HOSTNAME /etc/hosts").podman("begins with the host's file"),
    script(&[], "df -k /dev/shm /dev | awk 'NR > 1 {print $2, $6}'").podman("has 64000 KiB in /dev/shm"),
    script(&[], "awk '$2 ~ \"^/(dev/shm|dev/mqueue|dev/pts|proc/bus|proc/sys|sys)$\" {print $2, $3, $4}' /proc/mounts | sed 's/,\\(size\\|inode64\\).*//' | sort")
        .podman("has other options of mounts"),
    script(&[], "ls -a / | grep -v -e '^\\.dockerenv$'; ls -A /run | wc -l").podman("has /run/.containerenv"),
    script(USER, "id; echo $HOME; touch /x; echo $?").podman("adds the user to /etc/passwd"),
    script(USER, "grep ^Cap /proc/self/status").podman(FOURTEEN),
    script(USER, "ulimit -n; ulimit -Hn; ulimit -c; ulimit -Hc").podman(DIES),
    script(&["-u", "root:7"], "id; cat /etc/group").podman("adds the group to /etc/group"),
    script(&["--ulimit", "fsize=1024"], "head -c 4096 /dev/zero >/tmp/x; echo $?; stat -c %s /tmp/x").podman(DIES),
    script(NAMED, "cat /etc/resolv.conf").podman("refuses them without a network"),
    script(NAMED, "pwd; stat -c '%a %u' /new .").podman("refuses a directory that is not there"),
    script(NAMED, "hostname; cat /etc/hostname; echo $HOSTNAME").podman("has no line end in /etc/hostname"),
    command(&["-u", "nosuch"], &["id"]).podman("ends with 126"),
    command(&["-u", "0:nosuch"], &["id"]).podman("ends with 126"),
    script(&["--privileged"], "grep -E '^CapEff|^Seccomp:' /proc/self/status | tail -1; mount -t tmpfs none /tmp; echo $?")
        .podman("has it as well, with other devices"),
    script(&["--privileged"], "awk '$2 ~ \"^/(sys|proc/sys|sys/fs/cgroup)$\" {print $2, substr($4, 1, 2)}' /proc/mounts | sort")
        .podman("has them as well"),
];

/// The init is a program of the host's for podman and docker.
const INIT_ROWS: &[Row] = &[
    script(INIT, "grep ^PPid /proc/$PPID/status; exit 7").podman(NO_INIT),
    script(
        INIT,
        "sh -c 'sleep 0.1 & echo $!' >/tmp/orphan; while test -d /proc/$(cat /tmp/orphan); do sleep 0.1; done; echo reaped",
    )
    .podman(NO_INIT),
    command(INIT, &["sh", "-c", "kill -TERM $$; echo survived"]).podman(NO_INIT),
    command(INIT, &["nosuch"]).podman(NO_INIT),
    script(INIT_USER, "grep -hE '^(Uid|CapEff|Seccomp|NoNewPrivs):' /proc/1/status /proc/self/status | sort -u | cut -f 2")
        .podman(NO_INIT),
    script(&["--init", "-t"], "awk '{print $5 == $8, $7 != 0}' /proc/$$/stat; echo $TERM").podman(NO_INIT),
];

/// Neither runc nor crun starts with so few; here the limit is for the command alone.
#[test]
fn a_limit_of_files_is_for_the_command_alone() {
    let output =
        run(&["--network", "none", "--ulimit", "nofile=5", IMAGE, "sh", "-c", "ulimit -n; ulimit -Hn"]);
    assert_eq!(text(&output.stdout), "5\n5\n", "{}", text(&output.stderr));
}

#[test]
fn where_podman_differs_containers_are_those_of_docker() {
    compare(Tool::Docker, ROWS);
}

#[test]
fn an_init_starts_the_command_and_reaps_what_it_leaves_as_dockers_does() {
    compare(Tool::Docker, INIT_ROWS);
}
