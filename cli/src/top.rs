//! `mvm top`.

use std::time::Duration;

use clap::Args;
use container::ProcessEntry;
use instance::{Registry, time};

use crate::process::ExitCode;
use crate::table::Table;
use crate::targets::{self, Failure, complain_of};
use crate::{complain, events, exit_code, print};

const EXAMPLES: &str = "\
Examples:
  mvm top web
  mvm exec web ps -o pid,rss,args     with options of ps, where the image has it";

/// Arguments of `mvm top`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct TopCommand {
    /// ID, beginning of an ID, or name
    #[arg(value_name = "NAME")]
    container: String,

    /// Options of ps: none but -ef
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    options: Vec<String>,
}

impl TopCommand {
    /// Lists the processes of a container.
    pub fn run(self) -> ExitCode {
        if !matches!(self.options.concat().trim_start_matches('-'), "" | "ef" | "aux") {
            complain(&format!(
                "{0}: mvm itself lists the processes, without options of ps: use `mvm exec {0} ps {1}`",
                self.container,
                self.options.join(" ")
            ));
            return exit_code::FAILURE.into();
        }
        match list(&self.container) {
            Ok(text) => print(text.as_bytes(), exit_code::SUCCESS),
            Err(failure) => complain_of(&self.container, &failure).into(),
        }
    }
}

fn list(word: &str) -> Result<String, Failure> {
    let vm = targets::find(&Registry::of_user(), word)?;
    match container::pod_directory(&vm.directory) {
        Some(pod) if targets::is_vm_paused(&pod) => return Err(Failure::PodPaused),
        None if targets::is_paused(&vm) => {
            return Err(Failure::Start("it is paused: `mvm resume` it first".into()));
        }
        _ => {}
    }
    let (processes, now) = container::processes(&vm.directory, vm.record.id.as_str())?;
    events::note_of(word, "top", &[]);
    Ok(table(&processes, now, time::since_1970()))
}

/// As `ps -ef` writes it, where the VM has run for `now` milliseconds and it is `today`.
fn table(processes: &[ProcessEntry], now: u64, today: Duration) -> String {
    let mut table = Table::new(&["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    for process in processes {
        let life = now.saturating_sub(process.started);
        let percent = process.cpu.saturating_mul(100).checked_div(life).unwrap_or(0);
        let started = today.saturating_sub(Duration::from_millis(life));
        let seconds = process.cpu / 1000;
        let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        table.row([
            if process.uid == 0 { "root".to_owned() } else { process.uid.to_string() },
            process.pid.to_string(),
            process.parent.to_string(),
            percent.min(99).to_string(),
            // Hours and minutes of 2024-02-29T12:34:56Z.
            time::rfc3339(started).get(11..16).unwrap_or_default().to_owned(),
            terminal(process.terminal),
            time,
            process.title.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect(),
        ]);
    }
    table.to_string()
}

/// The name of a terminal by the number of its device (makedev(3)).
pub fn terminal(device: u64) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_listed_as_by_ps() {
        let shell = ProcessEntry {
            pid: 7,
            parent: 1,
            uid: 0,
            terminal: 0x8801,
            cpu: 3_725_000,
            started: 1000,
            title: "sh -c\nx".into(),
        };
        let other = ProcessEntry { uid: 33, terminal: 0, cpu: 0, ..shell.clone() };
        let text = table(&[shell, other], 3_726_000, Duration::from_secs(1_709_210_096));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        assert_eq!(lines[1], ["root", "7", "1", "99", "11:32", "pts/1", "01:02:05", "sh", "-c?x"]);
        assert_eq!(lines[2][..6], ["33", "7", "1", "0", "11:32", "?"]);
    }
}
