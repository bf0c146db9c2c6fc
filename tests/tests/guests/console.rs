//! The console: a pipe, a file, nothing, and a terminal; the serial port and virtio.

use std::fs;

use rstest::rstest;
use rustix::process::Signal;
use tempfile::TempDir;
use tests::{Boot, Terminal};

#[rstest]
fn input_reaches_the_guest_and_is_echoed(#[values("stdio", "virtio")] console: &str) {
    let mut guest = Boot::new().flag("--console", console).start();
    guest.wait_for("init: started");
    guest.type_text("echo $((6 * 7)) is the answer\n");
    guest.wait_for("42 is the answer");
    guest.type_text("poweroff -f\n");
    let outcome = guest.finish().expect_code(0);
    assert!(outcome.output.contains("echo $((6 * 7)) is the answer"), "no echo: {outcome}");
}

#[rstest]
fn long_input_that_comes_before_the_guest_listens_is_not_lost(#[values("stdio", "virtio")] console: &str) {
    let mut guest = Boot::new().flag("--console", console).start();
    // More than the 64 bytes of the serial port and the 256 of the virtio console, and less than what a terminal line
    // of the guest takes.
    let words: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    guest.type_text(&format!("echo {} | md5sum\npoweroff -f\n", words.join(" ")));
    // The same by the host's own hand.
    let expected = md5(&format!("{}\n", words.join(" ")));
    guest.finish().expect_code(0).expect(&expected);
}

fn md5(text: &str) -> String {
    let output =
        std::process::Command::new("sh").args(["-c", &format!("printf '%s' '{text}' | md5sum")]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()[..32].to_owned()
}

#[test]
fn a_console_file_is_appended_to() {
    let directory = TempDir::new().unwrap();
    let log = directory.path().join("console.log");
    fs::write(&log, "before\n").unwrap();
    let outcome = Boot::new().flag("--console", &log).script("echo logged").run().expect_code(0);
    assert_eq!(outcome.output, "");
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.starts_with("before\n") && log.contains("logged"), "{log}");
}

#[test]
fn without_a_console_the_guest_runs_in_silence() {
    let outcome = Boot::new().flag("--console", "off").script("echo not shown").run().expect_code(0);
    assert_eq!(outcome.output, "");
}

#[test]
fn a_vm_whose_output_has_no_reader_ends_as_a_filter_does() {
    let (mut command, _directory) = Boot::new().script("while :; do echo x; done").command();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stdin(std::process::Stdio::null()).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(128 + 13));
}

#[test]
fn on_a_terminal_control_c_goes_to_the_guest_and_control_a_x_stops_it() {
    let mut terminal = Terminal::boot(Boot::new());
    terminal.wait_for("init: started", 1);
    assert!(terminal.is_raw());
    terminal.press("trap 'echo trapped; trap - INT' INT; echo re\"\"ady; read line\r");
    terminal.wait_for("ready", 1);
    terminal.press("\x03");
    terminal.wait_for("trapped", 2);
    terminal.press("\x01h");
    terminal.wait_for("Ctrl-A x", 1);
    terminal.press("\x01x");
    assert_eq!(terminal.finish().code(), Some(0));
}

#[test]
fn the_terminal_is_restored_after_signals() {
    for signal in [Signal::TERM, Signal::ABORT, Signal::SEGV] {
        let mut terminal = Terminal::boot(Boot::new());
        terminal.wait_for("init: started", 1);
        assert!(terminal.is_raw());
        terminal.signal(signal);
        if signal == Signal::TERM {
            // The guest's shell does not listen to the power button.
            terminal.signal(Signal::HUP);
        }
        let status = terminal.finish();
        assert!(!status.success(), "{status}");
    }
}

#[test]
fn a_virtio_console_has_the_size_of_the_window_and_follows_it() {
    let mut terminal = Terminal::boot(Boot::new().flag("--console", "virtio"));
    terminal.wait_for("init: started", 1);
    terminal.press("tty; stty size\r");
    terminal.wait_for("/dev/hvc0", 1);
    terminal.wait_for("43 132", 1);
    // Not with a trap of WINCH: the shell may be about to wait for input when the signal comes, and then waits on.
    terminal.press(
        "echo re\"\"ady; while [ \"$(stty size)\" = '43 132' ]; do usleep 10000; done; stty size; exit\r",
    );
    terminal.wait_for("ready", 1);
    terminal.resize(100, 30);
    terminal.wait_for("30 100", 1);
    // The shell ends, and with it the guest.
    assert_eq!(terminal.finish().code(), Some(0));
}

#[test]
fn on_a_virtio_console_the_kernels_words_appear_once_from_the_first_to_the_last() {
    let script = "echo console: $(cat /sys/class/tty/console/active)";
    let boot = Boot::new().flag("--console", "virtio").append("loglevel=7").script(script);
    let outcome = boot.run().expect_code(0).expect("Linux version").expect("reboot: Power down");
    let mut lines: Vec<_> = outcome.output.lines().filter(|line| line.starts_with('[')).collect();
    let count = lines.len();
    assert!(count > 100, "{outcome}");
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), count, "{outcome}");
    outcome.expect_line("console: hvc0");
}

#[test]
fn a_guest_whose_virtio_console_is_not_read_continues() {
    let script = "dd if=/dev/zero bs=64k count=64 2>/dev/null | tr '\\0' x; echo; echo the latest";
    let (mut command, _directory) = Boot::new().flag("--console", "virtio").script(script).command();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let status = command.stdin(std::process::Stdio::null()).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    drop(command);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
    // Of a reader that never read, the pipe holds what came first.
    assert!(!text.contains("the latest") && text.len() <= 1 << 20, "{}", text.len());
}

#[test]
fn a_reader_that_keeps_up_misses_nothing_and_a_virtio_console_is_faster() {
    let mut took = Vec::new();
    for (console, kilobytes) in [("stdio", 8), ("virtio", 256)] {
        // To the console, from what the guest's clock says before to what it says after.
        let script = format!(
            "now() {{ cut -d' ' -f1 /proc/uptime | sed 's/[.]//; s/^0*//'; }}; stty -F /dev/console -opost; a=$(now); \
             dd if=/dev/zero bs=4k count={} 2>/dev/null | tr '\\0' x; b=$(now); \
             echo; echo took=$(((b - a) * 10))",
            kilobytes / 4
        );
        let outcome = Boot::new().flag("--console", console).script(&script).run().expect_code(0);
        let shown = outcome.output.matches('x').count();
        assert!(shown >= kilobytes << 10, "{shown} of {kilobytes} kB");
        assert!(!outcome.output.contains("dropped"));
        let rate = ((kilobytes as u64) << 10) * 1000 / outcome.number("took").max(1);
        eprintln!("--console {console}: {rate} bytes/s");
        took.push(rate);
    }
    assert!(took[1] > 2 * took[0], "{took:?} bytes/s");
}
