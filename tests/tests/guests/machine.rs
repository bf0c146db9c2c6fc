//! A machine container: Debian with systemd, and in it containers of its own.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tests::{Boot, Guest, debian_image, mvm, sparse_copy};

use super::passt::{Uplink, ask, serve};
use crate::counts::{count, report};

/// A boot of Debian takes half a minute in the KVM lab, the start of a container ten seconds; a busy host, a multiple.
const WATCHDOG: Duration = Duration::from_secs(600);

/// Boots a copy of the image in `directory`, logs in, and runs `script`.
fn run_in_machine(boot: Boot, directory: &TempDir, script: &str) -> Guest {
    let disk = sparse_copy(&debian_image(), directory.path());
    let boot = boot.watchdog(WATCHDOG).flag("--rootfs", disk).flag("--memory", "1G");
    // The empty line parts its output from what the shell sends the terminal. Logins come before the last services.
    let script = format!("echo\necho state=$(systemctl is-system-running --wait)\n{script}\necho done=yes");
    let mut guest = boot.script(&script).start();
    // The console's getty logs root in.
    guest.wait_for("root@mvm:~#");
    guest.type_text("stty -echo; sh /dev/disk/by-id/virtio-script\n");
    guest.wait_for("done=yes");
    guest
}

/// Runs mvm, whose runtime directory is in `directory`.
fn run(directory: &TempDir, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(mvm());
    command.env("MVM_DATA_DIR", directory.path().join("data"));
    command.arg("--runtime-dir").arg(directory.path().join("run")).args(arguments);
    let output = command.output().unwrap();
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// `mvm exec` in the VM called "machine".
fn exec(directory: &TempDir, options: &[&str], script: &str) -> (Option<i32>, String) {
    run(directory, &[&["exec"], options, &["machine", "sh", "-c", script]].concat())
}

/// Its agent is there with the first login prompt, and again after its end; what it has started runs on meanwhile.
fn check_agent(directory: &TempDir) {
    let who = exec(directory, &["-u", "www-data"], "id -un; pwd; systemctl is-active mvm-agent");
    assert_eq!(who, (Some(0), "www-data\n/\nactive\n".into()));
    assert_eq!(exec(directory, &["-d"], "exec sleep 12345").0, Some(0));
    let script = "until pid=$(pgrep -f '^sleep 12345'); do sleep 0.1; done; echo $pid";
    let (_, sleep) = exec(directory, &[], script);
    let (code, said) =
        exec(directory, &[], "kill -9 $(systemctl show -P MainPID mvm-agent); exec sleep 54321");
    assert!(code == Some(137) && said.contains("the agent in it"), "{code:?}: {said}");
    let deadline = Instant::now() + WATCHDOG;
    let script = "pgrep -f '^sleep 12345'; pkill -f '^sleep '; systemctl is-active mvm-agent";
    // Until it was started again.
    let after = loop {
        match exec(directory, &[], script) {
            (Some(0), said) => break said,
            (code, said) => assert!(Instant::now() < deadline, "{code:?}: {said}"),
        }
    };
    assert_eq!(after, format!("{sleep}active\n"));
}

/// Copies of it run as it does, each with a name and files of its own.
fn check_copies(directory: &TempDir) {
    let (start, times) = (Instant::now(), count("MACHINES", 2));
    let (code, said) = run(directory, &["fork", "machine", "--count", &times.to_string(), "--name", "copy"]);
    assert!(code == Some(0) && said.lines().count() as u64 == times, "{code:?}: {said}");
    let names: Vec<String> = (1..=times).map(|number| format!("copy-{number}")).collect();
    for name in &names {
        let script = format!("hostnamectl hostname {name}; systemctl is-system-running; cat /etc/hostname");
        let said = run(directory, &["exec", name, "sh", "-c", &script]);
        assert_eq!(said, (Some(0), format!("running\n{name}\n")));
    }
    for name in &names {
        let said =
            run(directory, &["exec", name, "sh", "-c", "hostname; systemctl is-active containerd dbus"]);
        assert_eq!(said, (Some(0), format!("{name}\nactive\nactive\n")));
        assert_eq!(run(directory, &["rm", "-f", name]).0, Some(0));
    }
    assert_eq!(
        exec(directory, &[], "hostname; systemctl is-system-running"),
        (Some(0), "mvm\nrunning\n".into())
    );
    report("copies of a VM with systemd", times, start, "");
}

#[test]
fn systemd_is_up_without_a_failed_unit_and_heeds_the_power_button() {
    let directory = TempDir::new().unwrap();
    let script = "echo pid1=$(cat /proc/1/comm)
        echo failed=$(systemctl list-units --failed --plain --no-legend | tr '\\n' ';')
        echo cgroups=$(stat -fc %T /sys/fs/cgroup)
        echo missing=$(journalctl -qb -u init.scope -o cat | grep -ic 'not supported\\|lacks\\|missing')
        for unit in containerd dbus systemd-logind systemd-networkd systemd-resolved systemd-udevd; do
            echo $unit=$(systemctl is-active $unit)
        done";
    let boot = Boot::new()
        .switch("--agent")
        .flag("--name", "machine")
        .flag("--runtime-dir", directory.path().join("run"))
        .flag("--stop-timeout", "60s");
    let guest = run_in_machine(boot, &directory, script);
    check_agent(&directory);
    check_copies(&directory);
    guest.signal(Signal::TERM);
    let outcome = guest.finish().expect_code(0).expect("reboot: Power down");
    let units =
        ["containerd", "dbus", "systemd-logind", "systemd-networkd", "systemd-resolved", "systemd-udevd"];
    for unit in units {
        assert_eq!(outcome.value(unit), "active", "{unit}: {outcome}");
    }
    for (name, expected) in [
        ("pid1", "systemd"),
        ("state", "running"),
        ("failed", ""),
        ("cgroups", "cgroup2fs"),
        ("missing", "0"),
    ] {
        assert_eq!(outcome.value(name), expected, "{name}: {outcome}");
    }
    // It was shut down, not cut off: the file system was unmounted and needs no journal.
    let fsck = Command::new("e2fsck").arg("-fn").arg(directory.path().join("disk")).output().unwrap();
    let said = String::from_utf8_lossy(&fsck.stdout);
    assert!(fsck.status.success() && !said.contains("recover"), "{said}");
}

/// What the image brings for containers.
const IMAGE: &str = "image=/usr/local/share/images/busybox.tar name=localhost/busybox:latest";

const CONTAINERD: &str = "ctr image import $image >/dev/null
    echo ctr_root=$(ctr run --rm $name one grep ' / ' /proc/mounts | cut -d' ' -f1-3)
    ctr run -d --memory-limit 67108864 $name two sleep 1000
    echo ctr_group=$(cat /proc/$(pgrep -f 'sleep 1000')/cgroup)
    echo ctr_memory=$(cat /sys/fs/cgroup/default/two/memory.max)
    ctr task kill -s KILL two";

const PODMAN: &str = "podman load -qi $image >/dev/null
    echo podman=$(podman info -f '{{.Store.GraphDriverName}} {{.Host.CgroupsVersion}} {{.Host.NetworkBackend}}')
    podman network create net >/dev/null
    podman run -d --name web --network net -p 8080:80 --memory 64m --pids-limit 30 $name \
        sh -c 'echo served >/var/www/index.html; exec httpd -f -h /var/www' >/dev/null
    fetch() { curl -sS --retry 30 --retry-delay 1 --retry-all-errors $1; }
    echo port_of_loopback=$(fetch http://127.0.0.1:8080/)
    gateway=$(podman inspect -f '{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}' web)
    echo port_of_bridge=$(fetch http://$gateway:8080/)
    echo neighbour=$(podman run --rm --network net $name wget -qO- http://web/)
    echo memory=$(podman exec web cat /sys/fs/cgroup/memory.max)
    echo pids=$(podman exec web cat /sys/fs/cgroup/pids.max)
    echo root=$(podman exec web grep ' / ' /proc/mounts | cut -d' ' -f1-3)
    podman run --rm --network none --memory 16m $name tail /dev/zero; echo too_much_memory=$?
    podman run --rm --network none --pids-limit 10 $name \
        sh -c 'for i in $(seq 20); do sleep 100 & done' 2>/dev/null; echo too_many_processes=$?";

#[test]
fn containerd_and_podman_run_containers_and_hold_them_to_their_limits() {
    let directory = TempDir::new().unwrap();
    let mut guest = run_in_machine(Boot::new(), &directory, &format!("{IMAGE}\n{CONTAINERD}\n{PODMAN}"));
    guest.type_text("poweroff -f\n");
    let outcome = guest.finish().expect_code(0);
    for (name, expected) in [
        ("ctr_root", "overlay / overlay"),
        ("ctr_group", "0::/default/two"),
        ("ctr_memory", "67108864"),
        ("podman", "overlay v2 netavark"),
        ("port_of_loopback", "served"),
        ("port_of_bridge", "served"),
        ("neighbour", "served"),
        ("memory", "67108864"),
        ("pids", "30"),
        ("root", "overlay / overlay"),
        // Killed with signal 9 by the kernel, which has no memory for it; the shell's exit code for "can't fork".
        ("too_much_memory", "137"),
        ("too_many_processes", "2"),
    ] {
        assert_eq!(outcome.value(name), expected, "{name}: {outcome}");
    }
}

/// By the virtio console, where a machine has a login as well.
#[test]
fn a_machine_reaches_the_world_and_is_reached_to_its_containers() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let world = serve("203.0.113.5:7007", "from the world\n");
    let script = "/lib/systemd/systemd-networkd-wait-online --any --timeout=120
        echo world=$(curl -sS http://203.0.113.5:7007/machine)
        podman load -qi $image >/dev/null
        podman run -d -p 80:80 $name sh -c 'echo served >/var/www/word; exec httpd -f -h /var/www' >/dev/null
        echo ready=$(curl -sS --retry 30 --retry-delay 1 --retry-all-errors http://127.0.0.1/word)";
    let boot = Boot::new().flag("--console", "virtio").flag("--net", "user").flag("-p", "127.0.0.1:7011:80");
    let directory = TempDir::new().unwrap();
    let mut guest = run_in_machine(boot, &directory, &format!("{IMAGE}\n{script}"));
    ask("127.0.0.1:7011", "served\n");
    guest.type_text("poweroff -f\n");
    let outcome = guest.finish().expect_code(0);
    assert_eq!(world.join().unwrap(), "/machine");
    for (name, expected) in [("state", "running"), ("world", "from the world"), ("ready", "served")] {
        assert_eq!(outcome.value(name), expected, "{name}: {outcome}");
    }
}
