//! Devices at I/O ports.

use vmm::Phase;

use super::machine::Machine;

guest!(
    hello,
    r#"
        lea rsi, [rip + 2f]
        mov ecx, 5
        send
        power_off
    2:
        .ascii "hello"
    "#
);

#[test]
fn what_the_guest_writes_to_com1_comes_to_the_consoles_file() {
    let Some(machine) = Machine::new(hello()) else { return };
    let path = machine.file("console", b"earlier ");
    let ended = machine.run();
    assert!(ended.timeline.reached(Phase::FirstConsoleByte).is_some());
    assert_eq!(std::fs::read(path).unwrap(), b"earlier hello", "a file is appended to");
    assert_eq!(ended.output(), b"earlier hello");
}

guest!(
    reads_ports,
    "
        // The line status of COM1.
        mov dx, {COM1} + 5
        in al, dx
        put8
        // Status D of the clock.
        write_port 0x70, 0x0d
        in al, 0x71
        put8
        // The century.
        write_port 0x70, 0x32
        in al, 0x71
        put8
        // The events of pvpanic.
        mov dx, 0x505
        in al, dx
        put8
        power_off
    "
);

#[test]
fn the_legacy_devices_answer() {
    let Some(machine) = Machine::new(reads_ports()) else { return };
    // The transmitter is empty, the clock's battery is good, the year is 20xx, and panics can be told.
    assert_eq!(machine.run().output(), [0x60, 0x80, 0x20, 0x01]);
}

guest!(
    nobody,
    "
        xor eax, eax
        mov dx, 0x1234
        in al, dx
        put32
        xor eax, eax
        mov dx, 0x1234
        in ax, dx
        put32
        mov dx, 0x1234
        in eax, dx
        put32
        // Nor does a write do anything.
        mov dx, 0x1234
        out dx, eax
        power_off
    "
);

#[test]
fn a_port_without_a_device_reads_as_all_ones_in_every_size() {
    let Some(machine) = Machine::new(nobody()) else { return };
    assert_eq!(machine.run().numbers(), [0xff, 0xffff, 0xffff_ffff]);
}

guest!(
    strings,
    r#"
        // Eight reads of pvpanic's port and eight of one without a device, by one instruction each.
        mov edi, 0x30000
        mov ecx, 8
        mov dx, 0x505
        rep insb
        mov ecx, 8
        mov dx, 0x1234
        rep insb
        // Four reads of the scratch register of COM1.
        write_port {COM1} + 7, 0x5a
        mov ecx, 4
        rep insb
        mov esi, 0x30000
        mov ecx, 20
        mov dx, {COM1}
        rep outsb
        power_off
    "#
);

#[test]
fn string_instructions_reach_a_port_once_for_each_byte() {
    let Some(machine) = Machine::new(strings()) else { return };
    let expected = [&[0x01; 8][..], &[0xff; 8], &[0x5a; 4]].concat();
    assert_eq!(machine.run().output(), expected);
}

guest!(
    marker,
    "
        write_port {MARKER}, 1
        power_off
    ",
    MARKER = devices::legacy::BootMarker::PORT
);

#[test]
fn the_boot_marker_is_seen() {
    let Some(machine) = Machine::new(marker()) else { return };
    let ended = machine.run();
    assert!(ended.timeline.reached(Phase::Init).is_some());
    assert_eq!(ended.output(), b"");
}
