//! What CPUID says, and vCPUs that are started by others.

use std::sync::Arc;
use std::time::Instant;

use instance::Identity;
use rstest::rstest;
use vmm::{ExitReason, ProcessorError, Timeline, VmError};

use super::machine::{Machine, build, supervisor};

guest!(
    cpuid,
    "
        // EBX of leaf 1: APIC ID and count of IDs.
        mov eax, 1
        cpuid
        mov eax, ebx
        put32
        // The two levels of leaf 0xb: EAX, EBX, ECX, EDX of each.
        xor esi, esi
    2:
        mov eax, 0xb
        mov ecx, esi
        cpuid
        mov edi, edx
        put32
        mov eax, ebx
        put32
        mov eax, ecx
        put32
        mov eax, edi
        put32
        inc esi
        cmp esi, 2
        jne 2b
        // The hypervisor's signature: EBX, ECX, EDX of its first leaf.
        mov eax, 0x40000000
        cpuid
        mov edi, edx
        mov eax, ebx
        put32
        mov eax, ecx
        put32
        mov eax, edi
        put32
        power_off
    "
);

#[rstest]
#[case(1, 0)]
#[case(3, 2)]
fn cpuid_tells_ids_topology_and_hypervisor(#[case] cpus: u32, #[case] id_bits: u32) {
    let Some(machine) = Machine::new(cpuid()) else { return };
    let numbers = machine.cpus(cpus).run().numbers();
    assert_eq!(numbers[0] >> 16, 1 << id_bits, "APIC ID 0, and room for {cpus} IDs");
    assert_eq!(numbers[1..5], [0, 1, 0x100, 0], "one thread to a core");
    assert_eq!(numbers[5..9], [id_bits, cpus, 0x201, 0], "{cpus} cores to a package");
    let signature: Vec<u8> = numbers[9..].iter().flat_map(|number| number.to_le_bytes()).collect();
    assert_eq!(signature, b"KVMKVMKVM\0\0\0");
}

guest!(
    starts_others,
    "
        map_gib 3, 0x12000
        // The others start in real mode at a page below 1 MiB.
        lea rsi, [rip + 3f]
        mov edi, 0x10000
        mov ecx, 64
        rep movsb
        // How many there are beside this one.
        mov eax, 0xb
        mov ecx, 1
        cpuid
        lea ebp, [rbx - 1]
        // INIT, then a start-up for page 0x10, to all but this one.
        mov ebx, {LOCAL_APIC}
        store 0xf0, 0x1ff
        store 0x300, 0x000c4500
        store 0x300, 0x000c4610
    2:
        pause
        cmp [0x11000], ebp
        jne 2b
        // What they wrote, two numbers each, behind those of this one.
        mov esi, 0x11018
        lea ecx, [rbp * 8]
        send
        power_off

        .code16
    3:
        mov ax, cs
        mov ds, ax
        mov eax, 1
        cpuid
        shr ebx, 24
        mov esi, ebx
        mov eax, 0xb
        xor ecx, ecx
        cpuid
        mov [esi * 8 + 0x1010], esi
        mov [esi * 8 + 0x1014], edx
        lock inc dword ptr [0x1000]
    5:
        hlt
        jmp 5b
    "
);

#[rstest]
#[case(2)]
#[case(4)]
fn every_vcpu_starts_by_init_and_sipi_and_knows_its_id(#[case] cpus: u32) {
    let Some(machine) = Machine::new(starts_others()) else { return };
    let expected: Vec<u32> = (1..cpus).flat_map(|id| [id, id]).collect();
    assert_eq!(machine.cpus(cpus).run().numbers(), expected);
}

guest!(
    other_faults,
    "
        map_gib 3, 0x12000
        lea rsi, [rip + 3f]
        mov edi, 0x10000
        mov ecx, 64
        rep movsb
        mov ebx, {LOCAL_APIC}
        store 0xf0, 0x1ff
        store 0x300, 0x000c4500
        store 0x300, 0x000c4610
    2:
        hlt
        jmp 2b

        .code16
    3:
        // In protected mode, with zeros for an interrupt table: one without an entry.
        lidt cs:[0x800]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        // A segment that cannot be loaded.
        mov ax, 0x800
        mov ds, ax
    "
);

