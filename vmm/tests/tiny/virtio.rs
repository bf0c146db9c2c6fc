//! Virtio devices behind virtio-mmio, as a driver of a few instructions finds them.

use super::machine::Machine;

guest!(
    probe,
    "
        map_gib 3, 0x12000
        mov ebx, {VIRTIO}
        mov ebp, 3
    2:
        // Magic number, version, device ID.
        mov eax, [rbx]
        put32
        mov eax, [rbx + 4]
        put32
        mov eax, [rbx + 8]
        put32
        add ebx, 0x1000
        dec ebp
        jnz 2b
        power_off
    ",
    VIRTIO = vmm::arch::current::layout::VIRTIO_MMIO
);

#[test]
fn disks_come_first_then_the_entropy_device_then_nothing() {
    let Some(machine) = Machine::new(probe()) else { return };
    let numbers = machine.disk("disk", &[0; 512]).run().numbers();
    assert_eq!(numbers[..3], [0x7472_6976, 2, 2], "a disk");
    assert_eq!(numbers[3..6], [0x7472_6976, 2, 4], "an entropy device");
    assert_eq!(numbers[6..], [u32::MAX; 3], "nothing");
}
