//! Whether helpers have confined themselves, as the host's kernel says.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a helper that says it is ready may take until it has its filter.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked at. The kernel does not tell when it is there.
const PAUSE: Duration = Duration::from_millis(2);

/// A process of a helper.
struct Process {
    id: u32,
    parent: u32,
    group: u32,
}

/// Checks that of the process groups of helpers, `leaders`, each process that works has a filter of system calls
/// (seccomp(2)), which it may be about to get. One that has started another one and waits for it needs none.
///
/// # Errors
///
/// What has none, in words.
pub(crate) fn check_helpers(leaders: &[u32]) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processes = processes(leaders);
        let lacking: Vec<_> = leaders.iter().filter_map(|leader| unfiltered(*leader, &processes)).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(lacking.join(", "));
        }
        sleep(PAUSE);
    }
}

/// What is wrong with the group of `leader`, if anything.
fn unfiltered(leader: u32, processes: &[Process]) -> Option<String> {
    let of_group = || processes.iter().filter(|process| process.group == leader);
    let works = |process: &&Process| !of_group().any(|other| other.parent == process.id);
    let mut working = of_group().filter(works).peekable();
    if working.peek().is_none() {
        return Some(format!("process {leader}, which serves a device, has ended"));
    }
    let process = working.find(|process| !has_filter(process.id))?;
    let name = fs::read_to_string(format!("/proc/{}/comm", process.id)).unwrap_or_default();
    Some(format!("{} (process {}) has no filter of system calls", name.trim().escape_debug(), process.id))
}

fn has_filter(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// The processes of some groups.
fn processes(groups: &[u32]) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let read = |id| parse(id, &fs::read_to_string(format!("/proc/{id}/stat")).ok()?);
    ids.filter_map(read).filter(|process| groups.contains(&process.group)).collect()
}

/// A process by its line of proc_pid_stat(5), whose second field may have anything in its brackets. One that has ended
/// does not count.
fn parse(id: u32, stat: &str) -> Option<Process> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (!matches!(state, "Z" | "X")).then_some(Process { id, parent, group })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// A process that leads a group, and is about to have a filter, or a child with one.
    fn group(filtered: bool, has_child: bool) -> std::process::Child {
        let script = match has_child {
            true => "sleep 1000 & echo; wait",
            false => "echo; exec sleep 1000",
        };
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).process_group(0);
        let filter = move || {
            rustix::thread::set_no_new_privs(true)?;
            // All calls are allowed, so that the shell works.
            let program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 }];
            let program = libc::sock_fprog { len: 1, filter: program.as_ptr().cast_mut() };
            // SAFETY: the program outlives the call.
            match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }
            {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        if filtered {
            // SAFETY: what runs before exec makes system calls and nothing else.
            unsafe { command.pre_exec(filter) };
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap().take(1)).read_line(&mut line).unwrap();
        child
    }

    fn end(mut child: std::process::Child) {
        rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn one_without_a_filter_is_named() {
        let free = group(false, false);
        let problem = check_helpers(&[free.id()]).unwrap_err();
        assert!(
            problem.ends_with(&format!("(process {}) has no filter of system calls", free.id())),
            "{problem}"
        );
        end(free);
        let parent = group(false, true);
        assert!(check_helpers(&[parent.id()]).is_err());
        end(parent);
    }

    #[test]
    fn those_with_one_are_good_and_one_that_has_ended_is_not() {
        let (alone, parent) = (group(true, false), group(true, true));
        assert_eq!(check_helpers(&[alone.id(), parent.id()]), Ok(()));
        let id = alone.id();
        end(alone);
        assert!(check_helpers(&[id, parent.id()]).unwrap_err().contains("has ended"));
        end(parent);
        assert_eq!(check_helpers(&[]), Ok(()));
    }

    #[test]
    fn a_line_of_a_process_is_read_whatever_its_name() {
        let process = parse(7, "7 (a) b) (c)) S 1 5 5 0").unwrap();
        assert_eq!((process.id, process.parent, process.group), (7, 1, 5));
        assert!(
            parse(7, "7 (x) Z 1 5 5").is_none() && parse(7, "7 (x) S").is_none() && parse(7, "").is_none()
        );
    }
}
