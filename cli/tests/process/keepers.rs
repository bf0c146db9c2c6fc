//! `mvm run` that is ended at any time of its start, and what it finds in the place where it keeps things.
//!
//! The guests are a few bytes: no agent comes up, so that each container starts for as long as it is let.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::vm::{ENDS, IDLE, Place, WATCHDOG, text};

/// When a start is ended, in microseconds: up to two seconds, the most of them in the first tenth of one.
fn points() -> impl Iterator<Item = Duration> {
    (0_u64..20).map(|point| Duration::from_micros(point * point * point * 250))
}

/// An image, and a place for containers of it.
struct Containers(Place);

impl Containers {
    fn new() -> Option<Self> {
        Self::of(IDLE)
    }

    /// With a guest of `code`; `None`, with the reason printed, where there is no KVM.
    fn of(code: &[u8]) -> Option<Self> {
        let containers = Self(Place::new(code)?);
        let place = &containers.0;
        let assets = place.path("assets");
        fs::create_dir(&assets).unwrap();
        fs::copy(place.path("kernel"), assets.join("vmlinux")).unwrap();
        fs::write(assets.join("agent.erofs"), [0; 4096]).unwrap();
        let template = [256 << 20, 1024, 5].map(u64::to_le_bytes).concat();
        fs::write(assets.join("changes.templates"), [b"mvm-ext4", &*template, b"magic"].concat()).unwrap();
        containers.import("tiny");
        Some(containers)
    }

