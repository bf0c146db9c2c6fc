//! Guests in the hands of a real GDB.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use vmm::{ExitReason, GdbConfig};

use super::image::LOAD_ADDRESS;
use super::machine::{Machine, Running};

/// Where guests count.
const COUNTER: u64 = 0x40_0000;

/// A guest that waits for GDB; `None`, with the reason printed, where one of them is not available.
fn start(machine: Option<Machine>) -> Option<(Running, PathBuf)> {
    let mut machine = machine?;
    if let Err(error) = Command::new("gdb").arg("--version").output() {
        let _ = writeln!(io::stderr(), "skipped: no gdb ({error}); tools/need gdb installs it");
        return None;
    }
    let socket = machine.path("gdb");
    machine.config.gdb = Some(GdbConfig::Unix(socket.clone()));
    Some((machine.run_with_pipe(false), socket))
}

/// What not every KVM gives to a debugger.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    /// INT3 that is seen, and watchpoints. A KVM that interprets guests has neither; the processor that QEMU emulates
    /// hands a nested guest its INT3 in spite of the hypervisor's intercept, and loads no debug registers for it.
    Hardware,
    /// Breakpoints in debug registers, which a KVM that interprets looks at.
    DebugRegisters,
}

/// Whether they are there; if not, it is said.
fn there_is(needs: Needs) -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let interprets = !cpuinfo.split_whitespace().any(|word| word == "vmx" || word == "svm");
    let emulated = std::env::var_os("MVM_KVM_LAB").is_some();
    let missing = emulated || needs == Needs::Hardware && interprets;
    if missing {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        let _ = writeln!(
            io::stderr(),
            "skipped {name}: this processor gives a guest's debugger no such breakpoints"
        );
    }
    !missing
}

/// GDB with `commands`, after it has connected.
fn gdb(socket: &std::path::Path, commands: &[&str]) -> Child {
    let mut gdb = Command::new("gdb");
    // A guest that answers no more ends the test by GDB's own limit.
    gdb.args(["-nx", "-batch", "-ex", "set confirm off", "-ex", "set remotetimeout 60"]);
    gdb.arg("-ex").arg(format!("target remote {}", socket.display()));
    for command in commands {
        gdb.args(["-ex", command]);
    }
    gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(gdb: Child) -> String {
    let Output { stdout, stderr, .. } = gdb.wait_with_output().unwrap();
    format!("{}\n{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
}

/// What GDB says to `commands`.
fn run(socket: &std::path::Path, commands: &[&str]) -> String {
    finish(gdb(socket, commands))
}

/// Fails the test where GDB has not said all of `parts` in this order.
fn expect(said: &str, parts: &[&str]) {
    let mut rest = said;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("no {part:?} (in this order) in:\n{said}") };
        rest = &rest[at + part.len()..];
    }
}

fn stop(running: Running) {
    running.force(libc::SIGTERM);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGTERM));
}

// From LOAD_ADDRESS + 0x100 on: INC at 0, MOV at 3, JMP at 11.
guest!(
    debugged,
    "
        xor ebx, ebx
        mov rcx, 0x1122334455667788
        say 'r'
        jmp 2f
    .balign 0x100
    2:
        inc rbx
        mov [{COUNTER}], rbx
        jmp 2b
    ",
    COUNTER = COUNTER
);

/// The same as numbers for GDB.
const INC: &str = "0x100100";
const MOV: &str = "0x100103";
const JMP: &str = "0x10010b";

#[test]
fn a_guest_waits_for_gdb_at_its_first_instruction_and_goes_on_when_gdb_leaves() {
    let Some((mut running, socket)) = start(Machine::new(debugged())) else { return };
    let said = run(&socket, &["p/x $pc", "x/1i $pc", "p/x $cs", "p/x $cr0", "p/x $efer", "detach"]);
    expect(
        &said,
        &[&format!("= {LOAD_ADDRESS:#x}"), "xor    %ebx,%ebx", "= 0x10", "= 0x80000011", "= 0x500"],
    );
    running.wait_until_ready();
    running.read_changed(COUNTER);
    stop(running);
    assert!(!socket.exists());
}

