//! `mvm pod top`.

use std::time::Duration;

use clap::Args;
use container::ProcessEntry;
use instance::Registry;

use super::{containers, find};
use crate::process::ExitCode;
use crate::table::Table;
use crate::targets::{self, Failure, complain_of};
use crate::top::terminal;
use crate::{complain, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm pod top web
  mvm pod top web pid user args

Columns are podman's: args, comm, etime, hpid, hppid, pcpu, pid, ppid, time,
tty, user. IDs of processes are those that the pod's VM counts.";

/// Arguments of `mvm pod top`, which are those of `podman pod top`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct TopCommand {
    /// ID, beginning of an ID, or name
    #[arg(value_name = "POD")]
    pod: String,

    /// Columns to print, as in pid args [default: user pid ppid pcpu etime tty time args]
    #[arg(value_name = "COLUMN", value_parser = columns)]
    columns: Vec<Columns>,
}

/// Something about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    User,
    Pid,
    Parent,
    Cpu,
    Elapsed,
    Terminal,
    Time,
    Command,
    Name,
}

/// Columns with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Columns(Vec<Column>);

/// The names of the columns, and their headings: those of podman-top(1) that are known of a process.
const COLUMNS: [(&str, &str, Column); 11] = [
    ("user", "USER", Column::User),
    ("pid", "PID", Column::Pid),
    ("ppid", "PPID", Column::Parent),
    ("pcpu", "%CPU", Column::Cpu),
    ("etime", "ELAPSED", Column::Elapsed),
    ("tty", "TTY", Column::Terminal),
    ("time", "TIME", Column::Time),
    ("args", "COMMAND", Column::Command),
    ("comm", "COMMAND", Column::Name),
    ("hpid", "HPID", Column::Pid),
    ("hppid", "HPPID", Column::Parent),
];

/// Those without any that are named.
const DEFAULT: usize = 8;

fn columns(text: &str) -> Result<Columns, String> {
    let one = |word: &str| {
        let known = COLUMNS.iter().find(|(name, ..)| *name == word).map(|(_, _, column)| *column);
        known.ok_or_else(|| {
            let names: Vec<&str> = COLUMNS.iter().map(|(name, ..)| *name).collect();
            format!("unknown column {word:?}: use {}", names.join(", "))
        })
    };
    text.split(',').map(|word| one(word.trim())).collect::<Result<_, _>>().map(Columns)
}

impl TopCommand {
    /// Lists the processes of a pod's containers.
    pub fn run(self) -> ExitCode {
        match self.list() {
            Ok(text) => print(text.as_bytes(), exit_code::SUCCESS),
            Err(failure) => complain_of(&self.pod, &failure).into(),
        }
    }

    fn list(&self) -> Result<String, Failure> {
        let kept = find(&self.pod)?;
        if !kept.is_running {
            return Err(Failure::Pod("it does not run: `mvm pod start` it first".into()));
        }
        if super::list::is_paused(&kept) {
            return Err(Failure::Pod("it is paused: `mvm pod unpause` it first".into()));
        }
        let named: Vec<Column> = self.columns.iter().flat_map(|columns| columns.0.iter().copied()).collect();
        let columns = match named.is_empty() {
            true => COLUMNS.iter().take(DEFAULT).map(|(_, _, column)| *column).collect(),
            false => named,
        };
        let mut processes = Vec::new();
        for container in containers(&kept.entry.id)?.iter().filter(|container| container.is_running) {
            let vm = Registry::of_user().find(container.entry.id.as_str());
            // One that has ended meanwhile has none.
            let Ok(vm) = vm else { continue };
            match container::processes(&vm.directory, container.entry.id.as_str()) {
                Ok((of_container, now)) => processes.extend(of_container.into_iter().map(|one| (one, now))),
                Err(error) => complain(&targets::message(container.entry.id.as_str(), &error.into())),
            }
        }
        Ok(table(&columns, &processes))
    }
}

/// Processes, each with the milliseconds since the VM's boot at which it was seen.
fn table(columns: &[Column], processes: &[(ProcessEntry, u64)]) -> String {
    let heading =
        |column: &Column| COLUMNS.iter().find(|(.., known)| known == column).map_or("", |(_, text, _)| text);
    let mut table = Table::new(&columns.iter().map(heading).collect::<Vec<_>>());
    for (process, now) in processes {
        table.row(columns.iter().map(|column| cell(*column, process, *now)));
    }
    table.to_string()
}

fn cell(column: Column, process: &ProcessEntry, now: u64) -> String {
    let life = now.saturating_sub(process.started);
    let title = || process.title.chars().map(|letter| if letter.is_control() { '?' } else { letter });
    match column {
        Column::User if process.uid == 0 => "root".into(),
        Column::User => process.uid.to_string(),
        Column::Pid => process.pid.to_string(),
        Column::Parent => process.parent.to_string(),
        Column::Cpu => {
            let thousandths = process.cpu.saturating_mul(100_000).checked_div(life).unwrap_or(0);
            format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
        }
        Column::Elapsed => elapsed(Duration::from_millis(life)),
        Column::Terminal => terminal(process.terminal),
        Column::Time => elapsed(Duration::from_millis(process.cpu)),
        Column::Command => title().collect(),
        Column::Name => {
            let first: String = title().take_while(|letter| *letter != ' ').collect();
            first.rsplit('/').next().unwrap_or_default().to_owned()
        }
    }
}

/// A time as Go writes it, which podman shows: `1h2m3.5s`.
fn elapsed(time: Duration) -> String {
    let (seconds, milliseconds) = (time.as_secs(), time.subsec_millis());
    let mut text = match milliseconds {
        0 => format!("{}s", seconds % 60),
        milliseconds => {
            let fraction = format!("{milliseconds:03}");
            format!("{}.{}s", seconds % 60, fraction.trim_end_matches('0'))
        }
    };
    if seconds >= 60 {
        text = format!("{}m{text}", seconds / 60 % 60);
    }
    if seconds >= 3600 {
        text = format!("{}h{text}", seconds / 3600);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_podmans() {
        let process = ProcessEntry {
            pid: 7,
            parent: 1,
            uid: 33,
            terminal: 0x8801,
            cpu: 1_500,
            started: 1000,
            title: "/bin/sh -c\nx".into(),
        };
        let all = columns("user,pid,ppid,pcpu,etime,tty,time,args").unwrap().0;
        assert_eq!(all, COLUMNS.iter().take(DEFAULT).map(|(_, _, column)| *column).collect::<Vec<_>>());
        let text = table(&all, &[(process.clone(), 4_600_500)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["USER", "PID", "PPID", "%CPU", "ELAPSED", "TTY", "TIME", "COMMAND"]);
        assert_eq!(lines[1], ["33", "7", "1", "0.032", "1h16m39.5s", "pts/1", "1.5s", "/bin/sh", "-c?x"]);
        assert_eq!(
            table(&[Column::Name, Column::User], &[(ProcessEntry { uid: 0, ..process }, 0)]),
            "COMMAND   USER\nsh        root\n"
        );
        for bad in ["", "pid,", "capeff", "PID", "pid args"] {
            assert!(columns(bad).unwrap_err().contains("unknown column"), "{bad}");
        }
    }

    #[test]
    fn times_are_as_go_writes_them() {
        for (milliseconds, expected) in [
            (0, "0s"),
            (1, "0.001s"),
            (59_990, "59.99s"),
            (60_000, "1m0s"),
            (3_600_000, "1h0m0s"),
            (90_061_500, "25h1m1.5s"),
        ] {
            assert_eq!(elapsed(Duration::from_millis(milliseconds)), expected);
        }
    }
}
