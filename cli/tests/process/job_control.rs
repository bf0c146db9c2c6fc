//! mvm under a shell that does job control.

use crate::terminal::Shell;
use crate::vm::{IDLE, Place};

const BOOT: &str = "$M boot --kernel $K --memory 32M --name vm --stop-timeout 0s";

#[test]
fn a_vm_that_is_started_in_the_background_runs_and_ends_there() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut shell = Shell::new(&place);
    shell.run(&format!("{BOOT} &"), "r");
    let said = shell.run("kill -TERM %1; wait %1; echo \"code=$?\"", "code=143");
    assert!(!said.contains("Stopped"), "{said}");
    assert!(place.is_clean());
}

#[test]
fn a_vm_that_goes_on_in_the_background_leaves_the_terminal_to_the_shell() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut shell = Shell::new(&place);
    shell.run(BOOT, "\n");
    shell.wait_for("r");
    shell.wait_until_raw();
    shell.stop();
    shell.run("bg", "&");
    // The shell's own modes while a command runs.
    shell.run("stty icanon isig echo; sh -c 'echo read; read line; echo got=$line'", "read\n");
    assert!(!shell.is_raw());
    shell.type_text("typed\n");
    shell.wait_for("got=typed");
    let said = shell.run("kill -TERM %1; wait %1; echo \"code=$?\"", "code=143");
    assert!(!said.contains("Stopped"), "{said}");
    assert!(place.is_clean());
}

#[test]
fn a_vm_that_comes_back_to_the_foreground_has_its_keyboard_again() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut shell = Shell::new(&place);
    shell.run(BOOT, "\n");
    shell.wait_for("r");
    shell.wait_until_raw();
    shell.stop();
    shell.run("fg", "\n");
    shell.wait_until_raw();
    shell.type_text("\x01x");
    shell.wait_for("\nmvm: stopped\n");
    shell.run("echo \"code=$?\"", "code=0");
}

#[test]
fn a_vm_of_the_background_gets_its_keyboard_with_fg() {
    let Some(place) = Place::new(IDLE) else { return };
    let mut shell = Shell::new(&place);
    shell.run(&format!("{BOOT} &"), "r");
    shell.run("fg", "\n");
    shell.wait_until_raw();
    shell.type_text("\x01x");
    shell.wait_for("\nmvm: stopped\n");
}

#[test]
fn an_attached_console_comes_back_to_the_foreground() {
    let Some(place) = Place::new(IDLE) else { return };
    let vm = place.start(&["--stop-timeout", "0s"]);
    let mut shell = Shell::new(&place);
    shell.run("$M console vm", "r");
    shell.wait_until_raw();
    shell.stop();
    shell.run("fg", "\n");
    shell.wait_until_raw();
    shell.type_text("\x01d");
    shell.wait_for("$ ");
    shell.run("echo \"code=$?\"", "code=0");
    drop(vm);
}
