//! Linux in the hands of a real GDB.

#![allow(clippy::indexing_slicing, reason = "the kernel's file is known")]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::{Boot, kernel};

/// A script for GDB, which has connected before it.
fn gdb(socket: &Path, commands: &[String]) -> Child {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set confirm off", "-ex", "set remotetimeout 100"]);
    gdb.arg("-ex").arg(format!("target remote {}", socket.display()));
    for command in commands {
        gdb.args(["-ex", command]);
    }
    gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("gdb can be run")
}

fn finish(gdb: Child) -> String {
    let Output { stdout, stderr, .. } = gdb.wait_with_output().expect("gdb is a child");
    format!("{}\n{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
}

fn interrupt(gdb: &Child) {
    kill_process(Pid::from_child(gdb), Signal::INT).expect("gdb runs");
}

/// Fails the test where GDB has not said all of `parts` in this order.
fn expect(said: &str, parts: &[&str]) {
    let mut rest = said;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("no {part:?} (in this order) in:\n{said}"));
        rest = rest.get(at + part.len()..).expect("it was found");
    }
}

fn commands(commands: &[&str]) -> Vec<String> {
    commands.iter().map(|command| (*command).to_owned()).collect()
}

/// Waits until the socket is there: mvm listens before it builds the VM.
fn wait_for_socket(path: &Path) {
    while !path.exists() {
        std::thread::yield_now();
    }
}

/// Where the kernel's text is linked, and where it is loaded.
const TEXT: u64 = 0xffff_ffff_8100_0000;
const TEXT_PHYSICAL: u64 = 0x100_0000;
/// How much of it is compared.
const LENGTH: usize = 0x1_0000;

/// The first part of the kernel's text, from the file: the segment of that physical address.
fn text() -> Vec<u8> {
    let file = std::fs::read(kernel("vmlinux")).unwrap();
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let headers = (64..).step_by(56).take(file[56].into());
    let offset =
        headers.filter(|at| number(at + 24) == TEXT_PHYSICAL).map(|at| number(at + 8)).next().unwrap();
    let offset = usize::try_from(offset).unwrap();
    file[offset..offset + LENGTH].to_vec()
}

/// Prints where the kernel has two of its functions. It is stripped, but knows them.
const SYMBOLS: &str = "for name in start_kernel __x64_sys_sethostname; do \
     echo $name=$(grep \" $name\\$\" /proc/kallsyms | cut -d' ' -f1); done";

/// The debug registers and the intercept of INT3 that a debugger's breakpoints need are not in the processor that the
/// lab emulates.
fn has_breakpoints() -> bool {
    let emulated = std::env::var_os("MVM_KVM_LAB").is_some();
    if emulated {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: the KVM lab's processor gives a guest's debugger no breakpoints"
        );
    }
    !emulated
}

#[test]
fn gdb_stops_steps_and_reads_a_running_linux_with_two_cpus() {
    let directory = TempDir::new().unwrap();
    let dump = directory.path().join("text");
    let socket = directory.path().join("gdb");
    let boot = Boot::new().flag("--cpus", "2").flag("--gdb", &socket);
    let mut guest =
        boot.script("echo counting; while [ ! -e /tmp/end ]; do read line && poweroff -f; done").start();
    wait_for_socket(&socket);
    let dump_text =
        format!("dump binary memory {} {TEXT_PHYSICAL:#x} {TEXT_PHYSICAL:#x}+{LENGTH}", dump.display());
    // There is no paging yet.
    let first = gdb(
        &socket,
        &commands(&[
            "info threads",
            "p/x $cr0 >> 31",
            &dump_text,
            "stepi",
            "x/1i $pc",
            "continue",
            "info threads",
        ]),
    );
    guest.wait_for("counting");
    interrupt(&first);
    let said = finish(first);
    expect(&said, &["vCPU 0, in use", "vCPU 1, not started", "= 0x0", "=> 0x", "SIGINT", "vCPU 1, "]);
    assert!(!said.rsplit("SIGINT").next().unwrap().contains("not started"), "{said}");
    assert!(std::fs::read(&dump).unwrap() == text(), "GDB read something else than what was loaded");
    // GDB has gone, and the guest goes on until it comes again.
    let second = gdb(
        &socket,
        &commands(&[
            &format!("p/x *(unsigned long *){TEXT:#x}"),
            "thread 1",
            "info registers rip cr3 gs_base efer",
            "x/4i $pc",
            "thread 2",
            "p $cr3 != 0",
            "stepi",
            "stepi",
            "p/x $efer & 0x500",
            "x/1xb 0",
            "detach",
        ]),
    );
    let said = finish(second);
    let word = format!("= {:#x}", u64::from_le_bytes(text()[..8].try_into().unwrap()));
    expect(&said, &[&word, "rip", "cr3", "gs_base", "=> 0x", "= 1", "= 0x500"]);
    expect(&said, &["Cannot access memory at address 0x0"]);
    guest.type_text("\n");
    guest.finish().expect_code(0);
}

#[test]
fn breakpoints_stop_the_kernel_from_its_first_function_on() {
    if !has_breakpoints() {
        return;
    }
    let symbols = Boot::new().script(&format!("{SYMBOLS}; poweroff -f")).run().expect_code(0);
    let [start, sethostname] =
        ["start_kernel", "__x64_sys_sethostname"].map(|name| symbols.value(name).to_owned());
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("gdb");
    let boot = Boot::new().flag("--cpus", "2").flag("--gdb", &socket);
    let guest = boot.script("hostname debugged; poweroff -f").start();
    wait_for_socket(&socket);
    let said = finish(gdb(
        &socket,
        &commands(&[
            // Before there are page tables for it.
            &format!("hbreak *0x{start}"),
            "continue",
            "x/4i $pc",
            "info registers",
            &format!("break *0x{sethostname}"),
            "continue",
            "info threads",
            "stepi",
            "p/x $pc",
            // The function calls others.
            "watch *(unsigned long *)($rsp - 8)",
            "continue",
            "delete",
            "continue",
        ]),
    ));
    expect(&said, &[&format!("Breakpoint 1, 0x{start}"), "rip", &format!("Breakpoint 2, 0x{sethostname}")]);
    expect(&said, &["Hardware watchpoint 3", "Old value", "New value", "exited normally"]);
    guest.finish().expect_code(0);
}
