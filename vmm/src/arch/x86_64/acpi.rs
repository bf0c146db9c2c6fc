//! The ACPI tables of a hardware-reduced machine (ACPI 6.5): RSDP, XSDT, FADT, MADT and DSDT.
//!
//! They tell the guest its processors, its serial port, its virtio-mmio devices, and how to end: sleep and reset
//! registers, a power button, and pvpanic; and which generation of a saved VM it is.

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use devices::legacy::{
    Cmos, EVENT_GENERATION, EVENT_POWER_BUTTON, GENERATION_NOTIFY, POWER_BUTTON_NOTIFY, PowerRegisters,
    PvPanic, S5_SLEEP_TYPE, Serial, registers,
};
use devices::virtio::mmio::MMIO_LENGTH;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{self, VirtioPlace};

const OEM_ID: [u8; 6] = *b"MVM   ";
const OEM_TABLE_ID: [u8; 8] = *b"MVMTABLE";
const OEM_REVISION: u32 = 1;
/// The revision from which on integers of AML have 64 bits.
const DSDT_REVISION: u8 = 2;
const SDT_HEADER: u32 = 36;
/// FADT, IAPC_BOOT_ARCH: do not probe for VGA. That there is no 8042 is said by not saying it is there.
const NO_VGA: u16 = 1 << 2;

/// Why the tables could not be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// They do not fit.
    #[error("the ACPI tables need {0} bytes, more than there is room for: give fewer devices")]
    TooBig(usize),
    /// They could not be written.
    #[error("cannot write the ACPI tables to guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// Writes the tables for `cpus` vCPUs and the devices of `virtio`; returns the address of the RSDP.
///
/// # Errors
///
/// [`AcpiError`].
pub fn write(memory: &GuestMemoryMmap, cpus: u8, virtio: &[VirtioPlace]) -> Result<GuestAddress, AcpiError> {
    let rsdp = layout::ACPI_TABLES;
    let mut tables = Tables { bytes: vec![0; Rsdp::len().next_multiple_of(16)] };
    let dsdt = tables.add(&dsdt(virtio));
    let fadt = tables.add(&fadt(dsdt));
    let madt = tables.add(&madt(cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&xsdt);
    let room = layout::ACPI_TABLES_END.0 - layout::ACPI_TABLES.0;
    if tables.bytes.len() as u64 > room {
        return Err(AcpiError::TooBig(tables.bytes.len()));
    }
    memory.write_slice(&tables.bytes, rsdp)?;
    memory.write_slice(&to_bytes(&Rsdp::new(OEM_ID, xsdt)), rsdp)?;
    Ok(rsdp)
}

/// Tables, one behind the other from [`layout::ACPI_TABLES`] on.
struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table and returns its guest physical address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let address = layout::ACPI_TABLES.0 + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        address
    }
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn power_register(register: u16) -> GAS {
    let port = PowerRegisters::PORT + register;
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        // The buttons are devices of the DSDT, or not there at all.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = power_register(registers::RESET);
    fadt.reset_value = PowerRegisters::RESET_VALUE;
    fadt.sleep_control_reg = power_register(registers::SLEEP_CONTROL);
    fadt.sleep_status_reg = power_register(registers::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // The I/O APIC has the ID behind those of the vCPUs.
    madt.add_structure(IoApic::new(cpus, layout::IO_APIC, 0));
    madt
}

fn dsdt(virtio: &[VirtioPlace]) -> Sdt {
    let mut body = Vec::new();
    serial_port(&mut body);
    clock(&mut body);
    panic_device(&mut body);
    generation(&mut body);
    power_button(&mut body);
    for (index, node) in (0..).zip(virtio) {
        virtio_mmio(&mut body, index, node);
    }
    // `\_S5`: what to write to the sleep control register for soft off.
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&S5_SLEEP_TYPE])).to_aml_bytes(&mut body);

    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// An edge-triggered interrupt of the device's own.
