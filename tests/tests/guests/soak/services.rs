//! The units `mvm-restore` of `contrib/systemd`, with a systemd of the test's: it is the first process of a namespace,
//! with a /run of its own, and has these units and those that end it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::super::containers::{IMAGE, text};
use super::super::life::{ends, process};
use super::host::{Host, Shared};
use super::processes::spawn;

const SYSTEMD: &str = "/lib/systemd/systemd";
/// Units of systemd's own that power off.
const OWN: &[&str] =
    &["poweroff.target", "systemd-poweroff.service", "shutdown.target", "umount.target", "final.target"];
/// The same for a user's systemd that ends.
const OF_USER: &[&str] = &["exit.target", "systemd-exit.service", "shutdown.target"];
/// The service that has a user's systemd, as `user@.service` does.
const USER: &str = "[Service]\nType=notify\nDelegate=yes\nKillMode=mixed\nTimeoutStopSec=120\nExecStart=/lib/systemd/systemd --user\n";
/// Begins in a control group of its own, which is the root of its namespace.
const BEGIN: &str = r#"mkdir "$2" && echo $$ >"$2/cgroup.procs" || exit
    exec unshare --pid --mount --fork --cgroup --mount-proc --kill-child sh -c "$0" "$1" "$3""#;
/// Goes on in the namespaces, alone in the group: one with other processes gives its children no controllers.
const INIT: &str = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd /run/user &&
    umount /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup &&
    while grep -qx 0 /sys/fs/cgroup/cgroup.procs; do sleep 0.01; done &&
    exec env -i PATH=\"$PATH\" container=test SYSTEMD_UNIT_PATH=\"$0\" SYSTEMD_GENERATOR_PATH=/nonexistent \
    SYSTEMD_LOG_TARGET=console SYSTEMD_COLORS=0 \"$1\" --system --unit=multi-user.target";

/// Does what systemd does at the end of a unit, whose control group's processes are in the file `$0`. The units' own end
/// is not what is tested: KVM has threads of the kernel in the group, which have the ID 0 in a namespace, and systemd
/// before version 254 sends no more signals to a group with such an ID.
const STOP: &str = r#"for process in $(cat "$0"); do [ $process = 0 ] || kill -TERM $process || exit 2; done
    end=$(($(date +%s) + 90))
    while grep -qvx 0 "$0"; do [ $(date +%s) -lt $end ] || exit 3; sleep 0.1; done"#;

/// A system that runs.
struct System {
    init: Child,
    group: PathBuf,
}

const GROUPS: &str = "/sys/fs/cgroup";

impl System {
    /// Boots with the units in `units`, and waits until all that is wanted has been started.
    fn boot(units: &Path) -> Self {
        let group = Path::new(GROUPS).join(format!("mvm-test-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", BEGIN, INIT]).arg(units).arg(&group).arg(SYSTEMD).stdin(Stdio::null());
        let mut system = Self { init: spawn(&mut command), group };
        let start = Instant::now();
        let comm = format!("/proc/{}/comm", system.init.id());
        while fs::read_to_string(&comm).unwrap() != "unshare\n" || system.children().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not begin");
        }
        fs::write(Path::new(GROUPS).join("cgroup.procs"), system.init.id().to_string()).unwrap();
        loop {
            assert_eq!(system.init.try_wait().unwrap(), None, "systemd has ended");
            // It answers once it listens, and then when it has booted.
            let state = system.run("timeout", &["100", "systemctl", "is-system-running", "--wait"]);
            match text(&state.stdout).trim() {
                "running" => return system,
                "degraded" => {
                    panic!("{}", text(&system.run("systemctl", &["status", "--no-pager", "*"]).stdout))
                }
                state => {
                    assert!(start.elapsed() < Duration::from_secs(120), "systemd does not boot: {state}")
                }
            }
        }
    }

    /// Its first process.
    fn children(&self) -> String {
        fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.init.id())).unwrap_or_default()
    }

    /// Runs a program in it.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let children = self.children();
        let mut command = Command::new("nsenter");
        command.arg("--all").arg(format!("--target={}", children.trim())).arg("--").arg(program);
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Has it power off, and waits until it has.
    fn power_off(self) {
        let init = process(&self.init.id().to_string());
        // `systemctl poweroff` asks a message bus, which is not here.
        let start = ["--no-block", "--job-mode=replace-irreversibly", "start", "poweroff.target"];
        let asked = self.run("systemctl", &start);
        assert!(asked.status.success(), "{}", text(&asked.stderr));
        assert!(
            ends(&init),
            "it does not power off: {}",
            text(&self.run("systemctl", &["list-jobs"]).stdout)
        );
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let _ = self.init.kill();
        let _ = self.init.wait();
        // Its processes have ended with its first one.
        let _ = Command::new("find")
            .arg(&self.group)
            .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
            .status();
    }
}