#[test]
fn a_triple_fault_of_another_vcpu_ends_the_vm() {
    let Some(machine) = Machine::new(other_faults()) else { return };
    let reason = machine.cpus(2).run().reason;
    assert!(matches!(reason, ExitReason::TripleFault { vcpu: 1, .. }), "{reason:?}");
}

guest!(
    virtualization,
    "
        // VMX, SVM, and the features of the latter.
        mov eax, 1
        cpuid
        mov eax, ecx
        and eax, 1 << 5
        put32
        mov eax, 0x80000001
        cpuid
        mov eax, ecx
        and eax, 1 << 2
        put32
        power_off
    "
);

#[test]
fn the_processors_virtualization_is_for_guests_that_shall_have_it() {
    let Some(machine) = Machine::new(virtualization()) else { return };
    assert_eq!(machine.run().numbers(), [0, 0]);
    let Some(mut machine) = Machine::new(virtualization()) else { return };
    machine.config.nested = true;
    let supervisor = supervisor(&machine.config);
    let described = (machine.config.clone(), Identity::default());
    match build(&described, supervisor.requests(), Arc::new(Timeline::starting_at(Instant::now()))) {
        Ok(vm) => {
            // Built twice, the VM would find its files in use.
            drop(vm);
            assert!([vec![1 << 5, 0], vec![0, 1 << 2]].contains(&machine.run().numbers()));
        }
        Err(error) => {
            assert!(matches!(error, VmError::Processor(ProcessorError::NoNesting)), "{error}");
            let cpuid =
                vmm::open_kvm().unwrap().get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
            let has = |function: u32, bit: u32| {
                cpuid.as_slice().iter().any(|entry| entry.function == function && entry.ecx >> bit & 1 == 1)
            };
            assert!(!has(1, 5) && !has(0x8000_0001, 2));
        }
    }
}

guest!(
    counters,
    "
        // The leaf of Intel's counters: EAX, EBX, EDX. Zeros where there is none.
        xor edi, edi
        xor esi, esi
        xor ebp, ebp
        xor eax, eax
        cpuid
        cmp eax, 0xa
        jb 2f
        mov eax, 0xa
        xor ecx, ecx
        cpuid
        mov edi, eax
        mov esi, ebx
        mov ebp, edx
    2:
        mov eax, edi
        put32
        mov eax, esi
        put32
        mov eax, ebp
        put32
        // The register of their capabilities (PDCM), and AMD's counters.
        mov eax, 1
        cpuid
        mov eax, ecx
        and eax, 1 << 15
        put32
        mov eax, 0x80000001
        cpuid
        mov eax, ecx
        and eax, 1 << 23 | 1 << 24 | 1 << 28
        put32
        power_off
    "
);

#[test]
fn performance_counters_are_those_that_kvm_has_for_guests_that_shall_have_them() {
    let Some(machine) = Machine::new(counters()) else { return };
    assert_eq!(machine.run().numbers(), [0; 5]);
    let Some(mut machine) = Machine::new(counters()) else { return };
    machine.config.pmu = true;
    let supported =
        vmm::open_kvm().unwrap().get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    let leaf = |function: u32| {
        let entries = supported.as_slice();
        entries.iter().find(|entry| entry.function == function).copied().unwrap_or_default()
    };
    let (intel, amd) = (leaf(0xa), leaf(0x8000_0001).ecx & (1 << 23 | 1 << 24 | 1 << 28));
    let expected = [intel.eax, intel.ebx, intel.edx, leaf(1).ecx & 1 << 15, amd];
    assert_eq!(machine.run().numbers(), expected);
    if expected == [0; 5] {
        eprintln!("this KVM has no performance counters");
    }
}
