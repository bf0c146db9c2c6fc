//! The console: a pipe, a file, nothing, and a terminal.

use std::fs;

use rustix::process::Signal;
use tempfile::TempDir;
use tests::{Boot, Terminal};

#[test]
fn input_reaches_the_guest_and_is_echoed() {
    let mut guest = Boot::new().start();
    guest.wait_for("init: started");
    guest.type_text("echo $((6 * 7)) is the answer\n");
    guest.wait_for("42 is the answer");
    guest.type_text("poweroff -f\n");
    let outcome = guest.finish().expect_code(0);
    assert!(outcome.output.contains("echo $((6 * 7)) is the answer"), "no echo: {outcome}");
}

#[test]
fn long_input_that_comes_before_the_guest_listens_is_not_lost() {
    let mut guest = Boot::new().start();
    // More than the serial port's 64 bytes, and less than what a terminal line of the guest takes.
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
    let outcome = Boot::new().flag("--console", "off").script("echo nobody hears").run().expect_code(0);
    assert_eq!(outcome.output, "");
}

#[test]
fn a_closed_output_does_not_stop_the_guest() {
    let (mut command, _directory) = Boot::new().script("echo x; poweroff -f").command();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stdin(std::process::Stdio::null()).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
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
