//! vCPUs that are kept out of the guest for a while.

use std::io::{self, Write};

use kvm_ioctls::Cap;
use vmm::ExitReason;
use vmm::{GateError, Holder};

use super::image::LOAD_ADDRESS;
use super::machine::{Machine, Running};

/// Where guests count.
const COUNTER: u64 = 0x40_0000;

/// RIP, RAX and RBX of a vCPU that stands.
fn registers(running: &Running, vcpu: usize) -> (u64, u64, u64) {
    let registers = running.gate.with_vcpu(vcpu, |fd| fd.get_regs()).unwrap().unwrap();
    (registers.rip, registers.rax, registers.rbx)
}

/// Stops a guest, and expects that this is its end.
fn stop(running: Running) {
    running.force(libc::SIGTERM);
    assert_eq!(running.wait().0, ExitReason::Signal(libc::SIGTERM));
}

guest!(
    counts,
    "
        xor ebx, ebx
        say 'r'
    2:
        inc rbx
        mov [{COUNTER}], rbx
        jmp 2b
    ",
    COUNTER = COUNTER
);

#[test]
fn a_guest_stands_still_while_it_is_paused() {
    let Some(machine) = Machine::new(counts()) else { return };
    let running = machine.run_until_ready();
    for _ in 0..5 {
        running.read_changed(COUNTER);
        // Again is no error.
        for _ in 0..2 {
            running.gate.pause(Holder::User).unwrap();
        }
        assert!(running.gate.is_paused());
        let (before, (_, _, rbx)) = (running.read(COUNTER), registers(&running, 0));
        assert!(rbx - before <= 1, "{rbx} is not {before} nor the next");
        // Each takes the vCPU's thread some time, in which the guest would count on.
        for _ in 0..1000 {
            assert_eq!(registers(&running, 0).2, rbx);
        }
        assert_eq!(running.read(COUNTER), before);
        for _ in 0..2 {
            running.gate.resume(Holder::User);
        }
        assert!(!running.gate.is_paused());
    }
    running.read_changed(COUNTER);
    assert_eq!(running.gate.with_vcpu(0, |_| ()), Err(GateError::NotPaused(0)));
    stop(running);
}

#[test]
fn registers_can_be_changed_while_a_guest_is_paused() {
    let Some(machine) = Machine::new(counts()) else { return };
    let running = machine.run_until_ready();
    running.gate.pause(Holder::User).unwrap();
    let set = running.gate.with_vcpu(0, |fd| {
        let mut registers = fd.get_regs()?;
        registers.rbx = 1 << 40;
        fd.set_regs(&registers)
    });
    set.unwrap().unwrap();
    running.gate.resume(Holder::User);
    while running.read_changed(COUNTER) < 1 << 40 {}
    stop(running);
}

#[test]
fn a_vm_that_is_paused_before_it_starts_waits_at_its_first_instruction() {
    let Some(machine) = Machine::new(counts()) else { return };
    let mut running = machine.cpus(3).run_paused();
    // Some vCPU may not have come to the gate yet.
    running.gate.wait_until_parked().unwrap();
    while running.gate.with_vcpu(0, |_| ()).is_err() {
        std::thread::yield_now();
    }
    assert_eq!(registers(&running, 0).0, LOAD_ADDRESS);
    assert_eq!(running.read(COUNTER), 0);
    running.gate.resume(Holder::User);
    running.wait_until_ready();
    running.read_changed(COUNTER);
    stop(running);
}

#[test]
fn each_holder_holds_the_guest() {
    let Some(machine) = Machine::new(counts()) else { return };
    let running = machine.run_until_ready();
    running.gate.pause(Holder::Debugger).unwrap();
    running.gate.pause(Holder::User).unwrap();
    running.gate.resume(Holder::Debugger);
    let counted = registers(&running, 0).2;
    assert_eq!(registers(&running, 0).2, counted);
    running.gate.resume(Holder::User);
    running.read_changed(COUNTER);
    stop(running);
}

#[test]
fn a_vm_ends_while_it_is_paused_and_can_be_paused_when_it_has_ended() {
    let Some(machine) = Machine::new(counts()) else { return };
    let running = machine.cpus(2).run_until_ready();
    running.gate.pause(Holder::User).unwrap();
    let gate = running.gate.clone();
    stop(running);
    gate.pause(Holder::User).unwrap();
    gate.resume(Holder::User);
    assert_eq!(gate.with_vcpu(0, |_| ()), Err(GateError::NotPaused(0)));
}

guest!(
    halts,
    "
        say 'r'
    2:
        cli
        hlt
        jmp 2b
    "
);

#[test]
fn vcpus_that_are_halted_or_never_started_stand_too() {
    let Some(machine) = Machine::new(halts()) else { return };
    let running = machine.cpus(3).run_until_ready();
    for _ in 0..20 {
        running.gate.pause(Holder::User).unwrap();
        let (rip, ..) = registers(&running, 0);
        assert!((LOAD_ADDRESS..LOAD_ADDRESS + 64).contains(&rip), "{rip:#x}");
        for vcpu in [1, 2] {
            registers(&running, vcpu);
        }
        running.gate.resume(Holder::User);
    }
    stop(running);
}

guest!(
    talks,
    "
        say 'r'
        xor ebx, ebx
    2:
        mov eax, ebx
        put8
        inc rbx
        cmp rbx, {COUNT}
        jne 2b
        power_off
    ",
    COUNT = TALK
);

/// How many bytes `talks` sends.
const TALK: u64 = 3000;

#[test]
fn an_access_to_a_device_is_neither_lost_nor_done_twice() {
    let Some(machine) = Machine::new(talks()) else { return };
    let running = machine.run_until_ready();
    let mut pauses = 0;
    loop {
        running.gate.pause(Holder::User).unwrap();
        // Written back, registers that lack what the exit did would undo it.
        let result = running.gate.with_vcpu(0, |fd| fd.set_regs(&fd.get_regs()?));
        running.gate.resume(Holder::User);
        let Ok(result) = result else { break };
        result.unwrap();
        pauses += 1;
    }
    let expected: Vec<u8> = (0..TALK).map(|number| number.to_le_bytes()[0]).collect();
    assert!(pauses > 10, "{pauses}");
    assert_eq!(running.wait(), (ExitReason::PowerOff, expected));
}

guest!(
    watches_its_clock,
    "
        // KVM's clock at a place of memory (MSR_KVM_SYSTEM_TIME_NEW), and its flags there.
        mov ecx, 0x4b564d01
        mov eax, {CLOCK} + 1
        xor edx, edx
        wrmsr
        say 'r'
    2:
        // PVCLOCK_GUEST_STOPPED
        test byte ptr [{CLOCK} + 29], 2
        jz 2b
        power_off
    ",
    CLOCK = 0x50_0000
);

#[test]
fn a_guest_with_kvms_clock_learns_that_it_was_stopped() {
    let Some(machine) = Machine::new(watches_its_clock()) else { return };
    if !vmm::open_kvm().unwrap().check_extension(Cap::KvmclockCtrl) {
        let _ = writeln!(io::stderr(), "skipped: this KVM lacks KVM_CAP_KVMCLOCK_CTRL");
        return;
    }
    let running = machine.run_until_ready();
    running.gate.pause(Holder::User).unwrap();
    running.gate.resume(Holder::User);
    assert_eq!(running.wait().0, ExitReason::PowerOff);
}