fn interrupt(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

/// `COUNT` ports, at most 255, from `FIRST` on.
fn ports<const FIRST: u16, const COUNT: u16>() -> aml::IO {
    const { assert!(COUNT <= u8::MAX as u16) };
    let [count, _] = COUNT.to_le_bytes();
    aml::IO::new(FIRST, FIRST, 1, count)
}

/// Adds the device `path` with a hardware ID, a unique ID, resources, and what else it has.
fn device(
    sink: &mut Vec<u8>,
    path: &str,
    hid: &dyn Aml,
    uid: u32,
    resources: Vec<&dyn Aml>,
    more: Vec<&dyn Aml>,
) {
    let hid = aml::Name::new("_HID".into(), hid);
    let uid = aml::Name::new("_UID".into(), &uid);
    let resources = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(resources));
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &resources];
    children.extend(more);
    aml::Device::new(path.into(), children).to_aml_bytes(sink);
}

fn serial_port(sink: &mut Vec<u8>) {
    let hid = aml::EISAName::new("PNP0501");
    let (ports, interrupt) = (ports::<{ Serial::PORT }, { Serial::PORTS }>(), interrupt(Serial::GSI));
    device(sink, "_SB_.COM1", &hid, 0, vec![&ports, &interrupt], vec![]);
}

fn clock(sink: &mut Vec<u8>) {
    let hid = aml::EISAName::new("PNP0B00");
    device(sink, "_SB_.RTC_", &hid, 0, vec![&ports::<{ Cmos::PORT }, { Cmos::PORTS }>()], vec![]);
}

/// pvpanic, by the name that QEMU gave it and Linux's driver looks for.
fn panic_device(sink: &mut Vec<u8>) {
    let status = aml::Name::new("_STA".into(), &0xf_u32);
    let ports = ports::<{ PvPanic::PORT }, { PvPanic::PORTS }>();
    device(sink, "_SB_.PEVT", &"QEMU0001", 0, vec![&ports], vec![&status]);
}

/// The VM generation ID (Microsoft, "Virtual Machine Generation ID"): 16 bytes at an address that does not change,
/// which have another content in each VM that goes on from where one was saved. Linux looks for the hardware ID, others
/// for the compatible one.
fn generation(sink: &mut Vec<u8>) {
    const ADDRESS: u32 = layout::in_32_bits(layout::GENERATION_ID);
    let hid = aml::Name::new("_HID".into(), &"VMGENCTR");
    let [cid, ddn] = ["_CID", "_DDN"].map(|name| aml::Name::new(name.into(), &"VM_Gen_Counter"));
    let address = aml::Name::new("ADDR".into(), &aml::Package::new(vec![&ADDRESS, &aml::ZERO]));
    aml::Device::new("_SB_.VGEN".into(), vec![&hid, &cid, &ddn, &address]).to_aml_bytes(sink);
}

/// The power button, and the generic event device (ACPI 6.5, 5.6.9) whose interrupt says that it was pressed.
///
/// The interrupt is raised again until the guest reads the event register, so that a press is not lost while the
/// guest's kernel has the interrupt masked; the register makes one notification of each event:
///
/// ```text
/// OperationRegion (EREG, SystemIO, 0x603, 1)
/// Field (EREG, ByteAcc, NoLock, Preserve) { EVNT, 8 }
/// Method (_EVT, 1, Serialized) {
///     Local0 = EVNT
///     If (Local0 & 1) { Notify (\_SB.PWRB, 0x80) }
///     If (Local0 & 2) { Notify (\_SB.VGEN, 0x80) }
/// }
/// ```
fn power_button(sink: &mut Vec<u8>) {
    let button = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C"));
    let uid = aml::Name::new("_UID".into(), &0_u32);
    aml::Device::new("_SB_.PWRB".into(), vec![&button, &uid]).to_aml_bytes(sink);

    let port = u32::from(PowerRegisters::PORT + registers::EVENT);
    let region = aml::OpRegion::new("EREG".into(), aml::OpRegionSpace::SystemIO, &port, &aml::ONE);
    let field = aml::Field::new(
        "EREG".into(),
        aml::FieldAccessType::Byte,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::Preserve,
        vec![aml::FieldEntry::Named(*b"EVNT", 8)],
    );
    let (events, local) = (aml::Path::new("EVNT"), aml::Local(0));
    let read = aml::Store::new(&local, &events);
    let (button, generation) = (aml::Path::new("\\_SB_.PWRB"), aml::Path::new("\\_SB_.VGEN"));
    let pressed = aml::Notify::new(&button, &POWER_BUTTON_NOTIFY);
    let changed = aml::Notify::new(&generation, &GENERATION_NOTIFY);
    // The name of nothing is what the result is stored in.
    let was_pressed = aml::And::new(&aml::ZERO, &local, &EVENT_POWER_BUTTON);
    let has_changed = aml::And::new(&aml::ZERO, &local, &EVENT_GENERATION);
    let pressed = aml::If::new(&was_pressed, vec![&pressed]);
    let changed = aml::If::new(&has_changed, vec![&changed]);
    let event = aml::Method::new("_EVT".into(), 1, true, vec![&read, &pressed, &changed]);
    let interrupt = interrupt(layout::EVENT_DEVICE_GSI);
    device(sink, "_SB_.GED_", &"ACPI0013", 0, vec![&interrupt], vec![&region, &field, &event]);
}

