//! Docker in a container that owns its VM.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::containers::{IMAGE, text};
use super::life::{mvm, said};

/// A whole Debian's docker, which this host has, in a container that owns its VM.
#[test]
fn docker_runs_in_a_privileged_container() {
    let program = |name: &str| {
        let places = ["/usr/bin", "/usr/sbin"].map(|place| Path::new(place).join(name));
        places.into_iter().find(|path| path.exists())
    };
    let programs = ["dockerd", "docker", "containerd", "runc"].map(program);
    if programs.iter().any(Option::is_none) {
        return eprintln!("skipped: there is no docker");
    }
    let place = TempDir::new().unwrap();
    let saved: PathBuf = place.path().join("image.tar");
    said(&["save", "-o", saved.to_str().unwrap(), IMAGE]);
    let script = r#"ln -s usr/lib /lib; ln -s usr/lib64 /lib64; export PATH=/bin:/usr/sbin:/usr/bin
        # As with any docker in a container: control groups with processes have none below them.
        cd /sys/fs/cgroup; mkdir init; while read p; do echo $p >init/cgroup.procs; done <cgroup.procs
        for c in $(cat cgroup.controllers); do echo +$c >cgroup.subtree_control; done; cd /
        fail() { echo "$1"; cat /log.*; exit 1; }
        # Waits until a daemon, which is the last program that was started, does what is asked.
        await() {
            end=$(($(date +%s) + 120))
            until eval "$2" >/dev/null 2>&1; do
                kill -0 $! || fail "$1 has ended"
                [ $(date +%s) -lt $end ] || fail "$1 is not ready"
                sleep 0.1
            done
        }
        # dockerd gives a containerd that it starts itself no more than 15 s.
        printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >/config.toml
        containerd -c /config.toml >/log.containerd 2>&1 &
        await containerd 'test -S /run/containerd/containerd.sock'
        dockerd --containerd /run/containerd/containerd.sock --bridge none --iptables=false --ip-forward=false \
            --ip-masq=false --storage-driver overlay2 >/log.dockerd 2>&1 &
        await dockerd 'docker version'
        docker load -qi /image.tar && docker run --rm --network none -m 32m localhost/busybox \
            sh -c 'echo inside; cat /sys/fs/cgroup/memory.max; hostname | wc -c; test ! -e /log.dockerd' ||
            fail 'docker fails'"#;
    let image = format!("{}:/image.tar:ro", saved.display());
    let options =
        ["--rm", "--privileged", "--network", "none", "-m", "1g", "-v", "/usr:/usr:ro", "-v", &image];
    let command = ["-v", "/var/lib/docker", IMAGE, "timeout", "400", "sh", "-c", script];
    let ran = mvm(&[&["run"], &options[..], &command].concat());
    let printed = (ran.status.code(), text(&ran.stdout), text(&ran.stderr));
    let expected = "Loaded image: localhost/busybox:latest\ninside\n33554432\n13\n".to_owned();
    assert_eq!(printed, (Some(0), expected, String::new()));
}
