//! What a VM's process says to its keeper, once its guest has taken it over: it is understood, or the process is
//! killed; and each is said once.

#![no_main]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use instance::keeper::{Child, Tie};
use libfuzzer_sys::fuzz_target;
use rustix::net::{SendFlags, send};
use vmm::VmProcess;

/// Where messages are cut apart. JSON does not use this byte.
const CUT: u8 = 0xff;
/// The most messages: more would wait for the keeper to read.
const MOST: usize = 64;

/// A program that has ended, in place of the VM's: nothing here is to have another process ended.
fn ended() -> Child {
    static ENDED: OnceLock<std::process::Child> = OnceLock::new();
    let program = ENDED.get_or_init(|| Command::new("true").process_group(0).spawn().expect("a program"));
    Child::of(program).expect("it is not waited for")
}

fuzz_target!(|said: &[u8]| {
    let (ours, theirs) = Tie::pair().expect("sockets");
    let vm = VmProcess::of(ours, ended());
    let mut sent = 0;
    for piece in said.split(|byte| *byte == CUT).filter(|piece| !piece.is_empty()).take(MOST) {
        send(&theirs, piece, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).expect("there is room");
        sent += 1;
    }
    drop(theirs);
    let mut heard = 0;
    while vm.receive().is_some() {
        heard += 1;
    }
    assert!(heard <= sent, "{heard} of {sent}");
});
