//! Rows of options and commands that mvm runs beside podman or docker, and what has to be the same.
//!
//! Scripts with equal options share one container on each side, and are still told apart: what each of them prints,
//! and how it ends, is its own.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::containers::{IMAGE, output, stores, text, with_input};

/// A program that runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Mvm,
    Podman,
    Docker,
}

impl Tool {
    /// The program with its own options, or none where it is not installed.
    pub(super) fn command(self) -> Option<Command> {
        match self {
            Self::Mvm => Some(stores().mvm()),
            Self::Podman => stores().podman(),
            Self::Docker => docker(),
        }
    }

    /// `run` with what is the same for all rows.
    fn run(self, options: &[&str]) -> Option<Command> {
        let mut command = self.command()?;
        command.args(["run", "--rm", "--network", "none"]);
        if self == Self::Podman {
            command.args(["--log-driver", "none"]);
        }
        command.args(options).arg(IMAGE);
        Some(command)
    }

    /// How its own lines of errors begin.
    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Mvm => &["mvm: "],
            Self::Podman => &["Error: "],
            Self::Docker => &["docker: ", "Error: ", "Error response from daemon: ", "[FATAL tini "],
        }
    }

    /// Lines that are about its own workings or the kernel here, and not about the container.
    fn is_noise(self, line: &str) -> bool {
        let noise: &[&str] = match self {
            Self::Mvm => &[],
            Self::Podman => &["time="],
            Self::Docker => {
                &["time=", "ERRO[", "See 'docker run --help'", "WARNING: Your kernel does not support swap"]
            }
        };
        noise.iter().any(|start| line.starts_with(start)) || (self == Self::Docker && line.is_empty())
    }
}

/// One row of a table.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) options: &'static [&'static str],
    runs: Runs,
    input: &'static str,
    note: &'static str,
    explains: bool,
}

#[derive(Clone, Copy)]
enum Runs {
    /// In a container together with the other scripts that have these options.
    Script(&'static str),
    /// In a container of its own.
    Command(&'static [&'static str]),
    /// By a shell of this host, as [`host_shell`] says, in a directory that the rows share.
    Host(&'static str),
}

/// A row that runs a shell's script, which leaves alone what other scripts with these options need.
pub(super) const fn script(options: &'static [&'static str], script: &'static str) -> Row {
    Row { options, runs: Runs::Script(script), input: "", note: "", explains: false }
}

/// A row that runs a command as the first process of a container of its own.
pub(super) const fn command(options: &'static [&'static str], command: &'static [&'static str]) -> Row {
    Row { options, runs: Runs::Command(command), input: "", note: "", explains: false }
}

/// A row that runs a script of this host's shell, in which `$T` is the tool, `$I` the image, and `$W` waits until the
/// script that follows it succeeds. For [`compare_on_host`].
pub(super) const fn on_host(script: &'static str) -> Row {
    Row { options: &[], runs: Runs::Host(script), input: "", note: "", explains: false }
}

impl Row {
    pub(super) const fn input(mut self, input: &'static str) -> Self {
        self.input = input;
        self
    }

    /// What podman does in place of what docker does.
    pub(super) const fn podman(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    /// mvm says in one line why the container ended, where the others say nothing.
    pub(super) const fn mvm_explains(mut self) -> Self {
        self.explains = true;
        self
    }

    fn name(&self) -> String {
        let note = if self.note.is_empty() { String::new() } else { format!(" (podman {})", self.note) };
        match self.runs {
            Runs::Script(script) => format!("{:?} {script:?}{note}", self.options),
            Runs::Host(script) => format!("{script}{note}"),
            Runs::Command(command) => format!("{:?} {command:?}{note}", self.options),
        }
    }
}

/// What standard error is.
#[derive(Debug, PartialEq, Eq)]
enum Errors {
    Empty,
    /// The tool's own: one line of mvm's, whose text may differ from that of others. Of a script of the host's: any.
    Tool,
    /// The command's own text, byte for byte.
    Own(String),
}

/// How a row ended.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    code: Option<i32>,
    stdout: String,
    errors: Errors,
}

