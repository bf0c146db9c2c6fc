//! A user with an image, a container and a volume, none of which is ever to be lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::place::{Place, run, text};

/// What a test does, which is repeated.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// Commands that make what it needs.
    pub before: &'static [&'static [&'static str]],
    pub command: &'static [&'static str],
}

const LOAD: &[&str] = &["load", "-q", "-i", "archive.tar"];
const CREATE: &[&str] =
    &["create", "--name", "new", "-v", "named:/named", "-v", "/anonymous", "kept:1", "/sh"];
const VOLUME: &[&str] = &["volume", "create", "named"];

/// All that change something that is kept. `REGISTRY` stands for the address of one.
pub const CASES: &[Case] = &[
    Case { name: "load", before: &[], command: LOAD },
    Case { name: "pull", before: &[], command: &["pull", "-q", "REGISTRY/other:1"] },
    Case { name: "import", before: &[], command: &["import", "layer.tar", "local:1"] },
    Case { name: "tag", before: &[], command: &["tag", "kept:1", "local:1"] },
    Case { name: "rmi", before: &[LOAD], command: &["rmi", "local:1"] },
    Case { name: "image prune", before: &[LOAD], command: &["image", "prune", "-af"] },
    Case { name: "create", before: &[], command: CREATE },
    Case { name: "rename", before: &[CREATE], command: &["rename", "new", "newer"] },
    Case { name: "rm", before: &[CREATE], command: &["rm", "-v", "new"] },
    Case { name: "container prune", before: &[CREATE], command: PRUNE_CONTAINERS },
    Case { name: "volume create", before: &[], command: VOLUME },
    Case { name: "volume rm", before: &[VOLUME], command: &["volume", "rm", "named"] },
    Case { name: "volume prune", before: &[VOLUME], command: PRUNE_VOLUMES },
];

const PRUNE_CONTAINERS: &[&str] = &["container", "prune", "-f", "--filter", "label!=keep"];
const PRUNE_VOLUMES: &[&str] = &["volume", "prune", "-af", "--filter", "label!=keep"];

/// The sizes of the layers of the image that comes and goes.
const LAYERS: [usize; 3] = [1 << 20, 100_000, 2000];

/// What all commands together say of what there is.
#[derive(Debug, PartialEq, Eq)]
pub struct Truth {
    said: String,
    files: Vec<String>,
}

pub struct Host {
    pub place: Place,
    registry: String,
    /// The process in whose namespace of mounts the directory of data is another disk.
    namespace: Option<u32>,
}

impl Host {
    /// A host whose directory of data is that which the process `namespace` sees.
    pub fn new(registry: &str, namespace: impl FnOnce(&Path) -> Option<u32>) -> Self {
        let place = Place::new();
        let assets = place.path("assets");
        fs::create_dir(&assets).unwrap();
        let record = |size: u64| [&[size, 1024, 5].map(u64::to_le_bytes).concat()[..], b"magic"].concat();
        let templates = [b"mvm-ext4", &*record(256 << 20), &*record(20 << 30)].concat();
        fs::write(assets.join("changes.templates"), templates).unwrap();
        // Nothing in it can boot.
        for name in ["vmlinux", "agent.erofs"] {
            fs::write(assets.join(name), "nothing").unwrap();
        }
        fs::create_dir(place.path("data")).unwrap();
        let namespace = namespace(&place.path("data"));
        let host = Self { place, registry: registry.to_owned(), namespace };
        host.place.archive(&[300_000]);
        host.said(LOAD);
        host.said(&["tag", "local:1", "kept:1"]);
        host.said(&["rmi", "local:1"]);
        host.said(&["create", "--name", "kept", "--label", "keep", "kept:1", "/sh"]);
        host.said(&["volume", "create", "--driver", "shared", "--label", "keep", "kept"]);
        fs::write(host.data().join("volumes/kept/data/file"), "content").unwrap();
        host.place.archive(&LAYERS);
        fs::write(host.place.path("content"), "of a layer").unwrap();
        run(host.place.command("tar").args(["-cf", "layer.tar", "content"]));
        host
    }

