//! How a guest can end, and be ended.

use std::time::{Duration, Instant};

use vmm::ExitReason;

use super::image::LOAD_ADDRESS;
use super::machine::{Machine, Running};

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
    reset_control_register,
    "
        write_port {RESET_CONTROL}, 0x02
        write_port {RESET_CONTROL}, 0x06
    2:
        hlt
        jmp 2b
    ",
    RESET_CONTROL = devices::legacy::ResetControl::PORT
);

#[test]
fn the_chipsets_reset_register_reboots() {
    let Some(machine) = Machine::new(reset_control_register()) else { return };
    assert_eq!(machine.run().reason, ExitReason::Reboot);
}

guest!(
    jumps_to_the_reset_vector,
    "
        map_gib 3, 0x12000
        // Another vCPU, which starts in real mode at page 0x10, jumps to F000:FFF0 (opcode 0xea).
        mov edi, 0x10000
        mov byte ptr [rdi], 0xea
        mov dword ptr [rdi + 1], 0xf000fff0
        mov ebx, {LOCAL_APIC}
        store 0xf0, 0x1ff
        store 0x300, 0x000c4500
        store 0x300, 0x000c4610
    2:
        hlt
        jmp 2b
    "
);

#[test]
fn the_reset_vector_of_a_pc_reboots() {
    let Some(machine) = Machine::new(jumps_to_the_reset_vector()) else { return };
    assert_eq!(machine.cpus(2).run().reason, ExitReason::Reboot);
}

guest!(
    sets_its_exit_code,
    "
        write_port {EXIT_CODE}, 3
        write_port {EXIT_CODE}, 7
        power_off
    ",
    EXIT_CODE = devices::legacy::ExitCode::PORT
);

#[test]
fn a_guest_sets_the_exit_code_of_its_end() {
    let Some(machine) = Machine::new(sets_its_exit_code()) else { return };
    assert_eq!(machine.run().reason, ExitReason::Code(7));
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
    assert_eq!(machine.run().reason, ExitReason::Panicked { message: None, hint: None });
}

guest!(
    panics_on_its_console,
    "
        lea rsi, [rip + 2f]
        lea rcx, [rip + 3f]
        sub ecx, esi
        send
        write_port {POWER} + 2, 1
        hlt
    2:
        .ascii \"[    0.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\\r\\n\"
    3:
    "
);

#[test]
fn a_kernel_that_panics_on_its_console_and_resets_has_panicked() {
    let Some(machine) = Machine::new(panics_on_its_console()) else { return };
    let reason = machine.run().reason;
    let ExitReason::Panicked { message: Some(message), hint: Some(hint) } = reason else {
        panic!("{reason:?}")
    };
    assert_eq!(message, "VFS: Unable to mount root fs on unknown-block(0,0)");
    assert!(hint.contains("--rootfs"), "{hint}");
}

guest!(
    shows_a_panic_and_powers_off,
    "
        lea rsi, [rip + 2f]
        lea rcx, [rip + 3f]
        sub ecx, esi
        send
        power_off
    2:
        .ascii \"Kernel panic - not syncing: of another machine\\r\\n\"
    3:
    "
);

#[test]
fn a_panic_on_the_console_counts_only_with_a_reset() {
    let Some(machine) = Machine::new(shows_a_panic_and_powers_off()) else { return };
    assert_eq!(machine.run().reason, ExitReason::PowerOff);
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
        ExitReason::TripleFault { vcpu: 0, at, hint } => {
            assert!([Some(LOAD_ADDRESS + FAULT), None].contains(&at), "{at:x?}");
            // It has said nothing.
            assert!(
                hint.as_ref().is_some_and(|hint| hint.contains("--kernel") && hint.contains("--memory")),
                "{hint:?}"
            );
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
    let ExitReason::InternalError { vcpu: 0, detail, .. } = &reason else { panic!("{reason:?}") };
    assert!(detail.contains("cannot emulate") && detail.contains("at 0xd0100000"), "{detail}");
    assert!(reason.to_string().starts_with("the guest crashed: KVM internal error"), "{reason}");
    assert!(reason.hint().is_some_and(|hint| hint.contains("mvm doctor")), "{reason:?}");
}

guest!(
    spins,
    "
        say 'r'
    2:
        jmp 2b
    "
);

/// A second request: a signal that comes until it is no longer taken for a part of the first one.
fn signal_twice(running: &Running) {
    running.signal(libc::SIGINT);
    running.signal_until_it_ends(libc::SIGTERM);
}

#[test]
fn the_second_signal_stops_a_guest_that_spins() {
    let Some(machine) = Machine::new(spins()) else { return };
    let running = machine.cpus(2).run_until_ready();
    signal_twice(&running);
    assert_eq!(running.wait(), (ExitReason::Signal(libc::SIGTERM), Vec::new()));
}

#[test]
fn signals_at_once_are_one_request_and_the_guest_has_its_time() {
    let Some(machine) = Machine::new(spins()) else { return };
    let start = Instant::now();
    let running = machine.stop_timeout(2).run_until_ready();
    for signal in [libc::SIGTERM, libc::SIGTERM, libc::SIGINT] {
        running.signal(signal);
    }
    assert_eq!(running.wait(), (ExitReason::Signal(libc::SIGTERM), Vec::new()));
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_timeout_ends_a_guest_that_does_not_power_off() {
    let Some(machine) = Machine::new(spins()) else { return };
    let running = machine.timeout(1).stop_timeout(1).run_until_ready();
    assert_eq!(running.wait(), (ExitReason::TimedOut, Vec::new()));
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
    signal_twice(&running);
    assert_eq!(running.wait(), (ExitReason::Signal(libc::SIGTERM), Vec::new()));
}
