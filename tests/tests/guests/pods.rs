//! Pods: several containers in one VM, each with a keeper of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::vsock_program;

use super::containers::{IMAGE, text};
use super::life::{mvm, said};
use super::passt::Uplink;

/// Makes a pod without a network.
fn pod(name: &str, options: &[&str]) -> Pod {
    let created = ["pod", "create", "--name", name, "--network", "none"];
    said(&[&created[..], options].concat());
    Pod(name.to_owned())
}

/// A pod that does not outlive its test.
struct Pod(String);

impl Drop for Pod {
    fn drop(&mut self) {
        let removed = mvm(&["pod", "rm", "--force", &self.0]);
        if !std::thread::panicking() {
            assert!(removed.status.success(), "{removed:?}");
        }
    }
}

impl Pod {
    /// Starts a container in it in the background.
    fn start(&self, name: &str, options: &[&str], script: &str) -> String {
        let run = ["run", "-d", "--pod", &self.0, "--name", name];
        said(&[&run[..], options, &[IMAGE, "sh", "-c", script]].concat())
    }

    /// What a container in it prints, which ends then.
    fn run(&self, options: &[&str], script: &str) -> (Option<i32>, String, String) {
        let run = ["run", "--rm", "--pod", &self.0];
        let output = mvm(&[&run[..], options, &[IMAGE, "sh", "-c", script]].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

/// A pod with a folder of the host, a folder that all its containers have, and a directory that several VMs share.
fn pod_with_folders(folder: &TempDir) -> Pod {
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(path("data/sub")).unwrap();
    fs::create_dir(path("common")).unwrap();
    fs::write(path("common/name"), "for all\n").unwrap();
    fs::write(path("data/file"), "given\n").unwrap();
    std::os::unix::fs::symlink("/etc", path("data/link")).unwrap();
    fs::copy(vsock_program(), path("data/client")).unwrap();
    said(&["volume", "create", "-d", "shared", "podpool"]);
    let common = format!("{}:/common:ro", path("common"));
    pod("files", &["-v", &path("data"), "-v", "podpool", "-v", &common])
}

#[test]
fn volumes_folders_and_sockets_are_shared_by_the_containers_of_a_pod() {
    let folder = TempDir::new().unwrap();
    let pod = pod_with_folders(&folder);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // A disk that two containers have at once, and what the image has where the second one has it. The first has the
    // same directory as before.
    pod.start("keeper", &["-v", "podvol:/first", "-v", "podpool:/pool"], "sleep 1000");
    let script = "cat /etc/passwd | head -c 5; echo; echo two >/etc/two; echo pooled >/pool/file; cat /common/name
        touch /common/x 2>/dev/null; echo $?; grep -c ' /etc ext4 ' /proc/mounts; grep -c ' /scratch ext4 ' /proc/mounts; df /t | grep -c tmpfs";
    let options = ["-v", "podvol:/etc", "-v", "podpool:/pool", "-v", "/scratch", "--tmpfs", "/t"];
    let (code, out, errors) = pod.run(&options, script);
    assert_eq!((code, &*out), (Some(0), "root:\nfor all\n1\n1\n1\n1\n"), "{errors}");
    let seen = said(&["exec", "keeper", "sh", "-c", "cat /first/two /pool/file; ls /first/passwd"]);
    assert_eq!(seen, "two\npooled\n/first/passwd");
    // No other VM has it meanwhile.
    let refused = mvm(&["run", "--rm", "--network", "none", "-v", "podvol:/x", IMAGE, "true"]);
    let line = text(&refused.stderr);
    assert!(refused.status.code() == Some(125) && line.contains("volume podvol is in use by"), "{line}");
    // A folder below that of the pod, a file of it and the same volume read-only and in two places; what is below a
    // link is not.
    let mounts = [format!("{}:/sub", path("data/sub")), format!("{}:/given:ro", path("data/file"))];
    let script = "cat /given /a/two; echo made >/sub/made; touch /given /a/x 2>/dev/null; echo $?; touch /b/x; ls /a/x";
    let options = ["-v", &mounts[0], "-v", &mounts[1], "-v", "podvol:/a:ro", "-v", "podvol:/b"];
    let (code, out, errors) = pod.run(&options, script);
    assert_eq!((code, &*out), (Some(0), "given\ntwo\n1\n/a/x\n"), "{errors}");
    assert_eq!(fs::read_to_string(path("data/sub/made")).unwrap(), "made\n");
    // All that another container of the pod has, while that runs; a folder that the pod does not have is refused.
    let script = "cat /first/two /pool/file /common/name; touch /first/x 2>/dev/null; echo $?";
    let (code, out, errors) = pod.run(&["--volumes-from", "keeper:ro"], script);
    assert_eq!((code, &*out), (Some(0), "two\npooled\nfor all\n1\n"), "{errors}");
    said(&["create", "--name", "apart", "--network", "none", "-v", "/etc:/host", IMAGE]);
    let (code, _, errors) = pod.run(&["--volumes-from", "apart"], "true");
    assert!(code == Some(125) && errors.contains("/etc is not in a folder of the pod"), "{errors}");
    said(&["rm", "apart"]);
    let (code, _, errors) = pod.run(&["-v", &format!("{}:/x", path("data/link"))], "true");
    assert!(code == Some(125) && errors.contains("is not in a folder of the pod"), "{errors}");
    // A socket of the host, twice.
    let listener = UnixListener::bind(path("host.sock")).unwrap();
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    let mounts = [format!("{}:/host.sock", path("host.sock")), format!("{}:/client:ro", path("data/client"))];
    for name in ["one", "two"] {
        let script = format!("echo {name} | /client unix /host.sock");
        let (code, out, errors) = pod.run(&["-v", &mounts[0], "-v", &mounts[1]], &script);
        assert_eq!((code, out), (Some(0), format!("{name}\n")), "{errors}");
    }
    server.join().unwrap();
    // What it had is free with its last container, and no volume without a name is left.
    said(&["rm", "--force", "keeper"]);
    said(&["volume", "rm", "podvol"]);
    let left = said(&["volume", "ls", "-q"]);
    assert!(left.lines().all(|name| name.len() < 64), "{left}");
    drop(pod);
    said(&["volume", "rm", "podpool"]);
}

#[test]
fn one_container_is_paused_and_what_all_do_is_shown() {
    let pod = pod("still", &[]);
    let count = "echo begun; i=0; while :; do i=$((i + 1)); echo $i >/dev/shm/count; sleep 0.05; done";
    let id = pod.start("counts", &[], count);
    let other = pod.start("other", &[], "echo of-other; echo to-errors >&2; sleep 1000");
    assert_eq!(said(&["pause", "counts"]), "counts");
    let state = |name: &str| said(&["inspect", "-f", "{{.State.Status}} {{.State.Paused}}", name]);
    assert_eq!((state("counts"), state("other")), ("paused true".into(), "running false".into()));
    let status =
        said(&["ps", "--filter", "name=counts", "--filter", "status=paused", "--format", "{{.Status}}"]);
    assert!(status.ends_with("(Paused)"), "{status}");
    let counted = || said(&["exec", "other", "cat", "/dev/shm/count"]);
    let before = counted();
    let refused = mvm(&["exec", "counts", "true"]);
    assert!(text(&refused.stderr).contains("is paused: `mvm unpause` it first"), "{refused:?}");
    // Files can be reached meanwhile.
    let copied = mvm(&["cp", "counts:/etc/passwd", "-"]);
    assert!(copied.status.success() && text(&copied.stdout).contains("root:"), "{copied:?}");
    assert_eq!(counted(), before);
    assert_eq!(said(&["unpause", "counts"]), "counts");
    let start = Instant::now();
    while counted() == before {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not go on");
    }
    let logs = said(&["pod", "logs", "still"]);
    assert_eq!(logs, format!("{id} begun\n{other} of-other"));
    // Which of both lines is the last is not said.
    assert_eq!(said(&["pod", "logs", "--names", "--tail", "2", "-c", "other", "still"]), "of-other");
    let top = said(&["pod", "top", "still", "user", "args"]);
    assert!(top.starts_with("USER   COMMAND\n") && top.contains("root   sleep 1000"), "{top}");
    let stats = said(&["pod", "stats", "--no-stream", "--format", "{{.CID}} {{.Name}} {{.PIDS}}", "still"]);
    assert!(stats.lines().any(|line| line == format!("{other} other 1")), "{stats}");
    let of_one =
        ["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.BlockIO}} {{.PIDs}}", "other"];
    let stats = said(&of_one);
    assert!(stats.starts_with("other ") && stats.ends_with("/ 1.0GiB -- / -- 1"), "{stats}");
    // A paused one ends as with docker: by its signal, which has it go on, by SIGKILL, and with the rest of its pod.
    said(&["pause", "counts", "other"]);
    assert_eq!(said(&["stop", "-t", "0", "counts"]), "counts");
    assert_eq!(said(&["wait", "counts"]), "137");
    said(&["start", "counts"]);
    said(&["pause", "counts"]);
    let refused = mvm(&["rm", "counts"]);
    assert!(text(&refused.stderr).contains("it is running"), "{refused:?}");
    said(&["kill", "other"]);
    assert_eq!(said(&["wait", "other"]), "137");
    said(&["rm", "--force", "counts"]);
    let trapped = pod.start("trapped", &[], SLEEP);
    said(&["pause", "trapped"]);
    assert_eq!((said(&["stop", "trapped"]), said(&["wait", &trapped])), ("trapped".into(), "7".into()));
}

/// What was written before the pause and is not on the disk yet is not lost with the guest's memory.
#[test]
fn a_paused_pod_goes_on_to_be_ended_and_keeps_what_was_written() {
    let pod = pod("resting", &[]);
    pod.start("writes", &["-v", "restvol:/vol"], SLEEP);
    for end in [&["pod", "stop", "resting"][..], &["pod", "kill", "resting"]] {
        said(&["exec", "writes", "sh", "-c", &format!("echo {} >>/file", end[1])]);
        said(&["pod", "pause", "resting"]);
        // It alone can't end: the others would go on too.
        for one in [&["stop", "writes"][..], &["kill", "writes"], &["rm", "--force", "writes"]] {
            let refused = mvm(one);
            assert_eq!(refused.status.code(), Some(1), "{one:?}");
            let line = text(&refused.stderr);
            assert!(line.contains("its pod is paused: `mvm pod unpause` it"), "{one:?}: {line}");
        }
        let start = Instant::now();
        said(end);
        assert!(start.elapsed() < Duration::from_secs(40), "{end:?} took {:?}", start.elapsed());
        let code = if end[1] == "stop" { "7" } else { "137" };
        assert_eq!(said(&["wait", "writes"]), code, "{end:?}");
        said(&["pod", "start", "resting"]);
    }
    assert_eq!(said(&["exec", "writes", "cat", "/file"]), "stop\nkill");
    said(&["exec", "writes", "sh", "-c", "echo kept >/vol/file"]);
    said(&["pod", "pause", "resting"]);
    said(&["pod", "rm", "--force", "resting"]);
    let read = ["run", "--rm", "--network", "none", "-v", "restvol:/vol", IMAGE, "cat", "/vol/file"];
    assert_eq!(said(&read), "kept");
    said(&["volume", "rm", "restvol"]);
}

const SLEEP: &str = "trap 'exit 7' TERM; while :; do sleep 0.1; done";

#[test]
fn containers_of_a_pod_share_what_podmans_do_and_nothing_else() {
    let pod = pod("shared", &["--hostname", "both", "--add-host", "other:10.1.2.3"]);
    let one = pod.start(
        "one",
        &["-m", "32m", "-e", "SECRET=x"],
        "echo hello | nc -l -p 80 & echo in-shm >/dev/shm/file; touch /only-here; echo log-of-one; wait; sleep 1000",
    );
    // Over 127.0.0.1, by name, by /dev/shm; with roots, processes and limits of their own.
    let script = "
        hostname; for i in 1 2 3 4 5 6 7 8 9; do nc one 80 2>/dev/null && break; sleep 0.2; done; cat /dev/shm/file
        grep -c -e '127.0.0.1.one' -e '127.0.0.1.two' -e '10.1.2.3.other' /etc/hosts
        ls /only-here 2>/dev/null; ps | grep -c '[s]leep 1000'; echo $$; cat /sys/fs/cgroup/memory.max; exit 3";
    let (code, out, errors) = pod.run(&["--name", "two"], script);
    assert_eq!(code, Some(3), "{errors}");
    assert_eq!(out, "both\nhello\nin-shm\n3\n0\n1\nmax\n", "{errors}");
    assert_eq!(said(&["exec", "one", "cat", "/sys/fs/cgroup/memory.max"]), (32 << 20).to_string());
    assert_eq!(said(&["exec", "one", "sh", "-c", "echo $SECRET; grep -c two /etc/hosts || true"]), "x\n0");
    assert_eq!(said(&["logs", "one"]), "log-of-one");
    let listed = said(&["ps", "--pod", "--format", "{{.Names}} {{.PodName}} {{.State}}"]);
    assert!(listed.lines().any(|line| line == "one shared running"), "{listed}");
    assert_eq!(said(&["pod", "inspect", "-f", "{{.State}} {{.NumContainers}}", "shared"]), "Running 1");
    // By its keeper alone.
    assert_eq!(said(&["stop", "-t", "0", "one"]), "one");
    assert_eq!(said(&["wait", &one]), "137");
}

#[test]
fn one_that_ends_by_whatever_leaves_the_others() {
    let pod = pod("apart", &[]);
    pod.start("first", &[], SLEEP);
    pod.start("second", &[], "echo kept >/file; sleep 1000");
    pod.start("third", &["--init"], SLEEP);
    assert_eq!(said(&["stop", "first"]), "first");
    assert_eq!(said(&["wait", "first"]), "7");
    assert_eq!(said(&["kill", "second"]), "second");
    assert_eq!(said(&["wait", "second"]), "137");
    // Its keeper, as by the host for lack of memory: the container is gone, and the VM is not.
    let pid = said(&["inspect", "-f", "{{.State.Pid}}", "third"]);
    let killed = std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap();
    assert!(killed.success());
    assert_eq!(said(&["wait", "third"]), "255");
    // What was written is there in another life, in the same VM.
    assert_eq!(said(&["start", "second"]), "second");
    assert_eq!(said(&["exec", "second", "cat", "/file"]), "kept");
    let (code, out, errors) = pod.run(&[], "ps | grep -c '[t]rap '; hostname");
    assert_eq!((code, &*out), (Some(0), "0\napart\n"), "{errors}");
    // The one with which the pod was started has nothing in common with it: it goes while the pod runs.
    assert_eq!(said(&["ps", "-a", "--filter", "name=first", "--format", "{{.State}}"]), "exited");
    assert_eq!(said(&["rm", "first"]), "first");
    assert_eq!(said(&["pod", "stop", "-t", "1", "apart"]).len(), 12);
    assert_eq!(said(&["pod", "inspect", "-f", "{{.State}}", "apart"]), "Exited");
    let refused = mvm(&["pod", "rm", "apart"]);
    assert!(text(&refused.stderr).contains("it has 2 containers"), "{refused:?}");
}

#[test]
fn slots_run_out_with_one_line_and_are_free_again() {
    let pod = pod("full", &["-m", "512m"]);
    // One for the image, and one for each.
    for number in 0..11 {
        pod.start(&format!("slot{number}"), &["--storage-opt", "size=256m"], "sleep 1000");
    }
    let (code, _, errors) = pod.run(&[], "true");
    assert_eq!((code, errors.lines().count()), (Some(125), 1), "{errors}");
    assert!(errors.contains("has no place for another disk: it has 12"), "{errors}");
    let (code, out, errors) = pod.run(&["--storage-opt", "memory"], "echo fits");
    assert_eq!((code, &*out), (Some(0), "fits\n"), "{errors}");
    said(&["rm", "--force", "slot3"]);
    let (code, out, errors) = pod.run(&[], "echo fits");
    assert_eq!((code, &*out), (Some(0), "fits\n"), "{errors}");
}

#[test]
fn the_pods_keeper_takes_all_with_it_and_an_idle_pod_ends() {
    let pod = pod("whole", &[]);
    pod.start("left", &[], "sleep 1000");
    pod.start("right", &[], "sleep 1000");
    let pid = said(&["pod", "inspect", "-f", "{{.Pid}}", "whole"]);
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    for name in ["left", "right"] {
        assert_eq!(said(&["wait", name]), "137");
    }
    // The next one starts it again, and it ends some time after that.
    let (code, out, errors) = pod.run(&[], "echo again");
    assert_eq!((code, &*out), (Some(0), "again\n"), "{errors}");
    let start = Instant::now();
    while said(&["pod", "ps", "-q", "--filter", "name=whole", "--filter", "status=exited"]).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "the pod does not end");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn processes_are_shared_where_that_is_asked_for() {
    let pod = pod("open", &["--share", "pid"]);
    pod.start("seen", &[], "sleep 1234");
    let (code, out, errors) = pod.run(&[], "ps -o args | grep -c '^sleep 1234'; test $$ != 1");
    assert_eq!((code, &*out), (Some(0), "1\n"), "{errors}");
    assert_eq!(said(&["kill", "seen"]), "seen");
    assert_eq!(said(&["wait", "seen"]), "137");
}

#[test]
fn ports_are_the_pods_and_reach_whichever_container_listens() {
    let Some(_uplink) = Uplink::new(false) else { return };
    let refused = mvm(&["run", "--rm", "--pod", "new:ports", "-p", "80", IMAGE, "true"]);
    assert!(text(&refused.stderr).contains("--publish is the pod's"), "{refused:?}");
    said(&["pod", "create", "--name", "ports", "-p", "127.0.0.1:18080:80"]);
    let pod = Pod("ports".to_owned());
    pod.start("idle", &[], "sleep 1000");
    pod.start("web", &[], "while :; do echo answer | nc -l -p 80; done");
    let start = Instant::now();
    loop {
        let mut answer = String::new();
        let read = TcpStream::connect("127.0.0.1:18080").and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let _ = stream.write_all(b"\n");
            stream.read_to_string(&mut answer)
        });
        if read.is_ok() && answer == "answer\n" {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{read:?} {answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(said(&["pod", "ps", "--format", "{{.Ports}}"]).contains("127.0.0.1:18080->80/tcp"));
}

/// Namespaces, and whether podman's pods share them without options (podman-pod-create(1), `--share`).
const NAMESPACES: [(&str, bool); 6] =
    [("ipc", true), ("uts", true), ("net", true), ("mnt", false), ("pid", false), ("cgroup", false)];

#[test]
fn two_containers_share_the_namespaces_that_podmans_share() {
    let script =
        "for n in ipc uts net mnt pid cgroup; do readlink /proc/self/ns/$n; done; stat -c %d /dev/shm";
    let pod = pod("judged", &[]);
    // Both at the same time, as numbers of namespaces are used again.
    pod.start("held", &[], "sleep 1000");
    let one = said(&["exec", "held", "sh", "-c", script]);
    let (code, other, errors) = pod.run(&[], script);
    assert_eq!(code, Some(0), "{errors}");
    let same: Vec<bool> = one.lines().zip(other.lines()).map(|(one, other)| one == other).collect();
    let expected: Vec<bool> = NAMESPACES.iter().map(|(_, is_shared)| *is_shared).chain([true]).collect();
    assert_eq!(same, expected, "{one}\n{other}");
}
