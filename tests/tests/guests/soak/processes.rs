//! The processes of a test, however they were started: this process adopts those whose parents have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The user's command.
    Command,
    Worker,
    Keeper,
    Vm,
    Virtiofsd,
    Passt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub kind: Kind,
}

/// Children that somebody waits for.
static AWAITED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Starts a child that is waited for.
pub fn spawn(command: &mut Command) -> Child {
    static ADOPTS: Once = Once::new();
    ADOPTS.call_once(|| set_child_subreaper(Some(getpid())).unwrap());
    // Before another thread looks.
    let mut awaited = AWAITED.lock().unwrap();
    let child = command.spawn().unwrap();
    awaited.insert(child.id());
    child
}

struct Stat {
    parent: i32,
    name: String,
    has_ended: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    Some(Stat { parent: fields.next()?.parse().ok()?, name: name.to_owned(), has_ended })
}

/// All processes of mvm that live below this one.
pub fn all() -> Vec<Process> {
    let own = getpid().as_raw_nonzero().get();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let stats: BTreeMap<i32, Stat> = pids.filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let mut found = Vec::new();
    for (&pid, stat) in &stats {
        let mut above = stat.parent;
        while above != own && above > 1 {
            above = stats.get(&above).map_or(0, |stat| stat.parent);
        }
        if above != own {
            continue;
        }
        let is_awaited = || AWAITED.lock().unwrap().contains(&u32::try_from(pid).unwrap());
        if stat.has_ended {
            if stat.parent == own && !is_awaited() {
                // As the host's init does.
                let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
            }
            continue;
        }
        if let Some(kind) = kind(pid, stat, own, &is_awaited) {
            found.push(Process { pid, parent: stat.parent, kind });
        }
    }
    found
}

fn kind(pid: i32, stat: &Stat, own: i32, is_awaited: &dyn Fn() -> bool) -> Option<Kind> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    let program = String::from_utf8_lossy(words.next()?).into_owned();
    let has_vcpu = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).ok();
        threads.filter_map(name).any(|name| name.starts_with("vcpu"))
    };
    match program.rsplit('/').next()? {
        _ if stat.name.starts_with("passt") => Some(Kind::Passt),
        "virtiofsd" => Some(Kind::Virtiofsd),
        "mvm" if words.next() == Some(b"worker") => Some(Kind::Worker),
        "mvm" if has_vcpu() => Some(Kind::Vm),
        "mvm" if stat.parent == own && is_awaited() => Some(Kind::Command),
        "mvm" => Some(Kind::Keeper),
        _ => None,
    }
}

/// Kills a process, which may have ended.
pub fn kill(process: &Process) {
    signal(process.pid, Signal::KILL);
}

pub fn signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Waits until `is_so` of all processes, and returns them.
pub fn wait_until(what: &str, is_so: impl Fn(&[Process]) -> bool) -> Vec<Process> {
    let start = Instant::now();
    loop {
        let all = all();
        if is_so(&all) {
            return all;
        }
        assert!(start.elapsed() < Duration::from_secs(90), "{what}: {all:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