impl Seen {
    fn new(tool: Tool, on_host: bool, code: Option<i32>, stdout: &str, stderr: &str) -> Self {
        let lines: Vec<_> = stderr.split_inclusive('\n').filter(|line| !tool.is_noise(line.trim())).collect();
        let is_tools = |line: &&str| tool.prefixes().iter().any(|start| line.starts_with(start));
        let errors = if lines.is_empty() {
            Errors::Empty
        } else if on_host || lines.iter().all(is_tools) && (lines.len() == 1 || tool != Tool::Mvm) {
            Errors::Tool
        } else {
            Errors::Own(lines.concat())
        };
        Self { code, stdout: stdout.to_owned(), errors }
    }
}

/// Rows that share a container.
struct Group {
    options: &'static [&'static str],
    /// All of them are scripts without input, or there is one.
    rows: Vec<Row>,
}

fn groups(rows: &[Row]) -> Vec<Group> {
    let shares = |row: &Row| !matches!(row.runs, Runs::Command(_)) && row.input.is_empty();
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let joins =
            |group: &&mut Group| group.options == row.options && shares(row) && group.rows.iter().all(shares);
        match groups.iter_mut().find(joins) {
            Some(group) => group.rows.push(*row),
            None => groups.push(Group { options: row.options, rows: vec![*row] }),
        }
    }
    groups
}

/// Stands behind what each script of a group prints, with its exit code.
const END: &str = "[ends with ";

/// Each argument is a script. A terminal has one stream for both.
const EACH: &str = r#"for script; do sh -c "$script"; echo "[ends with $?]"; echo "[ends with 0]" >&2; done"#;
/// What a script of the host's waits for has to come.
const EACH_ON_HOST: &str =
    r#"for script; do timeout 150 sh -c "$script"; echo "[ends with $?]"; echo "[ends with 0]" >&2; done"#;
/// The code of a script that did not end.
const TIMED_OUT: Option<i32> = Some(124);
const EACH_ON_TERMINAL: &str = r#"for script; do sh -c "$script"; echo "[ends with $?]"; done"#;

/// The text before each end with the code there, and what comes after the last.
fn parts(stream: &str) -> (Vec<(&str, Option<i32>)>, &str) {
    let mut parts = Vec::new();
    let mut rest = stream;
    while let Some((before, after)) = rest.split_once(END) {
        let Some((code, after)) = after.split_once(']') else { break };
        parts.push((before, code.parse().ok()));
        rest = after.trim_start_matches('\r').strip_prefix('\n').unwrap_or(after);
    }
    (parts, rest)
}

/// Runs a group with one tool: how each row ended, and behind that of several the container itself.
fn run_group(tool: Tool, mut command: Command, group: &Group) -> Vec<Seen> {
    let on_terminal = group.options.iter().any(|option| ["-t", "-it"].contains(option));
    let on_host = group.rows.iter().any(|row| matches!(row.runs, Runs::Host(_)));
    let scripts = group.rows.iter().filter_map(|row| match row.runs {
        Runs::Script(script) | Runs::Host(script) => Some(script),
        Runs::Command(_) => None,
    });
    match &*group.rows {
        [Row { runs: Runs::Command(words), .. }] => command.args(*words),
        [Row { runs: Runs::Script(script) | Runs::Host(script), .. }] => command.args(["sh", "-c", script]),
        _ => {
            let each = match (on_host, on_terminal) {
                (true, _) => EACH_ON_HOST,
                (false, true) => EACH_ON_TERMINAL,
                (false, false) => EACH,
            };
            command.args(["sh", "-c", each, "sh"]).args(scripts)
        }
    };
    let input = group.rows.first().map_or("", |row| row.input);
    let Output { status, stdout, stderr } = with_input(command, input.as_bytes());
    // podman prints the ID of a command that is detached, which docker does not.
    let is_detached = tool == Tool::Podman && group.options.contains(&"-d");
    let (stdout, stderr) = (if is_detached { String::new() } else { text(&stdout) }, text(&stderr));
    if group.rows.len() == 1 {
        return vec![Seen::new(tool, on_host, status.code(), &stdout, &stderr)];
    }
    let ((outputs, output), (errors, error)) = (parts(&stdout), parts(&stderr));
    let of_row = |(index, (output, code)): (usize, &(&str, Option<i32>))| {
        let errors = errors.get(index).map_or("", |(text, _)| text);
        Seen::new(tool, on_host, *code, output, errors)
    };
    let mut seen: Vec<_> = outputs.iter().enumerate().map(of_row).collect();
    seen.push(Seen::new(tool, on_host, status.code(), output, error));
    seen
}