    /// The directory of data, as this process sees it.
    fn data(&self) -> PathBuf {
        let data = self.place.path("data");
        match self.namespace {
            Some(process) => {
                PathBuf::from(format!("/proc/{process}/root")).join(data.strip_prefix("/").unwrap())
            }
            None => data,
        }
    }

    pub fn mvm(&self, arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_mvm");
        let mut command = match self.namespace {
            Some(process) => {
                let mut command = self.place.command("nsenter");
                let directory = self.place.path("").display().to_string();
                command.arg("--mount").arg(format!("--wdns={directory}")).arg(format!("--target={process}"));
                command.arg("--").arg(program);
                command
            }
            None => self.place.command(program),
        };
        let arguments = arguments.iter().map(|argument| argument.replace("REGISTRY", &self.registry));
        command.env("MVM_ASSETS", self.place.path("assets")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command, which succeeds without a word of complaint.
    pub fn said(&self, arguments: &[&str]) -> String {
        let output = self.mvm(arguments).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What was there from the beginning is there, whatever else is.
    pub fn check_kept(&self) {
        assert!(self.said(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).contains("kept:1\n"));
        assert!(self.said(&["ps", "-a", "--format", "{{.Names}} {{.State}}\n"]).contains("kept created\n"));
        assert!(self.said(&["volume", "ls", "-q"]).lines().any(|name| name == "kept"));
        assert_eq!(fs::read_to_string(self.data().join("volumes/kept/data/file")).unwrap(), "content");
        self.said(&["inspect", "kept"]);
        self.said(&["system", "df", "-v"]);
        // Each image that is listed is whole.
        for image in self.said(&["images", "-aq"]).lines() {
            self.said(&["save", "-o", "/dev/null", image]);
        }
    }

    /// Removes what a user removes who has seen a command fail.
    pub fn prune(&self) {
        self.said(&["image", "prune", "-f"]);
        self.said(PRUNE_CONTAINERS);
        self.said(PRUNE_VOLUMES);
    }

    /// Takes back what a command has done if it has.
    pub fn undo(&self) {
        let output = self.mvm(&["rm", "-f", "new", "newer"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        self.said(&["rmi", "-f", "local:1", "REGISTRY/other:1"]);
        self.said(&["volume", "rm", "-f", "named"]);
        self.prune();
    }

    /// What there is: what all commands say of it, and all files.
    pub fn truth(&self) -> Truth {
        let df = "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}\n";
        let said = [
            &["images", "-a", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}\n"][..],
            &["ps", "-a", "--format", "{{.ID}} {{.Names}} {{.State}}\n"],
            &["volume", "ls", "-q"],
            &["system", "df", "--format", df],
        ];
        let said = said.iter().map(|arguments| self.said(arguments)).collect();
        let mut files = Vec::new();
        for (root, name) in [(self.data(), "data"), (self.place.path("run"), "run")] {
            list(&root, name, &mut files);
        }
        files.retain(|file| !file.starts_with("data/events.log"));
        files.sort();
        Truth { said, files }
    }

    /// Waits until no process has a file of this host's open, such as one that works for another one that was killed.
    pub fn wait_for_processes(&self) {
        let start = Instant::now();
        while let Some(process) = self.process() {
            let command = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{process} is left: {}",
                command.replace('\0', " ")
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn process(&self) -> Option<u32> {
        let data = self.place.path("data");
        let has_ours = |process: &u32| {
            let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
            files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(&data))
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        processes.find(|process| *process != std::process::id() && has_ours(process))
    }
}

/// All files below `root`, whose path begins with `name`.
fn list(root: &Path, name: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), &name, files);
        }
        files.push(name);
    }
}

/// A command that failed has said so in one line.
pub fn check_line(case: &Case, output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    let is_line = errors.starts_with("mvm: ") && errors.lines().count() == 1;
    assert!(is_line, "{}: {}", case.name, text(output));
}