    fn mvm(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.mvm();
        command.env("MVM_DATA_DIR", self.0.path("data")).env("MVM_ASSETS", self.0.path("assets"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// What it says, on both streams; it succeeds.
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.mvm(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }

    fn import(&self, name: &str) {
        let directory = self.0.path(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(name), name).unwrap();
        let archive = self.0.path("layer.tar");
        let tar = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&directory).arg(".").status();
        assert!(tar.unwrap().success());
        self.said(&["import", archive.to_str().unwrap(), name]);
    }

    /// Starts a container called c.
    fn run(&self, options: &[&str]) -> Child {
        let run = ["run", "--network", "none", "--storage-opt", "memory", "--name", "c"];
        let mut command = self.mvm(&[&run[..], options, &["tiny", "sh"]].concat());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The status of a process of these containers, if one lives.
    fn living(&self) -> Option<String> {
        let own = format!("MVM_DATA_DIR={}", self.0.path("data").display());
        let is_own = |entry: &fs::DirEntry| {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == own.as_bytes())
        };
        let living = fs::read_dir("/proc").unwrap().flatten().find(is_own)?;
        Some(fs::read_to_string(living.path().join("status")).unwrap_or_default())
    }

    /// Waits until no process of these containers lives, and does `meanwhile` until then.
    fn wait_for_all(&self, meanwhile: impl Fn()) {
        let start = Instant::now();
        while let Some(status) = self.living() {
            assert!(start.elapsed() < WATCHDOG, "it lives on: {status}");
            meanwhile();
            sleep(Duration::from_millis(2));
        }
    }

    /// Expects that nothing is left but the image, of which nothing is held.
    fn expect_nothing(&self) {
        self.wait_for_all(|| ());
        assert_eq!(self.said(&["ps", "-aq"]), "");
        assert!(self.0.is_clean());
        let names = |path: &str| {
            let entries = fs::read_dir(self.0.path(path)).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        assert!(names("data/instances").iter().all(|name| name == "names"), "{:?}", names("data/instances"));
        assert_eq!(names("data/instances/names"), [""; 0]);
        self.import("other");
        self.said(&["rmi", "other"]);
        assert_eq!((names("data/images/layers").len(), names("data/images/tmp").len()), (1, 0));
    }
}

/// Expects that a container has not ended by itself.
fn expect_started(run: &mut Child, point: Duration) {
    let ended = run.try_wait().unwrap();
    assert!(ended.is_none(), "{point:?}: {ended:?}");
}

fn signal(child: &Child, signal: Signal) {
    // It has ended, if this fails.
    let _ = kill_process(Pid::from_child(child), signal);
}

#[test]
fn one_that_is_killed_at_any_time_is_not_in_the_way() {
    let Some(containers) = Containers::new() else { return };
    for (number, point) in points().enumerate() {
        let mut run = containers.run(if number % 2 == 0 { &["--rm"] } else { &[] });
        sleep(point);
        expect_started(&mut run, point);
        signal(&run, Signal::KILL);
        run.wait().unwrap();
        // The VM's process ends with its keeper.
        containers.wait_for_all(|| ());
        let listed = containers.said(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
        assert!(listed.is_empty() || number % 2 == 1 && listed == "c exited\n", "{point:?}: {listed}");
        if number % 4 == 3 {
            containers.said(&["rm", "-f", "c"]);
        } else if !listed.is_empty() {
            containers.said(&["rm", "c"]);
        }
    }
    containers.expect_nothing();
}

#[test]
fn one_that_is_asked_to_end_at_any_time_ends_and_leaves_nothing() {
    let Some(containers) = Containers::new() else { return };
    for point in points() {
        let mut run = containers.run(&["--rm"]);
        sleep(point);
        expect_started(&mut run, point);
        signal(&run, Signal::TERM);
        let start = Instant::now();
        let status = run.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        // Before it takes signals, it ends by this one.
        assert!(status.code() == Some(143) || status.signal() == Some(libc::SIGTERM), "{point:?}: {status}");
        assert_eq!(containers.said(&["ps", "-aq"]), "", "{point:?}");
    }
    containers.expect_nothing();
}

#[test]
fn one_in_the_background_outlives_who_started_it_at_any_time() {
    let Some(containers) = Containers::new() else { return };
    for point in points() {
        let mut run = containers.run(&["-d"]);
        sleep(point);
        signal(&run, Signal::KILL);
        run.wait().unwrap();
        // It may have had no record yet.
        containers.wait_for_all(|| drop(containers.said(&["rm", "-f", "c"])));
        containers.said(&["rm", "-f", "c"]);
    }
    containers.expect_nothing();
}

#[test]
fn one_that_ends_meanwhile_is_removed_or_said_to_run() {
    let Some(containers) = Containers::of(ENDS) else { return };
    for number in 0..20 {
        let mut run = containers.run(if number % 2 == 0 { &["--rm"] } else { &[] });
        let removal = if number % 4 < 2 { &["rm", "-f", "c"][..] } else { &["rm", "c"] };
        while run.try_wait().unwrap().is_none() {
            let output = containers.mvm(removal).output().unwrap();
            let said = text(&output);
            let is_refused = said.contains("it is running") || said.contains("there is no VM or container");
            assert!(output.status.success() || removal.len() == 2 && is_refused, "{removal:?}: {said}");
            assert!(said.lines().count() <= 1, "{said}");
        }
        containers.said(&["rm", "-f", "c"]);
    }
    containers.expect_nothing();
}

#[test]
fn files_of_one_that_does_not_run_are_let_go_of_whenever_who_copies_is_ended() {
    let Some(containers) = Containers::new() else { return };
    containers.said(&[
        "create",
        "--network",
        "none",
        "--storage-opt",
        "size=256M",
        "--name",
        "c",
        "tiny",
        "sh",
    ]);
    let copy = |signals: Signal| {
        for point in points().step_by(3) {
            let mut command = containers.mvm(&["cp", "c:/etc", "-"]);
            let mut copy = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            sleep(point);
            expect_started(&mut copy, point);
            signal(&copy, signals);
            let start = Instant::now();
            let ended = copy.wait().unwrap();
            assert!(start.elapsed() < Duration::from_secs(8), "{signals:?} at {point:?}: {ended}");
            containers.wait_for_all(|| ());
        }
    };
    [Signal::INT, Signal::TERM, Signal::KILL].into_iter().for_each(copy);
    assert_eq!(containers.said(&["ps", "-a", "--format", "{{.State}}"]), "created\n");
    containers.said(&["rm", "c"]);
    containers.expect_nothing();
}