/// Runs the rows with mvm and with `peer`, and compares them.
pub(super) fn compare(peer: Tool, rows: &[Row]) {
    compare_with(peer, rows, Tool::run);
}

/// The same, where the commands follow what `begin` gives for a tool and a row's options.
pub(super) fn compare_with(peer: Tool, rows: &[Row], begin: impl Fn(Tool, &[&str]) -> Option<Command>) {
    if peer.command().is_none() {
        return eprintln!("skipped: there is no {peer:?}");
    }
    let groups = groups(rows);
    let (mut report, mut our_time, mut their_time) = (String::new(), Duration::ZERO, Duration::ZERO);
    let timed = |tool: Tool, group: &Group, time: &mut Duration| {
        let start = Instant::now();
        let seen = run_group(tool, begin(tool, group.options).unwrap(), group);
        *time += start.elapsed();
        seen
    };
    for group in &groups {
        let (ours, theirs) = (timed(Tool::Mvm, group, &mut our_time), timed(peer, group, &mut their_time));
        for index in 0..group.rows.len().max(ours.len()).max(theirs.len()) {
            let (row, ours, theirs) = (group.rows.get(index), ours.get(index), theirs.get(index));
            if !are_equal(row, ours, theirs) {
                let name = row.map_or_else(|| format!("{:?}: the end", group.options), Row::name);
                let _ = writeln!(report, "{name}:\n  mvm: {ours:?}\n  {peer:?}: {theirs:?}");
            }
        }
    }
    let (ours, theirs) = (our_time.as_secs_f64(), their_time.as_secs_f64());
    eprintln!("{} rows in {} runs: mvm {ours:.1} s, {peer:?} {theirs:.1} s", rows.len(), groups.len());
    assert!(report.is_empty(), "\n{report}");
}

fn are_equal(row: Option<&Row>, ours: Option<&Seen>, theirs: Option<&Seen>) -> bool {
    // Each row has to be run by both.
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return row.is_none() && ours == theirs };
    if row.is_some_and(|row| matches!(row.runs, Runs::Host(_))) && ours.code == TIMED_OUT {
        return false;
    }
    let explains = row.is_some_and(|row| row.explains) && ours.errors == Errors::Tool;
    let errors = if explains { &Errors::Empty } else { &ours.errors };
    (ours.code, &ours.stdout, errors) == (theirs.code, &theirs.stdout, &theirs.errors)
}

/// The docker client for the daemon of the tests, which is started once and has the image; or none.
fn docker() -> Option<Command> {
    static DAEMON: OnceLock<bool> = OnceLock::new();
    let directory = stores().directory.path().join("docker");
    let client = |directory: &Path| {
        // Another client than that of the daemon's package may stand before it.
        let program = Path::new("/usr/bin/docker");
        let mut command = Command::new(if program.exists() { program } else { Path::new("docker") });
        command.arg("--host").arg(format!("unix://{}", directory.join("socket").display()));
        command.arg("--config").arg(directory).current_dir(directory).stdin(Stdio::null());
        command
    };
    let is_there = DAEMON.get_or_init(|| {
        let version = Command::new("dockerd").arg("--version").output();
        if !version.is_ok_and(|output| output.status.success()) {
            return false;
        }
        std::fs::create_dir_all(&directory).unwrap();
        // It gives up where its containerd has not started within 15 s, as on a busy host.
        let log = || std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        let answers =
            || client(&directory).arg("version").output().is_ok_and(|output| output.status.success());
        assert!((0..3).any(|_| starts_dockerd(&directory, answers)), "dockerd does not start: {}", log());
        let saved = directory.join("image.tar");
        let made = stores().mvm().args(["save", "-o"]).arg(&saved).arg(IMAGE).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let loaded = client(&directory).args(["load", "-i"]).arg(&saved).output().unwrap();
        assert!(loaded.status.success(), "{}", text(&loaded.stderr));
        true
    });
    is_there.then(|| client(&directory))
}

