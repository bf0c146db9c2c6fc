//! Commands that ask VMs, some of which do not answer.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::terminal::Shell;
use crate::vm::{IDLE, Place, Vm, text};

/// What each command may take, and some time for a machine that is busy.
const QUICK: Duration = Duration::from_secs(3 + 5);

#[test]
fn a_vm_whose_process_is_stopped_is_listed_as_not_responding_and_holds_nothing_up() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&[]);
    kill_process(vm.process(), Signal::STOP).unwrap();
    let run = |arguments: &[&str]| {
        let start = Instant::now();
        let output = place.mvm().args(arguments).output().unwrap();
        assert!(start.elapsed() < QUICK, "{arguments:?}: {:?}", start.elapsed());
        (output.status.code(), text(&output))
    };
    let (code, said) = run(&["ps"]);
    assert!(code == Some(0) && said.contains("not responding"), "{said}");
    let (_, said) = run(&["stats", "--no-stream"]);
    assert!(said.contains("not responding"), "{said}");
    // It goes on with what it was doing.
    kill_process(vm.process(), Signal::CONT).unwrap();
    let start = Instant::now();
    while run(&["ps"]).1.contains("not responding") {
        assert!(start.elapsed() < QUICK, "it does not go on");
    }
    kill_process(vm.process(), Signal::STOP).unwrap();
    let (code, said) = run(&["stop", "--time", "1", "vm"]);
    assert!(code == Some(0) && said.contains("mvm: vm: no answer, killed after"), "{said}");
}

/// Those that are known to be stopped are not waited for.
#[test]
fn any_number_of_stopped_vms_costs_a_list_less_than_a_deadline() {
    const VMS: usize = 8;
    // `targets::ANSWER`.
    const DEADLINE: Duration = Duration::from_secs(1);
    let Some(place) = Place::new(IDLE) else { return };
    let mut vms: Vec<_> =
        (0..VMS).map(|id| Vm(place.boot_named(&format!("vm{id}"), &[]).spawn().unwrap())).collect();
    vms.iter_mut().for_each(Vm::wait_until_ready);
    vms.iter().for_each(|vm| kill_process(vm.process(), Signal::STOP).unwrap());
    let start = Instant::now();
    let said = text_of(&place, &["ps"]);
    let took = start.elapsed();
    assert_eq!(said.matches("not responding").count(), VMS, "{said}");
    assert!(took < DEADLINE, "{took:?}");
}

#[test]
fn directories_are_for_their_user_whatever_the_umask() {
    let Some(place) = Place::new(IDLE) else { return };
    let boot = place.boot(&[]);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 777; exec \"$@\"", "sh"]).arg(boot.get_program()).args(boot.get_args());
    command.envs(boot.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut vm = Vm(command.spawn().unwrap());
    vm.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let of_all = place.path("mvm");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let directories = std::fs::read_dir(&of_all).unwrap().map(|entry| entry.unwrap().path());
    let modes: Vec<_> = directories.chain([of_all.clone()]).map(|path| mode(&path)).collect();
    assert_eq!(modes, [0o700; 3], "that of all, of the VM and of the names");
}

#[test]
fn stop_says_when_it_had_to_kill() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&[]);
    let output = place.mvm().args(["stop", "--time", "2", "vm"]).output().unwrap();
    assert_eq!(output.stdout, b"vm\n");
    assert!(text(&output).contains("mvm: vm: killed after 2 s"), "{}", text(&output));
    assert_eq!(vm.finish().0, Some(137));
}

#[test]
fn a_vm_is_found_in_the_runtime_directory_that_it_was_given() {
    let Some(place) = Place::new(IDLE) else { return };
    let elsewhere = place.path("elsewhere");
    let elsewhere = elsewhere.to_str().unwrap();
    let vm = place.start(&["--runtime-dir", elsewhere, "--stop-timeout", "0s"]);
    let ids =
        |arguments: &[&str]| text(&place.mvm().args(["ps", "--quiet"]).args(arguments).output().unwrap());
    assert_eq!((ids(&[]).lines().count(), ids(&["--runtime-dir", elsewhere]).lines().count()), (0, 1));
    vm.signal(Signal::TERM);
    assert_eq!(vm.finish().0, Some(143));
    assert_eq!(ids(&["--runtime-dir", elsewhere]), "");
}

