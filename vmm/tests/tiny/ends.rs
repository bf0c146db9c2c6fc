//! How a guest can end, and be ended.

use vmm::ExitReason;

use super::image::LOAD_ADDRESS;
use super::machine::Machine;

guest!(
    sleeps,
    "
        // Neither another sleep type nor S5 without the bit that enables it is a power off.
        write_port {POWER}, 1 << 5 | 3 << 2
        write_port {POWER}, 5 << 2
        say 'l'
        power_off
    "
);

#[test]
fn sleep_type_5_of_the_sleep_control_register_powers_off() {
    let Some(machine) = Machine::new(sleeps()) else { return };
    assert_eq!(machine.run().output(), b"l");
}

#[test]
fn vcpus_that_were_never_started_do_not_keep_the_vm_from_ending() {
    let Some(machine) = Machine::new(sleeps()) else { return };
    assert_eq!(machine.cpus(4).run().output(), b"l");
}

guest!(
    reset_register,
    "
        write_port {POWER} + 2, 1
    2:
        hlt
        jmp 2b
    "
);

#[test]
fn the_reset_register_reboots() {
    let Some(machine) = Machine::new(reset_register()) else { return };
    assert_eq!(machine.run().reason, ExitReason::Reboot);
}

guest!(
    keyboard_controller,
    "
        write_port 0x64, 0xfe
    2:
        hlt
        jmp 2b
    "
);

#[test]
fn the_keyboard_controllers_reset_line_reboots() {
    let Some(machine) = Machine::new(keyboard_controller()) else { return };
    assert_eq!(machine.run().reason, ExitReason::Reboot);
}

guest!(
    panics,
    "
        write_port 0x505, 1
        // What comes after the first reason is a consequence of it.
        power_off
    "
);

#[test]
fn pvpanic_tells_a_panic() {
    let Some(machine) = Machine::new(panics()) else { return };
    assert_eq!(machine.run().reason, ExitReason::Panicked);
}

/// Where `faults` does.
const FAULT: u64 = 0x40;

guest!(
    faults,
    "
        .rept {FAULT}
        nop
        .endr
        // The IDT has no entry from the start: the fault cannot be handled, nor can that.
        ud2
    ",
    FAULT = FAULT
);

#[test]
fn a_triple_fault_says_which_vcpu_and_where() {
    let Some(machine) = Machine::new(faults()) else { return };
    match machine.run().reason {
        ExitReason::TripleFault { vcpu: 0, rip } => {
            assert!([Some(LOAD_ADDRESS + FAULT), None].contains(&rip), "{rip:x?}");
        }
        other => panic!("{other:?}"),
    }
}

guest!(
    runs_into_a_hole,
    "
        map_gib 3, 0x12000
        mov eax, 0xd0100000
        jmp rax
    "
);

#[test]
fn code_where_there_is_no_memory_ends_the_vm_with_kvms_word_for_it() {
    let Some(machine) = Machine::new(runs_into_a_hole()) else { return };
    let reason = machine.run().reason;
    let ExitReason::InternalError { vcpu: 0, detail } = &reason else { panic!("{reason:?}") };
    assert!(detail.contains("cannot emulate") && detail.contains("at 0xd0100000"), "{detail}");
    assert!(reason.to_string().starts_with("the guest crashed: KVM internal error"), "{reason}");
}

guest!(
    spins,
    "
        say 'r'
    2:
        jmp 2b
    "
);

#[test]
fn the_second_signal_stops_a_guest_that_spins() {
    let Some(machine) = Machine::new(spins()) else { return };
    let running = machine.cpus(2).run_until_ready();
    // Signals that wait are taken in the order of their numbers.
    running.signal(libc::SIGINT);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), (ExitReason::Signal(libc::SIGTERM), Vec::new()));
}

guest!(
    halts_for_ever,
    "
        say 'r'
    2:
        cli
        hlt
        jmp 2b
    "
);

#[test]
fn the_second_signal_stops_a_guest_that_takes_no_interrupt() {
    let Some(machine) = Machine::new(halts_for_ever()) else { return };
    let running = machine.run_until_ready();
    running.signal(libc::SIGINT);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), (ExitReason::Signal(libc::SIGTERM), Vec::new()));
}