/// Starts dockerd without networks; whether it `answers` before it ends.
fn starts_dockerd(directory: &Path, answers: impl Fn() -> bool) -> bool {
    let socket = directory.join("socket");
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "TERM",
        "dockerd",
        "--bridge=none",
        "--iptables=false",
        "--ip-forward=false",
    ]);
    command
        .args(["--ip-masq=false", "--storage-driver", "overlay2", "--data-root"])
        .arg(directory.join("data"));
    command.arg("--exec-root").arg(directory.join("run")).arg("--pidfile").arg(directory.join("pid"));
    command.arg("--host").arg(format!("unix://{}", socket.display()));
    let log = File::create(directory.join("log")).unwrap();
    command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // The daemon gets its signal when the thread that started it ends. The thread of a test ends with the test; this
    // one ends with the process.
    let daemon = std::thread::spawn(move || command.spawn().and_then(|mut daemon| daemon.wait()));
    let deadline = Instant::now() + Duration::from_secs(120);
    while UnixStream::connect(&socket).is_err() || !answers() {
        if daemon.is_finished() {
            return false;
        }
        assert!(Instant::now() < deadline, "dockerd does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A script of the host's shell, as [`on_host`] says: its output has to be the same.
pub(super) fn compare_scripts(peer: Tool, scripts: &[&str]) {
    if peer.command().is_none() {
        return eprintln!("skipped: there is no {peer:?}");
    }
    let mut report = String::new();
    for script in scripts {
        let [ours, theirs] = [Tool::Mvm, peer].map(|tool| run_script(tool, script));
        if (ours.status.code(), &ours.stdout) != (theirs.status.code(), &theirs.stdout) {
            for (tool, output) in [(Tool::Mvm, ours), (peer, theirs)] {
                let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
                let _ = writeln!(
                    report,
                    "{script}\n  {tool:?}: {:?} {stdout:?} {stderr:?}",
                    output.status.code()
                );
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// Runs the rows, which are scripts of this host's shell, with mvm and with `peer`, and compares them. They have one
/// directory, and one turn: what a row has made is there for those behind it.
pub(super) fn compare_on_host(peer: Tool, rows: &[Row]) {
    compare_with(peer, rows, |tool, _| {
        let place = stores().directory.path().join(format!("{tool:?}-files"));
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place).unwrap();
        let mut shell = host_shell(tool)?;
        shell.current_dir(place);
        Some(shell)
    });
}

fn run_script(tool: Tool, script: &str) -> Output {
    let mut shell = host_shell(tool).unwrap();
    shell.args(["sh", "-c", script]).stdin(Stdio::null());
    output(shell)
}

/// How many seconds all scripts of a table may take with one tool, less than [`super::containers::LONGEST`].
const HOST_LIMIT: &str = "550";

/// `$W`: waits until its argument, a script, succeeds.
const WAIT: &str = r#"end=$(($(date +%s) + 60))
until sh -c "$1"; do
    [ "$(date +%s)" -lt "$end" ] || { echo "after a minute still not: $1"; exit 1; }
    sleep 0.1
done
"#;

/// What a command of this host's follows that has `$T`, the tool, `$I`, the image, and `$W`. It runs in the stores'
/// directory.
fn host_shell(tool: Tool) -> Option<Command> {
    let command = tool.command()?;
    let directory = stores().directory.path();
    let (wrapper, wait) = (directory.join(format!("{tool:?}.sh")), directory.join("wait.sh"));
    let quoted = |word: &std::ffi::OsStr| format!(" '{}'", word.to_string_lossy());
    let words: String =
        std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
    // Its default log may be the journal, which is not here.
    let log = if tool == Tool::Podman { "--log-driver k8s-file" } else { "" };
    let start = format!("case $1 in run | create) w=$1; shift; set -- $w {log} \"$@\" ;; esac");
    std::fs::write(&wrapper, format!("{start}\nexec{words} \"$@\"\n")).unwrap();
    std::fs::write(&wait, WAIT).unwrap();
    let shell = |path: &Path| format!("sh {}", path.display());
    let mut command_line = Command::new("timeout");
    command_line.arg(HOST_LIMIT).current_dir(directory);
    command_line.env("T", shell(&wrapper)).env("I", IMAGE).env("W", shell(&wait));
    command_line.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Some(command_line)
}
