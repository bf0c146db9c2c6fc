//! The process that pulls and loads for another one.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use rstest::rstest;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::interrupted::wait_for_worker;
use crate::place::{Place, fails, run, succeeds, text};
use crate::server::{Registry, Wants};

/// A registry that never answers.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn image(&self) -> String {
        format!("{}/a:1", self.0.local_addr().unwrap())
    }

    /// The next one that asks.
    fn asked(&self) -> TcpStream {
        self.0.accept().unwrap().0
    }
}

/// A process that may end.
struct Process {
    id: u32,
    descriptor: OwnedFd,
}

impl Process {
    /// The process that works for `child`, once there is one.
    fn of(child: &Child) -> Self {
        let id = wait_for_worker(child.id());
        let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        let descriptor = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        Self { id, descriptor }
    }

    /// Waits until it has ended.
    fn wait(&self) {
        let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let time = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut descriptors, Some(&time)).unwrap(), 1, "it is still there");
    }
}

fn kill(signal: &str, process: &str) {
    run(Command::new("kill").args([signal, "--", process]));
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Files as `mvm run` looks for them.
pub fn assets(place: &Place) -> std::path::PathBuf {
    let directory = place.path("assets");
    fs::create_dir(&directory).unwrap();
    for name in ["vmlinux", "agent.erofs", "changes.templates"] {
        fs::write(directory.join(name), "no such thing").unwrap();
    }
    directory
}

#[rstest]
#[case(&["pull"], "-SEGV", 1, "was ended by signal 11")]
#[case(&["pull"], "-KILL", 1, "was ended by SIGKILL; the host may have no memory left")]
#[case(&["run", "--network", "none"], "-ABRT", 125, "was ended by signal 6")]
fn its_end_is_one_line(#[case] command: &[&str], #[case] signal: &str, #[case] code: i32, #[case] how: &str) {
    let (silent, place) = (Silent::new(), Place::new());
    let image = silent.image();
    let mut mvm = place.mvm(&[command, &[&image]].concat());
    let child = start(mvm.env("MVM_ASSETS", assets(&place)));
    let _asked = silent.asked();
    let worker = Process::of(&child);
    kill(signal, &worker.id.to_string());
    worker.wait();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    let expected = format!("mvm: cannot pull {image}: the process that does it {how}\n");
    assert_eq!(errors.replace(&format!("mvm: pulling {image}\n"), ""), expected);
    assert_eq!((place.stored("tmp").len(), place.stored("images").len()), (0, 0));
}

#[test]
fn it_ends_with_the_one_that_waits_for_it() {
    for (signal, of_group) in [("-INT", true), ("-TERM", false), ("-KILL", false)] {
        let (silent, place) = (Silent::new(), Place::new());
        let child = start(place.mvm(&["pull", &silent.image()]).process_group(0));
        let _asked = silent.asked();
        let worker = Process::of(&child);
        kill(signal, &format!("{}{}", if of_group { "-" } else { "" }, child.id()));
        let output = child.wait_with_output().unwrap();
        assert!(output.status.signal().is_some(), "{signal}: {}", text(&output));
        worker.wait();
        // The next one removes what was left.
        place.succeed(&["images"]);
        assert_eq!(place.stored("tmp").len(), 0);
    }
}

#[test]
fn an_import_whose_process_is_killed_leaves_nothing() {
    let place = Place::new();
    let mut mvm = place.mvm(&["import", "-", "tools"]);
    let mut child = mvm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The archive's end does not come.
    child.stdin.as_mut().unwrap().write_all(&[0; 1 << 20]).unwrap();
    let worker = Process::of(&child);
    kill("-KILL", &worker.id.to_string());
    worker.wait();
    let output = child.wait_with_output().unwrap();
    let expected = "exit status: 1: mvm: cannot import -: the process that does it was ended by SIGKILL; \
                    the host may have no memory left\n";
    assert_eq!(text(&output), expected);
    assert_eq!((place.stored("tmp").len(), place.stored("images").len()), (0, 0));
}

#[test]
fn it_has_nothing_of_the_user_but_what_it_needs() {
    let (silent, place) = (Silent::new(), Place::new());
    let secret = place.path("secret");
    fs::write(&secret, "secret").unwrap();
    // A shell leaves a file open.
    let mut shell = place.command("sh");
    shell.args(["-c", "exec \"$0\" pull \"$1\" 7<secret", env!("CARGO_BIN_EXE_mvm"), &silent.image()]);
    let child = start(shell.env("PASSWORD", "secret").env("NO_PROXY", "example"));
    let _asked = silent.asked();
    let worker = Process::of(&child);
    let path = |name: &str| format!("/proc/{}/{name}", worker.id);
    let read = |name: &str| fs::read_to_string(path(name)).map(|text| text.replace('\0', " "));
    assert_eq!(read("cmdline").unwrap(), "mvm worker ");
    if !rustix::process::geteuid().is_root() {
        // It cannot be looked into.
        for name in ["environ", "maps"] {
            assert_eq!(read(name).map_err(|error| error.kind()), Err(std::io::ErrorKind::PermissionDenied));
        }
        kill("-KILL", &worker.id.to_string());
        child.wait_with_output().unwrap();
        return;
    }
    assert_eq!(read("environ").unwrap(), "NO_PROXY=example ");
    let files = fs::read_dir(path("fd")).unwrap();
    let files: Vec<_> = files.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
    let is_ours = |file: &std::path::PathBuf| {
        let name = file.to_string_lossy();
        file.starts_with(place.path("data")) || name.starts_with("socket:") || name.starts_with("pipe:")
    };
    assert!(files.iter().all(is_ours), "{files:?}");
    kill("-KILL", &worker.id.to_string());
    child.wait_with_output().unwrap();
    // On its own it does nothing.
    let error = fails(&mut place.mvm(&["worker"]), 2);
    assert!(error.contains("mvm runs this command itself"), "{error}");
}

#[test]
fn archives_and_layouts_are_loaded_by_it() {
    let place = Place::new();
    let archive = place.archive(&[100_000, 2000]);
    let name = archive.to_str().unwrap();
    assert_eq!(place.succeed(&["load", "-i", name]), "Loaded image: local:1\n");
    place.check_store(2);
    let mut from_input = place.mvm(&["load"]);
    assert_eq!(succeeds(from_input.stdin(fs::File::open(&archive).unwrap())), "Loaded image: local:1\n");
    let mut skopeo = place.command("skopeo");
    run(skopeo.args([
        "--insecure-policy",
        "copy",
        "-q",
        &format!("docker-archive:{name}"),
        "oci:layout:other:2",
    ]));
    assert_eq!(place.succeed(&["load", "-i", "layout"]), "Loaded image: other:2\n");
    for (arguments, expected) in [
        (&["load", "-i", "home"][..], "this is not an image"),
        (&["load", "-i", "nothing"], "cannot open nothing"),
        (&["load", "-i", "/dev/null"], "this is not an image"),
    ] {
        assert!(place.fail(1, arguments).contains(expected), "{arguments:?}");
    }
    // What is not a file is written to and not replaced.
    run(Command::new("mkfifo").arg(place.path("pipe")));
    let mut save = place.mvm(&["save", "-o", "pipe", "local:1"]);
    let saving = start(&mut save);
    assert!(run(Command::new("tar").arg("-Btf").arg(place.path("pipe"))).contains("manifest.json"));
    assert!(saving.wait_with_output().unwrap().status.success());
    assert!(!place.path("pipe").metadata().unwrap().is_file());
    assert!(place.fail(1, &["save", "-o", "home", "local:1"]).contains("cannot write home"));
    place.succeed(&["rmi", "local:1", "other:2"]);
    let error = place.fail(1, &["load", "--max-unpacked", "64k", "-i", name]);
    assert!(
        error.contains("more than 65536 bytes when they are unpacked: allow more by --max-unpacked SIZE")
    );
    place.check_store(0);
}

/// With the image there, nothing is connected and nothing started.
#[test]
fn an_image_that_is_there_needs_neither_a_process_nor_a_connection() {
    let registry = Registry::start(&Wants::default());
    let place = Place::new();
    registry.push(&place, &place.archive(&[1000]), "a:1", None);
    let image = format!("{}/a:1", registry.host);
    let (trace, assets) = (place.path("trace"), assets(&place));
    let traced = |name: &str| {
        let mut strace = place.command("strace");
        strace.args(["-f", "-qq", "-e", "trace=execve,socket,clone,clone3,fork,vfork", "-o"]).arg(&trace);
        strace.args(["--", env!("CARGO_BIN_EXE_mvm"), "run", "--network", "none", name, "true"]);
        // What is no kernel does not boot, with or without KVM.
        let output = strace.env("MVM_ASSETS", &assets).output().expect("strace: tools/need strace");
        assert_eq!(output.status.code(), Some(125), "{}", text(&output));
        fs::read_to_string(&trace).unwrap()
    };
    let calls = traced(&image);
    assert!(calls.contains("/proc/self/exe") && calls.contains("AF_INET"), "{calls}");
    assert_eq!(place.succeed(&["images", "-q"]).lines().count(), 1);
    let calls = traced(&image);
    assert_eq!(calls.matches("execve(").count(), 1, "{calls}");
    assert!(!calls.contains("AF_INET") && !calls.contains("/proc/self/exe"), "{calls}");
    let forked = calls.lines().filter(|line| line.contains("fork(") || line.contains("CLONE_VFORK"));
    assert_eq!(forked.count(), 0, "{calls}");
}
