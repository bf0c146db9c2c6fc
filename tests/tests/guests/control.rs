//! A running guest in the hands of other processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rstest::rstest;
use rustix::process::Signal;
use tests::{Boot, Guest, Terminal, run_mvm};

/// Waits for the power button as acpid does, and powers off.
const LISTENS: &str =
    "exec 3</dev/input/event0; echo waiting; dd bs=24 count=1 <&3 >/dev/null 2>&1; echo pressed; poweroff -f";
const DOES_NOT_LISTEN: &str = "echo waiting; sleep 1000";
/// Reads from its disk again and again, which takes no exit, and says so, which does. It reads so little at a time that
/// `stats` sees some of both.
const READS: &str = "echo waiting
    while :; do echo 3 >/proc/sys/vm/drop_caches; head -c 65536 /dev/vda >/dev/null; echo again; done";

fn start(name: &str, script: &str) -> Guest {
    let mut guest = Boot::new().flag("--name", name).script(script).start();
    guest.wait_for("waiting");
    guest
}

/// What mvm prints; it has to succeed.
fn mvm_says(arguments: &[&str]) -> String {
    let output = run_mvm(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The ID, the name and the state of the one that is called `name`, as `mvm ps` has them.
fn listed(name: &str) -> Option<Vec<String>> {
    let list = mvm_says(&["ps", "--format", "{{.ID}} {{.Names}} {{.State}}"]);
    let mut lines = list.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    lines.find(|words| words.get(1).is_some_and(|word| word == name))
}

/// The value of a key that stands on a line of its own in JSON.
fn json_value(json: &str, key: &str) -> String {
    let line =
        json.lines().find_map(|line| line.trim().strip_prefix(&format!("\"{key}\": ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {key} in {json}")).trim_end_matches(',').trim_matches('"').to_owned()
}

fn control_socket(name: &str) -> PathBuf {
    let list = mvm_says(&["ps", "--json"]);
    let object = list.split("  {").find(|object| object.contains(&format!("\"name\": \"{name}\"")));
    json_value(object.expect("the VM is listed"), "control_socket").into()
}

/// By a client that is not ours.
fn curl(socket: &Path, arguments: &[&str], resource: &str) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--max-time", "60", "--unix-socket"])
        .arg(socket)
        .args(arguments)
        .arg(format!("http://localhost{resource}"))
        .output()
        .expect("curl can be run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_guest_is_listed_until_it_is_stopped_by_its_power_button() {
    let guest = start("listed", LISTENS);
    let words = listed("listed").expect("it is listed");
    let pid = guest.pid().as_raw_nonzero().to_string();
    assert_eq!(words[2], "running");
    assert_eq!(mvm_says(&["inspect", "--format", "{{.State.Pid}}", "listed"]).trim(), pid);
    assert_eq!(mvm_says(&["stop", "--time", "100", "listed"]), "listed\n");
    guest.finish().expect_code(0).expect_line("pressed");
    assert_eq!(listed("listed"), None);
}

#[test]
fn a_guest_that_does_not_listen_is_killed_in_the_end() {
    let guest = start("deaf", DOES_NOT_LISTEN);
    let socket = control_socket("deaf");
    let id = listed("deaf").expect("it is listed")[0].clone();
    // By the beginning of its ID.
    assert_eq!(mvm_says(&["stop", "--time", "1", &id[..6]]), format!("{}\n", &id[..6]));
    guest.finish().expect_code(137);
    assert!(!socket.parent().expect("it has a directory").exists(), "its directory is left");
}

#[rstest]
#[case::at_once(&[], DOES_NOT_LISTEN, 137)]
#[case::by_its_button(&["--signal", "TERM"], LISTENS, 0)]
fn a_guest_is_killed(#[case] arguments: &[&str], #[case] script: &str, #[case] code: i32) {
    let guest = start("killed", script);
    mvm_says(&[&["kill", "killed"], arguments].concat());
    guest.finish().expect_code(code);
}

#[test]
fn a_paused_guest_does_nothing_until_it_is_resumed() {
    let mut guest = Boot::new().flag("--name", "paused").flag("--cpus", "2").start();
    guest.wait_for("init: started");
    mvm_says(&["pause", "paused"]);
    assert_eq!(listed("paused").expect("it is listed")[2], "paused");
    let socket = control_socket("paused");
    let count = || {
        let metrics = curl(&socket, &[], "/metrics");
        let lines = metrics.lines().filter(|line| line.starts_with("mvm_vcpu_port")).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    let before = count();
    guest.type_text("echo $((6 * 7)) is the answer\n");
    // Reading the counts takes many times what a guest that runs would need to answer; what it waits for is the
    // process's own clock of processor time, which stands still as well.
    let usage = mvm_says(&["stats", "--no-stream", "paused"]);
    let percent: f64 = usage
        .lines()
        .nth(1)
        .expect("a row")
        .split_whitespace()
        .nth(2)
        .expect("CPU")
        .trim_end_matches('%')
        .parse()
        .unwrap();
    assert!(percent < 50.0, "{usage}");
    assert_eq!(count(), before);
    mvm_says(&["resume", "paused"]);
    guest.wait_for("42 is the answer");
    assert_ne!(count(), before);
    mvm_says(&["pause", "paused"]);
    // It is resumed so that it can hear its button; its shell does not, and is killed.
    mvm_says(&["stop", "-t", "0", "paused"]);
    guest.finish().expect_code(137);
}

#[test]
fn what_a_busy_guest_uses_is_shown() {
    let guest = start("busy", READS);
    let usage = mvm_says(&["stats", "--no-stream", "--json", "busy"]);
    let number = |key: &str| -> f64 {
        let (_, rest) =
            usage.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key}: {usage}"));
        rest.split([',', '}']).next().expect("a value").parse().expect("a number")
    };
    assert!(number("cpu_percent") > 10.0, "{usage}");
    assert!(number("resident_bytes") > f64::from(8 << 20), "{usage}");
    assert!(number("resident_bytes") > number("shared_bytes"), "{usage}");
    assert!(number("disk_read_bytes_per_second") > 4096.0 && number("exits_per_second") > 0.0, "{usage}");
    mvm_says(&["kill", "busy"]);
    guest.finish().expect_code(137);
}

#[test]
fn curl_controls_a_guest() {
    let guest = start("curled", LISTENS);
    let socket = control_socket("curled");
    let info = curl(&socket, &[], "/");
    assert!(info.starts_with("HTTP/1.1 200 OK\r\n") && info.contains("\"state\":\"Running\""), "{info}");
    let patch = |body: &str| curl(&socket, &["--request", "PATCH", "--data", body], "/vm");
    assert!(patch("{\"state\":\"Paused\"}").starts_with("HTTP/1.1 204"));
    assert!(curl(&socket, &[], "/").contains("\"state\":\"Paused\""));
    assert!(patch("{\"state\":\"Resumed\"}").starts_with("HTTP/1.1 204"));
    let wrong = patch("{\"state\":\"Lost\"}");
    assert!(wrong.starts_with("HTTP/1.1 400") && wrong.contains("fault_message"), "{wrong}");
    // So long a body makes curl ask whether it may send it.
    let long = format!("{{\"state\":\"{}\"}}", "x".repeat(10_000));
    let refused =
        curl(&socket, &["--header", "Expect: 100-continue", "--request", "PATCH", "--data", &long], "/vm");
    assert!(refused.contains("100 Continue") && refused.contains("HTTP/1.1 400"), "{refused}");
    let chunked = ["--header", "Transfer-Encoding: chunked", "--request", "PATCH", "--data", "{}"];
    assert!(curl(&socket, &chunked, "/vm").contains("HTTP/1.1 411"));
    assert!(curl(&socket, &[], "/openapi.json").contains("\"openapi\": \"3.0.3\""));
    let metrics = curl(&socket, &[], "/metrics");
    for counter in [
        "block_rate_limit_waits_total{id=\"vda\"}",
        "block_queue_stalls_total{id=\"vdb\"}",
        "console_dropped_bytes_total{id=\"hub\"}",
        "rng_random_bytes_total{id=\"rng0\"}",
        "serial_output_bytes_total{id=\"ttyS0\"}",
    ] {
        assert!(metrics.contains(&format!("\nmvm_{counter} ")), "no {counter} in {metrics}");
    }
    let balloon = run_mvm(["balloon", "curled"]);
    assert_eq!(balloon.status.code(), Some(1));
    assert_eq!(text(&balloon.stderr), "mvm: curled: this VM has no balloon: boot it with --balloon\n");
    let action = "{\"action_type\":\"SendCtrlAltDel\"}";
    let pressed = curl(&socket, &["--request", "PUT", "--data", action], "/actions");
    assert!(pressed.starts_with("HTTP/1.1 204"), "{pressed}");
    guest.finish().expect_code(0).expect_line("pressed");
}

#[test]
fn a_name_is_had_by_one_guest() {
    let guest = start("taken", DOES_NOT_LISTEN);
    let outcome =
        Boot::new().flag("--name", "taken").run().expect_code(2).expect("the name taken is in use by");
    assert_eq!(outcome.errors.lines().count(), 1, "{outcome}");
    mvm_says(&["kill", "taken"]);
    guest.finish().expect_code(137);
    Boot::new().flag("--name", "taken").script("true").run().expect_code(0);
}

#[test]
fn what_a_killed_process_leaves_is_removed_by_the_next() {
    let guest = start("dead", DOES_NOT_LISTEN);
    let socket = control_socket("dead");
    let directory = socket.parent().expect("it has a directory");
    guest.signal(Signal::KILL);
    drop(guest.finish());
    assert!(directory.exists());
    let gone: Output = run_mvm(["kill", "dead"]);
    assert_eq!(gone.status.code(), Some(1), "{}", text(&gone.stderr));
    assert!(text(&gone.stderr).contains("there is no VM or container \"dead\""));
    assert_eq!(listed("dead"), None);
    assert!(!directory.exists(), "its directory is left");
}

#[test]
fn a_vm_whose_process_is_stopped_is_listed_and_killed_all_the_same() {
    let guest = start("stopped", DOES_NOT_LISTEN);
    guest.signal(Signal::STOP);
    let killed =
        Command::new("timeout").args(["100"]).arg(tests::mvm()).args(["kill", "stopped"]).output().unwrap();
    assert_eq!(text(&killed.stdout), "stopped\n", "{}", text(&killed.stderr));
    drop(guest.finish());
    assert_eq!(listed("stopped"), None);
}

#[test]
fn a_users_terminal_comes_to_a_running_guest_and_leaves_it() {
    let mut guest = Boot::new().flag("--name", "attached").start();
    guest.wait_for("init: started");
    let mut terminal = Terminal::run(&["console", "attached"]);
    // What was said before is shown, the latest of it.
    terminal.wait_for("init: started", 1);
    assert!(terminal.is_raw());
    terminal.press("echo $((6 * 7)) is the answer\r");
    terminal.wait_for("42 is the answer", 1);
    terminal.press("\x01d");
    terminal.wait_for("VM attached keeps running", 1);
    assert_eq!(terminal.finish().code(), Some(0));

    // The guest does go on, and saw the same.
    guest.wait_for("42 is the answer");
    guest.type_text("echo $((2 * 4)) is another\n");
    guest.wait_for("8 is another");
    let mut terminal = Terminal::run(&["console", "attached"]);
    terminal.wait_for("8 is another", 1);
    terminal.press("poweroff -f\r");
    terminal.wait_for("VM attached has ended", 1);
    assert_eq!(terminal.finish().code(), Some(0));
    guest.finish().expect_code(0);
}