#[test]
fn the_place_of_the_guest_is_what_this_test_thinks() {
    assert_eq!(INC, format!("{:#x}", LOAD_ADDRESS + 0x100));
    assert_eq!(MOV, format!("{:#x}", LOAD_ADDRESS + 0x103));
    assert_eq!(JMP, format!("{:#x}", LOAD_ADDRESS + 0x10b));
}

#[test]
fn software_breakpoints_stop_where_they_are_and_do_not_show() {
    if !there_is(Needs::Hardware) {
        return;
    }
    let Some((running, socket)) = start(Machine::new(debugged())) else { return };
    let said = run(
        &socket,
        &[
            &format!("break *{MOV}"),
            "continue",
            "p $rbx",
            "x/3i $pc - 3",
            "continue",
            "p $rbx",
            "p/x $rcx",
            "delete",
            "detach",
        ],
    );
    expect(&said, &["Breakpoint 1, ", "= 1", "inc    %rbx", "mov    %rbx,0x400000", "jmp "]);
    expect(&said, &["Breakpoint 1, ", "Breakpoint 1, ", "= 2", "= 0x1122334455667788"]);
    running.read_changed(COUNTER);
    stop(running);
}

#[test]
fn hardware_breakpoints_stop() {
    if !there_is(Needs::DebugRegisters) {
        return;
    }
    let Some((running, socket)) = start(Machine::new(debugged())) else { return };
    let hbreak = format!("hbreak *{JMP}");
    let said =
        run(&socket, &[&hbreak, "continue", "p $rbx", "continue", "p $rbx", "p/x $pc", "delete", "detach"]);
    expect(&said, &["Breakpoint 1, ", "= 1", "Breakpoint 1, ", "= 2", &format!("= {JMP}")]);
    running.read_changed(COUNTER);
    stop(running);
}

#[test]
fn watchpoints_stop_behind_what_they_watch_for() {
    if !there_is(Needs::Hardware) {
        return;
    }
    let Some((running, socket)) = start(Machine::new(debugged())) else { return };
    let said = run(
        &socket,
        &[
            &format!("watch *(unsigned long *){COUNTER:#x}"),
            "continue",
            "p/x $pc",
            "delete",
            &format!("awatch *(unsigned int *){COUNTER:#x}"),
            "continue",
            "continue",
            "detach",
        ],
    );
    expect(&said, &["Hardware watchpoint 1", "New value = 1", &format!("= {JMP}")]);
    expect(&said, &["Hardware access (read/write) watchpoint 2", "New value = 2", "New value = 3"]);
    running.read_changed(COUNTER);
    stop(running);
}

#[test]
fn there_are_four_hardware_breakpoints() {
    let Some((running, socket)) = start(Machine::new(debugged())) else { return };
    let mut commands: Vec<String> = (0..5).map(|index| format!("hbreak *{:#x}", 0x2_0000 + index)).collect();
    commands.push("stepi".into());
    commands.push("delete 5".into());
    commands.push("stepi".into());
    commands.push("p/x $pc".into());
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let said = run(&socket, &commands);
    expect(&said, &["= 0x100002", "Cannot insert hardware breakpoint 5", "too many hardware breakpoints"]);
    stop(running);
}

#[test]
fn single_steps_take_one_instruction() {
    let Some((running, socket)) = start(Machine::new(debugged())) else { return };
    let said = run(
        &socket,
        &[
            // One of them is an access to a device.
            "stepi 6",
            "p/x $pc",
            "stepi",
            "p $rbx",
            "p/x $pc",
            "stepi 2",
            "p/x $pc",
            "p/x $rcx",
            "info registers eflags",
        ],
    );
    expect(
        &said,
        &[&format!("= {INC}"), "= 1", &format!("= {MOV}"), &format!("= {INC}"), "= 0x1122334455667788"],
    );
    assert!(!said.contains("TF"), "the trap flag is the debugger's own:\n{said}");
    running.read_changed(COUNTER);
    stop(running);
}

