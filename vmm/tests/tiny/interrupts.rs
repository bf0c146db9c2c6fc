//! Interrupts, from a device's eventfd through I/O APIC and local APIC to the guest's handler.

use vmm::ExitReason;

use super::machine::Machine;

guest!(
    transmitter,
    "
        take_interrupt {COM1_GSI}, 3f
        // The interrupt of an empty transmitter is enabled, and due at once.
        write_port {COM1} + 1, 2
        sti
        hlt
        say 'a'
        power_off
    3:
        mov dx, {COM1} + 2
        in al, dx
        mov cl, al
        // What is written next would interrupt again.
        write_port {COM1} + 1, 0
        mov al, cl
        put8
        end_of_interrupt
        iretq
    ",
    COM1_GSI = devices::legacy::Serial::GSI
);

#[test]
fn the_serial_ports_interrupt_wakes_a_halted_guest() {
    let Some(machine) = Machine::new(transmitter()) else { return };
    // The transmitter is empty, and the port has FIFOs; then the guest goes on behind its HLT.
    assert_eq!(machine.run().output(), [0xc2, b'a']);
}

guest!(
    power_button,
    "
        take_interrupt {EVENT_DEVICE}, 3f
        sti
        say 'r'
    2:
        hlt
        jmp 2b
    3:
        end_of_interrupt
        say 'p'
        power_off
    ",
    EVENT_DEVICE = vmm::layout::EVENT_DEVICE_GSI
);

#[test]
fn the_first_signal_presses_the_power_button() {
    let Some(machine) = Machine::new(power_button()) else { return };
    let running = machine.run_until_ready();
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), (ExitReason::PowerOff, b"p".to_vec()));
}

guest!(
    has_no_8259,
    "
        // The ACPI tables name no 8259, so this guest leaves them alone.
        take_interrupt {COM1_GSI}, 3f
        write_port {COM1} + 1, 2
        sti
        hlt
        say 'a'
        power_off
    3:
        write_port {COM1} + 1, 0
        say 'i'
        end_of_interrupt
        iretq
    ",
    COM1_GSI = devices::legacy::Serial::GSI
);

#[test]
fn interrupts_come_by_the_io_apic_alone() {
    let Some(machine) = Machine::new(has_no_8259()) else { return };
    assert_eq!(machine.run().output(), b"ia");
}
