//! A VM's process that a guest has taken over.

use std::os::fd::AsFd;
use std::process::Command;
use std::time::Instant;

use instance::keeper::{Child, Tie};
use rustix::net::{SendFlags, send};
use serde_json::json;

use super::*;

/// Bytes of a pipe.
const PIPE: usize = 4096;

/// A process that does not end by itself, and what it says.
#[expect(clippy::zombie_processes, reason = "it is waited for by its descriptor")]
fn taken_over() -> (Arc<VmProcess>, Tie) {
    let (ours, theirs) = Tie::pair().unwrap();
    let process = Command::new("sleep").arg("1000").spawn().unwrap();
    (Arc::new(VmProcess::of(ours, Child::of(&process).unwrap())), theirs)
}

/// What a keeper makes of all that it says.
fn kept(vm: &Arc<VmProcess>) -> Result<Ended, RunError> {
    let (_sender, receiver) = channel();
    // No process reads it.
    let (_stop, asked) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&asked, true).unwrap();
    // As small as one can be: it is full sooner than a keeper hears so many presses.
    rustix::pipe::fcntl_setpipe_size(&asked, PIPE).unwrap();
    let (to_session, _said) = sync_channel(1);
    listen(vm, (&receiver, &to_session), &asked, &Timing::starting_at(Instant::now()))
}

#[test]
fn one_that_says_nonsense_is_killed_at_once() {
    let end = json!({"Ended": {"reason": 7}}).to_string();
    for nonsense in [&b"\0\xff\x1b[2J"[..], b"{", end.as_bytes(), &[b'['; 60_000], &[b'1'; 150_000]] {
        let (vm, theirs) = taken_over();
        send(theirs.as_fd(), nonsense, SendFlags::empty()).unwrap();
        let start = Instant::now();
        let error = kept(&vm).unwrap_err();
        assert!(matches!(&error, RunError::Vm(line) if line.contains("is not understood")), "{error}");
        assert!(start.elapsed() < LAST_WORDS);
        assert_eq!(vm.wait(LAST_WORDS), Some(KILLED));
    }
}

#[test]
fn one_that_closes_its_socket_and_lives_on_is_killed() {
    let (vm, theirs) = taken_over();
    drop(theirs);
    assert!(matches!(kept(&vm), Err(RunError::VmKilled)));
}

#[test]
fn a_flood_of_requests_is_taken_as_one_and_its_end_is_seen() {
    let (vm, theirs) = taken_over();
    let flood = std::thread::spawn(move || {
        for _ in 0..PIPE + 1000 {
            let _ = send(theirs.as_fd(), b"\"Pressed\"", SendFlags::empty());
        }
        let end = VmEnd::without_a_word(None, "x".repeat(60_000));
        send(theirs.as_fd(), &serde_json::to_vec(&FromVm::Ended(end)).unwrap(), SendFlags::empty()).unwrap();
    });
    assert!(matches!(kept(&vm), Err(RunError::VmEnded(end)) if end.text.len() == 60_000));
    flood.join().unwrap();
    vm.kill();
    vm.wait(LAST_WORDS);
}