/// A user of mvm on the system, whose directory of data is another one than the test's.
struct User<'a> {
    host: &'a Host,
    /// The name of what is the user's.
    name: &'static str,
}

impl User<'_> {
    fn data(&self) -> PathBuf {
        self.host.path(self.name)
    }

    fn mvm(&self, arguments: &[&str]) -> String {
        let output = self.host.timed(arguments).env("MVM_DATA_DIR", self.data()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    }

    /// Makes a container that is to run whenever the system does, of which no process is left.
    fn prepare(&self) {
        self.mvm(&["load", "-q", "-i", tests::container_image().to_str().unwrap()]);
        let script = "echo up >>/lives; sync; trap 'echo bye >>/lives; exit 7' TERM; >/ready
            while :; do sleep 0.1; done";
        let run = ["run", "-d", "--restart", "unless-stopped", "--name", self.name, "--network", "none"];
        self.mvm(&[&run[..], &[IMAGE, "sh", "-c", script]].concat());
        // What is not on the disk is lost with the host.
        self.mvm(&["exec", self.name, "sh", "-c", "while ! test -e /ready; do sleep 0.1; done"]);
    }

    /// Puts the unit of the repository into `units`, as `make install` and `systemctl enable` do.
    fn enable(&self, units: &Path, target: &str) {
        let manager = self.name;
        let unit = format!("{}/../contrib/systemd/{manager}/mvm-restore.service", env!("CARGO_MANIFEST_DIR"));
        let unit = fs::read_to_string(unit).unwrap();
        assert!(unit.contains(&format!("WantedBy={target}\n")));
        let program = tests::mvm().display().to_string();
        fs::write(units.join("mvm-restore.service"), unit.replace("/usr/local/bin/mvm", &program)).unwrap();
        let (data, assets) = (self.data(), tests::container_assets());
        let (data, assets) = (data.display(), assets.display());
        let environment = format!("Environment=MVM_DATA_DIR={data} MVM_ASSETS={assets}");
        let drop_in = format!("[Service]\n{environment}\nStandardOutput=append:{data}.log\n");
        fs::create_dir(units.join("mvm-restore.service.d")).unwrap();
        fs::write(units.join("mvm-restore.service.d/test.conf"), drop_in).unwrap();
        want(units, target, "mvm-restore.service");
    }

    /// What it has written in all its lives, once it runs no more.
    fn lives(&self) -> String {
        let copy = self.host.path("lives").display().to_string();
        self.mvm(&["cp", "-q", &format!("{}:/lives", self.name), &copy]);
        fs::read_to_string(copy).unwrap()
    }
}

/// Whether a systemd can be booted here.
fn has_systemd() -> bool {
    let has_groups = Path::new(GROUPS).join("cgroup.procs").exists();
    let has = Path::new(SYSTEMD).exists() && rustix::process::geteuid().is_root() && has_groups;
    if !has {
        eprintln!("skipped: it needs systemd, root, and version 2 of control groups");
    }
    has
}

/// Makes directories for the system's units, with the one that starts a user's systemd, and for that user's.
fn make_units(host: &Host) -> [PathBuf; 2] {
    let units = [host.path("units"), host.path("units/user")];
    // Of another test.
    let _ = fs::remove_dir_all(&units[0]);
    units.iter().for_each(|units| fs::create_dir(units).unwrap());
    for (own, of, to) in [(OWN, "/lib/systemd/system", &units[0]), (OF_USER, "/lib/systemd/user", &units[1])]
    {
        for unit in own {
            fs::copy(Path::new(of).join(unit), to.join(unit)).unwrap();
        }
    }
    let environment = format!(
        "Environment=XDG_RUNTIME_DIR=/run/user HOME={} SYSTEMD_UNIT_PATH={} SYSTEMD_GENERATOR_PATH=/nonexistent\n",
        host.path("share").display(),
        units[1].display()
    );
    fs::write(units[0].join("user@0.service"), format!("{USER}{environment}")).unwrap();
    units
}

/// Has the target `name` of `units` want the unit `wanted`.
fn want(units: &Path, name: &str, wanted: &str) {
    fs::write(units.join(name), "[Unit]\nDescription=What is wanted\n").unwrap();
    let wants = units.join(format!("{name}.wants"));
    fs::create_dir_all(&wants).unwrap();
    symlink(units.join(wanted), wants.join(wanted)).unwrap();
}