#[test]
fn lists_of_a_runtime_directory_that_is_missing_are_empty_and_say_so() {
    let Some(place) = Place::new(IDLE) else { return };
    let missing = place.path("missing");
    let missing = missing.to_str().unwrap();
    for arguments in [&["ps"][..], &["ps", "--quiet"], &["stats", "--no-stream"]] {
        let output = place.mvm().args(arguments).args(["--runtime-dir", missing]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        let expected = format!("mvm: --runtime-dir {missing} does not exist: no VM was started there\n");
        assert_eq!(errors, expected, "{arguments:?}");
    }
    // Without the option, this user has just not started a VM yet.
    assert_eq!(place.mvm().arg("ps").output().unwrap().stderr, b"");
}

#[test]
fn a_vm_runs_without_a_directory_and_the_message_says_how_where_there_can_be_none() {
    let Some(place) = Place::new(IDLE) else { return };
    let output = place.boot(&["--runtime-dir", "/proc/no/such"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output).contains("--runtime-dir none"), "{}", text(&output));
    let vm = place.start(&["--runtime-dir", "none", "--stop-timeout", "0s"]);
    assert!(place.is_clean());
    vm.signal(Signal::TERM);
    assert_eq!(vm.finish().0, Some(143));
}

#[test]
fn stop_waits_as_long_as_the_vms_own_stop_timeout_says() {
    let Some(place) = Place::new(IDLE) else { return };
    for (own, given, least) in [
        ("1500ms", &[][..], Duration::from_millis(1500)),
        ("1h", &["--time", "2"][..], Duration::from_secs(2)),
        ("1h", &["--time", "0"][..], Duration::ZERO),
    ] {
        let vm = place.start(&["--stop-timeout", own]);
        let start = Instant::now();
        let output = place.mvm().args(["stop", "vm"]).args(given).output().unwrap();
        let took = start.elapsed();
        assert!(text(&output).contains("killed after"), "{own}: {}", text(&output));
        assert!(took >= least && took < least + QUICK, "{own} {given:?}: {took:?}");
        assert_eq!(vm.finish().0, Some(137), "{own}");
    }
}

/// Sets exit code 4 by port 0x521 and resets by the keyboard controller.
const ENDS_WITH_4: &[u8] = &[0x66, 0xba, 0x21, 0x05, 0xb0, 4, 0xee, 0xb0, 0xfe, 0xe6, 0x64, 0xf4];
/// An undefined instruction, with no handler for it.
const CRASHES: &[u8] = &[0x0f, 0x0b];

#[test]
fn a_guests_own_code_and_a_crash_with_the_same_code_are_told_apart_on_standard_error() {
    for (code, said) in [
        (ENDS_WITH_4, "mvm: the guest ended with exit code 4\n"),
        (CRASHES, "mvm: the guest crashed: triple fault"),
    ] {
        let Some(place) = Place::new(code) else { return };
        let output = place.boot(&[]).output().unwrap();
        let errors = text(&output);
        assert!(output.status.code() == Some(4) && errors.contains(said), "{said}: {errors}");
        assert_eq!(errors.contains("exit code"), code == ENDS_WITH_4, "{errors}");
    }
}

#[test]
fn a_vm_whose_directory_is_removed_says_so_at_once_and_ends_by_signals() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut vm = place.start(&["--stop-timeout", "0s"]);
    std::fs::remove_dir_all(place.path("mvm")).unwrap();
    let said = vm.wait_for("--runtime-dir DIR\n");
    assert!(said.contains("was removed: the VM runs on") && said.contains("`kill "), "{said}");
    vm.signal(Signal::TERM);
    let (code, errors) = vm.finish();
    assert_eq!(code, Some(143), "{errors}");
    assert!(!errors.contains("was removed"), "said twice: {errors}");
}

#[test]
fn a_table_fits_the_terminal_and_a_file_gets_all_of_it() {
    let Some(place) = Place::new(IDLE) else { return };
    let name = "n".repeat(63);
    let mut shell = Shell::new(&place);
    shell.run("N=$(printf 'n%.0s' {1..63})", "$ ");
    shell.run("$M boot --kernel $K --name $N --memory 32M </dev/null &", "r");
    shell.run("stty cols 80", "$ ");
    let said = shell.run("$M ps; echo \"code=$?\"", "code=0");
    assert!(said.contains("n…   Up ") && !said.contains(&name), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let said = shell.run("$M ps --no-trunc; echo \"code=$?\"", "code=0");
    assert!(said.contains(&name), "{said}");
    let said = text_of(&place, &["ps"]);
    assert!(said.contains(&name) && said.contains("COMMAND"), "{said}");
    let said = shell.run("$M stats --no-stream; echo \"code=$?\"", "code=0");
    assert!(said.contains("nnnnnnnnnnn…") && !said.contains(&name), "{said}");
    // Not what is typed, which the terminal shows too: the VM has ended then.
    shell.run("$M kill $N; wait; echo \"code=$?\"", "code=0");
}

/// What mvm prints to a pipe.
fn text_of(place: &Place, arguments: &[&str]) -> String {
    String::from_utf8(place.mvm().args(arguments).output().unwrap().stdout).unwrap()
}
