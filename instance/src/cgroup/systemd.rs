//! What a user's systemd says of the control groups of its units. It does not mark those that it leaves to their
//! processes, as the system's systemd does.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long systemctl(1) may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the user's systemd leaves the group of `unit` to its processes: `Delegate=` of systemd.resource-control(5).
pub(super) fn delegates(unit: &str) -> bool {
    let mut command = Command::new("systemctl");
    command.args(["--user", "show", "--property=Delegate", "--value", "--", unit]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let said = first_word(&mut child, Instant::now() + PATIENCE);
    let _ = child.kill();
    let _ = child.wait();
    said == "yes"
}

/// The unit of a user's systemd whose group `group` is.
pub(super) fn unit_of(group: &Path) -> Option<&str> {
    let is_users = |name: &str| name.starts_with("user@") && name.ends_with(".service");
    let above = group.parent()?;
    above.components().filter_map(|name| name.as_os_str().to_str()).find(|name| is_users(name))?;
    let name = group.file_name()?.to_str()?;
    // It begins with this where a file of the kernel's could have the same name.
    let name = name.strip_prefix('_').unwrap_or(name);
    (name.ends_with(".scope") || name.ends_with(".service")).then_some(name)
}

/// What `child` writes until `deadline`, up to a few bytes.
fn first_word(child: &mut Child, deadline: Instant) -> String {
    let Some(mut output) = child.stdout.take() else { return String::new() };
    let mut word = Vec::new();
    while word.len() < 16 {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        let ready = poll(&mut [PollFd::new(&output, PollFlags::IN)], left.as_ref());
        let mut bytes = [0; 16];
        match ready.map(|count| if count > 0 { output.read(&mut bytes) } else { Ok(0) }) {
            Ok(Ok(count @ 1..)) => word.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            Err(rustix::io::Errno::INTR) => {}
            _ => break,
        }
    }
    String::from_utf8_lossy(&word).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("user.slice/user-7.slice/user@7.service/app.slice/box.scope", Some("box.scope"))]
    #[case("user.slice/user-7.slice/user@7.service/app.slice/_box.service", Some("box.service"))]
    #[case("user.slice/user-7.slice/user@7.service/app.slice", None)]
    #[case("user.slice/user-7.slice/user@7.service", None)]
    #[case("user.slice/user-7.slice/session-1.scope", None)]
    #[case("system.slice/web.service", None)]
    fn units_are_those_of_a_users_systemd(#[case] group: &str, #[case] unit: Option<&str>) {
        assert_eq!(unit_of(&Path::new("/sys/fs/cgroup").join(group)), unit);
    }

    #[rstest]
    #[case("echo yes", "yes")]
    #[case("printf 'y'; printf 'es\\n'", "yes")]
    #[case("exit 1", "")]
    #[case("yes yes", "yes\nyes\nyes\nyes")]
    #[case("exec sleep 1000", "")]
    fn what_does_not_answer_is_not_waited_for(#[case] script: &str, #[case] expected: &str) {
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        assert_eq!(first_word(&mut child, Instant::now() + Duration::from_millis(300)), expected);
        let _ = child.kill();
        child.wait().unwrap();
    }
}