#[test]
fn containers_with_a_restart_policy_run_when_systemd_has_booted() {
    if !has_systemd() {
        return;
    }
    let host = Shared::take();
    let users = ["system", "user"].map(|name| User { host: &host, name });
    users.iter().for_each(User::prepare);
    host.go_down();

    let units = make_units(&host);
    users[0].enable(&units[0], "multi-user.target");
    users[1].enable(&units[1], "default.target");
    want(&units[0], "multi-user.target", "user@0.service");
    let system = System::boot(&units[0]);
    let program = tests::mvm().display().to_string();
    let mut groups = Vec::new();
    for (user, runtime) in users.iter().zip(["/run", "/run/user"]) {
        let (data, start) = (format!("MVM_DATA_DIR={}", user.data().display()), Instant::now());
        let runtime = format!("XDG_RUNTIME_DIR={runtime}");
        let mvm = |arguments: &[&str]| {
            let before = ["-u", "MVM_RUNTIME_DIR", &data, &runtime, "timeout", "100", &program];
            system.run("env", &[&before[..], arguments].concat())
        };
        // A user's systemd has been started before what it starts.
        loop {
            let listed = mvm(&["ps", "--format", "{{.Names}} {{.State}}"]);
            if text(&listed.stdout) == format!("{} running\n", user.name) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{}: {listed:?}", user.name);
        }
        // They are the service's: its end is theirs.
        let log = fs::read_to_string(host.path(&format!("{}.log", user.name))).unwrap();
        assert_eq!(log, format!("{}\n", user.name));
        // Process IDs are those of its namespace.
        let pid = mvm(&["inspect", "-f", "{{.State.Pid}}", user.name]);
        let file = format!("/proc/{}/cgroup", text(&pid.stdout).trim());
        let group = text(&system.run("cat", &[&file]).stdout);
        // VMs have groups of their own, and so has what keeps them.
        let own = "/mvm-restore.service/mvm-keepers";
        assert!(group.trim().ends_with(own), "{}: {pid:?}: {group}", user.name);
        groups.push(format!("{GROUPS}{}/cgroup.procs", group.trim().trim_start_matches("0::")));
    }
    for group in &groups {
        let stopped = system.run("sh", &["-c", STOP, group]);
        assert!(stopped.status.success(), "{group}: {} {}", stopped.status, text(&stopped.stderr));
    }
    system.power_off();
    for user in &users {
        // They were asked to end, and did; that does not count as a stop.
        let state = user.mvm(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", user.name]);
        let all = user.mvm(&["inspect", "-f", "{{json .State}} {{.RestartCount}}", user.name]);
        assert_eq!((&*state, &*user.lives()), ("exited 7", "up\nup\nbye\n"), "{}: {all}", user.name);
        assert_eq!(user.mvm(&["system", "restore"]), user.name);
    }
}

#[test]
fn a_vm_in_a_scope_of_a_users_systemd_has_a_group_in_it() {
    if !has_systemd() {
        return;
    }
    let host = Shared::take();
    let units = make_units(&host);
    want(&units[0], "multi-user.target", "user@0.service");
    fs::write(units[1].join("default.target"), "[Unit]\nDescription=Nothing is wanted\n").unwrap();
    let system = System::boot(&units[0]);
    let data = format!("MVM_DATA_DIR={}", host.path("data").display());
    let assets = format!("MVM_ASSETS={}", tests::container_assets().display());
    let before = ["-u", "MVM_RUNTIME_DIR", "XDG_RUNTIME_DIR=/run/user", &data, &assets, "timeout", "100"];
    let user = |arguments: &[&str]| system.run("env", &[&before[..], arguments].concat());
    let said = |arguments: &[&str]| {
        let output = user(arguments);
        assert!(output.status.success(), "{arguments:?}: {} {}", output.status, text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    };
    let program = tests::mvm().display().to_string();
    let scope = ["systemd-run", "--user", "--scope", "--quiet", "--unit=box", "-p", "Delegate=yes", &program];
    let run = ["run", "-d", "--jail", "strict", "--network", "none", "--name", "box", IMAGE, "sleep", "1000"];
    said(&[&scope[..], &run].concat());

    let group = |pid: &str| {
        let groups = said(&["cat", &format!("/proc/{pid}/cgroup")]);
        groups.strip_prefix("0::").unwrap().to_owned()
    };
    let pid = said(&[&program, "inspect", "-f", "{{.State.Pid}}", "box"]);
    let vm = group(&said(&["cat", &format!("/proc/{pid}/task/{pid}/children")]));
    let keeper = group(&pid);
    let scope = keeper.strip_suffix("/mvm-keepers").unwrap_or_else(|| panic!("{keeper}"));
    assert!(scope.ends_with("/box.scope"), "{scope}");
    assert!(vm.starts_with(&format!("{scope}/mvm-")) && vm != keeper, "{vm}");
    let most = said(&["cat", &format!("{GROUPS}{vm}/memory.max")]);
    assert!(most.parse::<u64>().is_ok(), "{most}");

    said(&[&program, "rm", "-f", "box"]);
    let start = Instant::now();
    // The scope ends with its last process, and its groups with it.
    while user(&["test", "-e", &format!("{GROUPS}{scope}")]).status.success() {
        assert!(start.elapsed() < Duration::from_secs(60), "the scope is left");
    }
    system.power_off();
}
