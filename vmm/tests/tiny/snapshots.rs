//! VMs that are saved, and go on in another one.

use std::io::{BufReader, Read};

use vmm::{ExitReason, SavedVm, Snapshot};

use super::machine::{Machine, Running};

/// What a guest keeps in registers, and in the middle of its memory.
const PATTERN: u64 = 0x0123_4567_89ab_cdef;
const FAR: u64 = 96 << 20;

/// Ends a guest.
fn stop(running: Running) {
    running.force(libc::SIGTERM);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGTERM));
}

/// The state of a guest, which has gone through a file.
fn save(running: &Running) -> Snapshot {
    let memory = tempfile::tempfile().unwrap();
    let state = running.saver.save(&memory).unwrap();
    let state = SavedVm::decode(&state.encode().unwrap()).unwrap();
    Snapshot { state, memory }
}

fn again(snapshot: &Snapshot) -> Snapshot {
    Snapshot { state: snapshot.state.clone(), memory: snapshot.memory.try_clone().unwrap() }
}

guest!(
    counts_in_output,
    "
        // OSFXSR: the guest uses SSE.
        mov rax, cr4
        or eax, 1 << 9
        mov cr4, rax
        mov rcx, {FAR}
        mov rax, {PATTERN}
        mov r12, rax
        mov [rcx], rax
        mov [rcx + 8], rax
        // What an interpreter knows of SSE, too.
        movdqu xmm7, [rcx]
        xor ebx, ebx
        say 'r'
    2:
        mov eax, ebx
        put32
        inc ebx
        mov rcx, {FAR}
        cmp [rcx], r12
        jne 3f
        movdqu [rcx + 16], xmm7
        cmp [rcx + 24], r12
        je 2b
    3:
        power_off
    ",
    FAR = FAR,
    PATTERN = PATTERN
);

/// The next `count` numbers of a guest, each of which follows the one before.
fn numbers(from: &mut impl Read, count: u32, mut next: Option<u32>) -> u32 {
    for _ in 0..count {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes).unwrap();
        let number = u32::from_le_bytes(bytes);
        assert_eq!(next.unwrap_or(number), number);
        next = Some(number + 1);
    }
    next.unwrap()
}

#[test]
fn a_guest_goes_on_from_where_it_was_saved_as_often_as_wanted() {
    let Some(machine) = Machine::new(counts_in_output()) else { return };
    let running = machine.run_until_ready();
    rustix::io::ioctl_fionbio(running.console(), false).unwrap();
    let mut output = BufReader::new(running.console().try_clone().unwrap());
    let next = numbers(&mut output, 1000, None);
    let snapshot = save(&running);
    // The one that was saved has lost nothing.
    let next = numbers(&mut output, 5000, Some(next));
    drop(output);
    stop(running);
    for _ in 0..2 {
        let restored = Machine::new(counts_in_output()).unwrap().continuing(again(&snapshot));
        let restored = restored.run_with_pipe(false);
        rustix::io::ioctl_fionbio(restored.console(), false).unwrap();
        let mut output = BufReader::new(restored.console().try_clone().unwrap());
        // It may have been saved within a number, whose first bytes are elsewhere.
        let first = align(&mut output);
        assert!(first < next, "{first} {next}");
        numbers(&mut output, 5000, Some(first));
        drop(output);
        stop(restored);
    }
}

/// Reads the rest of a number, and returns the one after the next.
fn align(from: &mut impl Read) -> u32 {
    let mut bytes = [0; 11];
    from.read_exact(&mut bytes).unwrap();
    for start in 0..4 {
        let at = |place: usize| u32::from_le_bytes(bytes[place..place + 4].try_into().unwrap());
        if start + 8 <= bytes.len() && at(start) + 1 == at(start + 4) {
            let mut rest = vec![0; (4 - (bytes.len() - start) % 4) % 4];
            from.read_exact(&mut rest).unwrap();
            return at(start + 4) + 1 + u32::from(!rest.is_empty());
        }
    }
    panic!("{bytes:02x?}")
}