#[test]
fn registers_and_memory_can_be_changed() {
    let Some((running, socket)) = start(Machine::new(debugged())) else { return };
    let said = run(
        &socket,
        &[
            "set $rbx = 0x123456789",
            "set $xmm3.v2_int64[1] = 7",
            "set $st0 = 1.5",
            "set $fs_base = 0x77000",
            "set $k_gs_base = 0x99000",
            // The next instruction becomes two others.
            "set *(unsigned short *)$pc = 0xf890",
            "x/2i $pc",
            "info registers rbx fs_base k_gs_base",
            "p $xmm3.v2_int64",
            "p $st0",
            "p $cs = 8",
        ],
    );
    expect(
        &said,
        &["nop", "clc", "0x123456789", "0x77000", "0x99000", "7}", "= 1.5", "Could not write registers"],
    );
    stop(running);
}

#[test]
fn memory_that_is_not_mapped_or_not_there_gives_errors() {
    let Some((running, socket)) = start(Machine::new(debugged())) else { return };
    let said = run(
        &socket,
        &[
            "x/1xb 0xffffffff80000000",
            "x/1xb 0x40000000",
            // Mapped, behind the end of 128 MiB; the last bytes before it are there.
            "x/1xb 0x8000000",
            "x/2xw 0x7fffffc",
            "set *(char *)0x8000000 = 1",
            "x/1xb 0xffffffffffffffff",
            "break *0xffffffff80000000",
            "continue",
        ],
    );
    for address in ["0xffffffff80000000", "0x40000000", "0x8000000", "0xffffffffffffffff"] {
        expect(&said, &[&format!("Cannot access memory at address {address}")]);
    }
    expect(&said, &["0x7fffffc:", "Cannot access memory at address 0x8000000", "Cannot insert breakpoint 1"]);
    stop(running);
}

guest!(
    maps_itself_wildly,
    "
        // The root of the page tables is a table of itself, of frames that are not there and of reserved bits.
        mov eax, 0x600000
        lea rbx, [rax + 3]
        mov [rax + 8], rbx
        movabs rbx, 0x000ffffffffff003
        mov [rax + 16], rbx
        mov rbx, -1
        mov [rax + 24], rbx
        mov rbx, cr3
        mov rbx, [rbx]
        mov [rax], rbx
        mov cr3, rax
        say 'r'
    2:
        hlt
        jmp 2b
    "
);

#[test]
fn page_tables_that_make_no_sense_do_no_harm() {
    let Some((mut running, socket)) = start(Machine::new(maps_itself_wildly())) else { return };
    drop(gdb(&socket, &["detach"]).wait());
    running.wait_until_ready();
    let addresses =
        ["0x8040201008", "0x8000000000", "0x10000000000", "0x10080402010", "0x18000000000", "0x100000"];
    let commands: Vec<String> = addresses.iter().map(|address| format!("x/1xg {address}")).collect();
    let said = run(&socket, &commands.iter().map(String::as_str).collect::<Vec<_>>());
    expect(&said, &["0x10000000000", "0x100000:"]);
    stop(running);
}

#[test]
fn ctrl_c_stops_a_guest_that_runs() {
    let Some((mut running, socket)) = start(Machine::new(debugged())) else { return };
    let gdb = gdb(&socket, &["continue", "p $rbx > 0", "p (long)$pc >= 0x100100", "kill"]);
    running.wait_until_ready();
    running.read_changed(COUNTER);
    interrupt(&gdb);
    expect(&finish(gdb), &["received signal SIGINT", "= 1", "= 1"]);
    assert_eq!(running.wait().0, ExitReason::Killed);
}

/// Presses Ctrl-C.
fn interrupt(gdb: &Child) {
    // SAFETY: the process has not been waited for, so its ID is valid.
    unsafe { libc::kill(gdb.id().cast_signed(), libc::SIGINT) };
}

#[test]
fn a_client_that_goes_away_leaves_the_guest_as_it_was() {
    let Some((mut running, socket)) = start(Machine::new(debugged())) else { return };
    let gdb = gdb(&socket, &[&format!("hbreak *{MOV} if $rbx == 0"), "continue"]);
    running.wait_until_ready();
    let mut gdb = gdb;
    gdb.kill().unwrap();
    gdb.wait().unwrap();
    // It counts without a stop, and the next client finds no breakpoint.
    running.read_changed(COUNTER);
    let said = run(&socket, &["x/1xb 0x100103", "info threads"]);
    expect(&said, &["0x100103:\t0x48"]);
    running.read_changed(COUNTER);
    // One that speaks no language of GDB's is sent away.
    let mut stranger = UnixStream::connect(&socket).unwrap();
    stranger
        .write_all(b"$vCont;s:ffffffffffffffffff#00GET / HTTP/1.1\r\n\r\n$m0,ffffffffffffffff#00")
        .unwrap();
    drop(stranger);
    running.read_changed(COUNTER);
    stop(running);
}

