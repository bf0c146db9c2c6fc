//! The console's readers: one that does not read, and others who come by the VM's directory.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm::ExitReason;
use vmm::Holder;

use super::machine::{Machine, WATCHDOG};

/// More than the pipe in the test holds, and not more than waits for its reader.
const MUCH: u32 = 64 << 10;

guest!(
    prints_much,
    "
        say 'r'
        print_pages {PAGES}
        say '.'
        power_off
    ",
    PAGES = MUCH / 4096
);

#[test]
fn a_guest_whose_output_is_not_read_runs_to_its_end() {
    let Some(machine) = Machine::new(prints_much()) else { return };
    let mut running = machine.run_paused();
    // A page: all but that waits in mvm. It holds nothing yet, or could not be made smaller.
    rustix::pipe::fcntl_setpipe_size(running.console(), 4096).unwrap();
    running.gate.resume(Holder::User);
    running.wait_until_ready();
    let (reason, rest) = running.wait();
    assert_eq!(reason, ExitReason::PowerOff);
    assert_eq!(rest.len(), MUCH as usize + 1, "a reader that comes late has missed nothing");
    assert!(rest.ends_with(b"x."));
}

guest!(
    echoes,
    "
        // DTR and received data interrupts: the port is open.
        mov dx, {COM1} + 4
        mov al, 1
        out dx, al
        mov dx, {COM1} + 1
        out dx, al
        lea rsi, [rip + 4f]
        mov ecx, 7
        send
    2:
        mov dx, {COM1} + 5
        in al, dx
        test al, 1
        jz 2b
        mov dx, {COM1}
        in al, dx
        out dx, al
        cmp al, '!'
        jne 2b
        power_off
    4:
        .ascii \"ready\\r\\n\"
    "
);

fn attach(directory: &Path) -> UnixStream {
    let stream = UnixStream::connect(directory.join("console.sock")).unwrap();
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    stream
}

fn expect(stream: &mut UnixStream, text: &str) {
    let mut seen = vec![0; text.len()];
    stream.read_exact(&mut seen).unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), text);
}

#[test]
fn any_number_attach_by_the_socket_see_the_same_and_type_together() {
    let Some(machine) = Machine::new(echoes()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    let machine = machine.runtime_directory(runtime);
    let running = machine.run_until_ready();
    let mut first = attach(runtime);
    expect(&mut first, "ready\r\n");
    let mut second = attach(runtime);
    second.write_all(b"a").unwrap();
    expect(&mut second, "ready\r\na");
    expect(&mut first, "a");
    // One that has typed and gone before its input was read.
    attach(runtime).write_all(b"bcd").unwrap();
    expect(&mut first, "bcd");
    expect(&mut second, "bcd");
    first.write_all(b"last words!").unwrap();
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last words!", "then the VM's end");
    expect(&mut second, "last words!");
    let (reason, _) = running.wait();
    assert_eq!(reason, ExitReason::PowerOff);
    assert!(!runtime.join("console.sock").exists());
    let log = std::fs::read_to_string(runtime.join("console.log")).unwrap();
    assert_eq!(log, "ready\r\nabcdlast words!");
}
