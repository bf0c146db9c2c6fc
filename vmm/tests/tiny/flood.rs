//! A guest that breaks rules as fast as it can, while mvm's standard error is not read.

use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vmm::ExitReason;

use super::machine::{Machine, WATCHDOG};

/// Says to the process that this test starts which guest it is to run.
const GUEST: &str = "MVM_TEST_FLOOD";

/// A guest that gives queue 0 a size that no queue can have, `$count` times; zero is 2^32 times, without an end that a
/// test would see.
macro_rules! flood {
    ($name:ident, $count:expr) => {
        guest!(
            $name,
            "
                map_virtio
                mov ebp, {COUNT}
                say 'r'
            2:
                accept_version_1
                store 0x30, 0
                store 0x38, 3
                store 0x44, 1
                store 0x70, 1 | 2 | 4 | 8
                dec ebp
                jnz 2b
                say '.'
                power_off
            ",
            COUNT = $count
        );
    };
}

flood!(floods, 2000);
flood!(floods_without_end, 0);

/// Not a test of its own: the process whose standard error the tests below hold. Its exit code says how the guest
/// ended.
#[test]
fn the_process_with_the_guest() {
    let Ok(guest) = std::env::var(GUEST) else { return };
    devices::log::init(tracing::level_filters::LevelFilter::WARN);
    let writer = devices::log::Writer::start().unwrap();
    let code = if guest == "endless" { floods_without_end() } else { floods() };
    let mut running = Machine::new(code).expect("there is KVM").run_with_pipe(false);
    running.wait_until_ready();
    println!("ready");
    if guest == "endless" {
        // The first one presses a button that this guest does not hear. Two within a second would be one request.
        running.signal(libc::SIGTERM);
        std::thread::sleep(Duration::from_millis(1500));
        running.signal(libc::SIGTERM);
    }
    let (reason, rest) = running.wait();
    devices::log::say(format_args!("the end of {guest}\x1b[2J"));
    drop(writer);
    let done = match reason {
        ExitReason::PowerOff => rest == b".",
        ExitReason::Signal(signal) => signal == libc::SIGTERM,
        _ => false,
    };
    std::process::exit(if done { 0 } else { 1 });
}

/// Starts that process with a pipe as its standard error that has no room left.
fn start(guest: &str) -> (Child, PipeReader) {
    let (reader, mut writer) = pipe().unwrap();
    let size = rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    writer.write_all(&vec![b'#'; size]).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tiny::flood::the_process_with_the_guest", "--nocapture"])
        .env(GUEST, guest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let stdout = child.stdout.as_mut().unwrap();
    while !said.ends_with(b"ready\n") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.extend(byte);
    }
    (child, reader)
}

/// The exit code.
fn wait(mut child: Child) -> Option<i32> {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(WATCHDOG.as_millis()).unwrap();
    // SAFETY: the pointer is that of one `pollfd`.
    if unsafe { libc::poll(&raw mut poll, 1, timeout) } != 1 {
        child.kill().unwrap();
        panic!("the VM does not end");
    }
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), None);
    status.code()
}

#[test]
fn a_guest_that_floods_the_log_runs_to_its_end_though_it_is_not_read() {
    if Machine::new(floods()).is_none() {
        return;
    }
    let (child, mut reader) = start("short");
    assert_eq!(wait(child), Some(0));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.trim_start_matches('#').is_empty(), "{text}");
}

#[test]
fn a_vm_that_floods_the_log_hears_signals_though_it_is_not_read() {
    if Machine::new(floods_without_end()).is_none() {
        return;
    }
    let (child, _reader) = start("endless");
    assert_eq!(wait(child), Some(0));
}

#[test]
fn who_reads_gets_a_few_lines_and_the_count_of_the_others() {
    if Machine::new(floods()).is_none() {
        return;
    }
    let (child, mut reader) = start("short");
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(wait(child), Some(0));
    let lines: Vec<_> = text.trim_start_matches('#').lines().collect();
    let rules = lines.iter().filter(|line| line.contains("invalid queue")).count();
    assert!((1..=12).contains(&rules), "{text}");
    assert!(lines.contains(&"mvm: the end of short\\u{1b}[2J"), "{text}");
    assert!(lines.last().is_some_and(|line| line.contains("more lines like those above")), "{text}");
}