fn virtio_mmio(sink: &mut Vec<u8>, index: u32, node: &VirtioPlace) {
    const LENGTH: u32 = layout::in_32_bits(GuestAddress(MMIO_LENGTH));
    let registers = aml::Memory32Fixed::new(true, node.address, LENGTH);
    let cache_coherent = aml::Name::new("_CCA".into(), &aml::ONE);
    let (path, interrupt) = (format!("_SB_.V{index:03}"), interrupt(node.gsi));
    device(sink, &path, &"LNRO0005", index, vec![&registers, &interrupt], vec![&cache_coherent]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(cpus: u8, devices: usize) -> Vec<u8> {
        let memory = crate::memory::reserve(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let nodes: Vec<_> = layout::VIRTIO_GSIS
            .iter()
            .take(devices)
            .map(|gsi| VirtioPlace { address: 0xd000_0000 + gsi * 0x1000, gsi: *gsi })
            .collect();
        assert_eq!(write(&memory, cpus, &nodes).unwrap(), layout::ACPI_TABLES);
        let mut bytes = vec![0; 0x1_d000];
        memory.read_slice(&mut bytes, layout::ACPI_TABLES).unwrap();
        bytes
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// The table at a guest address, once its length and checksum are seen to be right.
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI_TABLES.0).unwrap();
        let length = u32::from_le_bytes(bytes[start + 4..start + 8].try_into().unwrap());
        let table = &bytes[start..start + length as usize];
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        table
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_with_a_right_checksum() {
        let bytes = tables(4, 3);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(bytes[..36].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(&bytes, u64_at(&bytes, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let signatures: Vec<_> =
            xsdt[36..].chunks(8).map(|entry| table(&bytes, u64_at(entry, 0))[..4].to_vec()).collect();
        assert_eq!(signatures, [b"FACP", b"APIC"]);
        let fadt = table(&bytes, u64_at(xsdt, 36));
        let dsdt = table(&bytes, u64_at(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        for device in ["COM1", "VGEN", "PWRB", "GED_", "V000", "V002"] {
            assert!(dsdt.windows(4).any(|name| name == device.as_bytes()), "{device}");
        }
        assert!(!dsdt.windows(4).any(|name| name == b"V003"));
    }

    #[test]
    fn the_madt_has_every_vcpu_and_one_io_apic() {
        let bytes = tables(254, 0);
        let xsdt = table(&bytes, u64_at(&bytes, 24));
        let madt = table(&bytes, u64_at(xsdt, 44));
        let mut ids = Vec::new();
        let mut rest = &madt[44..];
        while let [kind, length, ..] = rest {
            match kind {
                0 => ids.push(rest[3]),
                1 => assert_eq!(rest[2], 254, "the I/O APIC has an ID of its own"),
                other => panic!("structure of type {other}"),
            }
            rest = &rest[usize::from(*length)..];
        }
        assert_eq!(ids, (0..254).collect::<Vec<_>>());
    }

    #[test]
    fn as_many_devices_as_there_are_interrupts_fit() {
        tables(254, layout::VIRTIO_GSIS.len());
    }
}
