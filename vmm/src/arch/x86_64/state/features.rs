//! Whether a vCPU has the features of the processor that a saved guest uses.

use kvm_bindings::kvm_cpuid_entry2;

/// A register of CPUID, by what it is called.
type Register = (&'static str, fn(&kvm_cpuid_entry2) -> u32);

const EAX: Register = ("EAX", |entry| entry.eax);
const EBX: Register = ("EBX", |entry| entry.ebx);
const ECX: Register = ("ECX", |entry| entry.ecx);
const EDX: Register = ("EDX", |entry| entry.edx);

/// The registers whose bits are features, by leaf and subleaf (Intel SDM volume 2A, AMD APM volume 3 appendix E), and
/// the bits of them that change with the state of a vCPU.
const FEATURES: &[(u32, u32, Register, u32)] = &[
    // MONITOR, OSXSAVE.
    (1, 0, ECX, 1 << 3 | 1 << 27),
    // The local APIC.
    (1, 0, EDX, 1 << 9),
    (7, 0, EBX, 0),
    // OSPKE.
    (7, 0, ECX, 1 << 4),
    (7, 0, EDX, 0),
    (7, 1, EAX, 0),
    (7, 1, EDX, 0),
    (0xd, 0, EAX, 0),
    (0xd, 1, EAX, 0),
    (0x8000_0001, 0, ECX, 0),
    (0x8000_0001, 0, EDX, 1 << 9),
    (0x8000_0008, 0, EBX, 0),
    (0x8000_0021, 0, EAX, 0),
];

/// What `saved` has and `own` lacks.
pub(super) fn missing(saved: &[kvm_cpuid_entry2], own: &[kvm_cpuid_entry2]) -> Option<String> {
    let bits = |entries: &[kvm_cpuid_entry2], leaf, subleaf, read: fn(&kvm_cpuid_entry2) -> u32| {
        // An index that does not count is 0. Of several entries a guest sees the first.
        entries.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf)).map_or(0, read)
    };
    FEATURES.iter().find_map(|&(leaf, subleaf, (name, read), changing)| {
        let lacks = bits(saved, leaf, subleaf, read) & !bits(own, leaf, subleaf, read) & !changing;
        (lacks != 0).then(|| format!("CPUID {leaf:#x}.{subleaf}, {name}: {lacks:#x}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_the_host_lacks_are_named_and_others_are_not() {
        let entry = |function, index, ecx| kvm_cpuid_entry2 { function, index, ecx, ..Default::default() };
        let own = [entry(1, 0, 0b1011), entry(7, 0, 1 << 2)];
        for (saved, expected) in [
            (vec![entry(1, 0, 0b0011)], None),
            // Bits that a guest switches on are not compared.
            (vec![entry(1, 0, 1 << 27), entry(7, 0, 1 << 4)], None),
            // Leaves of numbers are not, either.
            (vec![entry(4, 0, 7)], None),
            (vec![entry(1, 0, 0b0111)], Some("CPUID 0x1.0, ECX: 0x4")),
            (vec![entry(0x8000_0001, 0, 1 << 2)], Some("CPUID 0x80000001.0, ECX: 0x4")),
            (Vec::new(), None),
        ] {
            assert_eq!(missing(&saved, &own).as_deref(), expected);
        }
    }
}
