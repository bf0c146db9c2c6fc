//! What processes a container has.

use std::fs;

use agent_protocol::{MAX_PROCESSES, MAX_TITLE, ProcessEntry};
use rustix::param::clock_ticks_per_second;

/// The processes with these IDs, as far as they still run.
pub fn list(pids: &str) -> Vec<ProcessEntry> {
    pids.lines().filter_map(|pid| entry(pid.trim().parse().ok()?)).take(MAX_PROCESSES).collect()
}

fn entry(pid: u32) -> Option<ProcessEntry> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
    parse(pid, &stat, uid.unwrap_or(0), &title)
}

/// The process whose line of proc_pid_stat(5) is `stat`; its name may have anything in it.
fn parse(pid: u32, stat: &str, uid: u32, title: &[u8]) -> Option<ProcessEntry> {
    let (front, behind) = stat.rsplit_once(')')?;
    let name = front.split_once('(').map_or("", |(_, name)| name);
    let fields: Vec<&str> = behind.split_ascii_whitespace().collect();
    // The first of these is field 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let per_second = clock_ticks_per_second().max(1);
    let milliseconds = |ticks: u64| ticks.saturating_mul(1000) / per_second;
    let words: Vec<_> = title.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let mut title = words.join(" ").trim_end().to_owned();
    if title.is_empty() {
        title = format!("[{name}]");
    }
    title.truncate(title.floor_char_boundary(MAX_TITLE));
    Some(ProcessEntry {
        pid,
        parent: u32::try_from(number(4)?).ok()?,
        uid,
        terminal: number(7)?,
        cpu: milliseconds(number(14)?.saturating_add(number(15)?)),
        started: milliseconds(number(22)?),
        title,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let fields = "S 1 2 3 34816 -1 4 5 6 7 8 150 50 11 12 20 0 1 0 4700 99";
        let entry = parse(12, &format!("12 (a) b (c) {fields}"), 5, b"sleep\x001000\0").unwrap();
        assert_eq!((entry.pid, entry.parent, entry.uid, entry.terminal), (12, 1, 5, 34816));
        assert_eq!((entry.cpu, entry.started, &*entry.title), (2000, 47_000, "sleep 1000"));
        assert_eq!(parse(12, &format!("12 (x) {fields}"), 0, b"").unwrap().title, "[x]");
        assert_eq!(parse(12, &format!("12 (x) {fields}"), 0, &[b'y'; 9999]).unwrap().title.len(), MAX_TITLE);
        assert_eq!(parse(12, "12 (x) S 1", 0, b""), None);
        assert_eq!(parse(12, "", 0, b""), None);
    }

    #[test]
    fn those_that_run_are_listed() {
        let own = list(&format!("{}\n999999999\nx\n", std::process::id()));
        assert_eq!(own.len(), 1);
        assert!(!own[0].title.is_empty());
    }
}