guest!(
    breaks_itself,
    "
        lea rax, [rip + 3f]
        mov edi, 0x13000 + 3 * 16
        mov [rdi], ax
        mov word ptr [rdi + 2], 0x10
        mov word ptr [rdi + 4], 0x8e00
        shr rax, 16
        mov [rdi + 6], ax
        mov qword ptr [rdi + 8], 0
        lidt [rip + 4f]
        mov ebx, 3
    2:
        int3
        dec ebx
        jnz 2b
        nop
        power_off
    3:
        say 'i'
        iretq
    4:
        .word 4 * 16 - 1
        .quad 0x13000
    "
);

#[test]
fn the_guest_gets_its_own_breakpoint_exceptions_and_gdb_learns_of_its_end() {
    if !there_is(Needs::Hardware) {
        return;
    }
    let Some((running, socket)) = start(Machine::new(breaks_itself())) else { return };
    // One breakpoint that is met besides, and one that is not.
    let said = run(&socket, &["break *0x100002", "hbreak *0x2000000", "continue"]);
    expect(&said, &["exited normally"]);
    assert_eq!(running.wait(), (ExitReason::PowerOff, b"iii".to_vec()));
}

guest!(
    crashes,
    "
        nop
        ud2
    "
);

#[test]
fn gdb_learns_of_a_crash() {
    let Some((running, socket)) = start(Machine::new(crashes())) else { return };
    expect(&run(&socket, &["continue"]), &["Program terminated with signal SIGABRT"]);
    assert!(matches!(running.wait().0, ExitReason::TripleFault { .. }));
}

guest!(
    two_count,
    "
        map_gib 3, 0x12000
        lea rsi, [rip + 3f]
        mov edi, 0x10000
        mov ecx, 64
        rep movsb
        mov ebx, {LOCAL_APIC}
        store 0xf0, 0x1ff
        store 0x300, 0x000c4500
        store 0x300, 0x000c4610
    2:
        pause
        cmp dword ptr [0x11000], 1
        jb 2b
        say 'r'
        jmp 4f
        .balign 0x100
    4:
        inc qword ptr [{COUNTER}]
        jmp 4b

        .code16
    3:
        inc dword ptr cs:[0x1000]
        jmp 3b
    ",
    COUNTER = COUNTER
);

#[test]
fn vcpus_are_threads_and_all_stop_and_go_together() {
    let Some((mut running, socket)) = start(Machine::new(two_count()).map(|machine| machine.cpus(2))) else {
        return;
    };
    let first =
        gdb(&socket, &["info threads", "continue", "info threads", "p *(int *)0x11000 == *(int *)0x11000"]);
    running.wait_until_ready();
    running.read_changed(COUNTER);
    interrupt(&first);
    let said = finish(first);
    expect(
        &said,
        &["vCPU 0, in use", "vCPU 1, not started by the guest", "vCPU 0, in use", "vCPU 1, in use", "= 1"],
    );
    // With the scheduler locked one goes and the other does not.
    running.read_changed(COUNTER);
    let said = run(
        &socket,
        &[
            "set scheduler-locking on",
            "thread 2",
            "set $before = *(unsigned long *)0x400000",
            "stepi",
            "stepi",
            "p *(unsigned long *)0x400000 - $before",
            "p $rip < 0x100",
            "thread 1",
            "set $other = *(int *)0x11000",
            "stepi",
            "stepi",
            "p *(unsigned long *)0x400000 - $before",
            "p *(int *)0x11000 - $other",
        ],
    );
    expect(&said, &["= 0", "= 1", "= 1", "= 0"]);
    running.read_changed(COUNTER);
    stop(running);
}
