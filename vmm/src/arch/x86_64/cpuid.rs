//! What CPUID tells the guest: the features that KVM can give, a topology of one package with as many
//! single-threaded cores as there are vCPUs, and the frequency of the TSC.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::vcpu::Processor;
use crate::kvm::KvmError;

/// Leaves of CPUID (Intel SDM volume 2A, AMD APM volume 3 appendix E, KVM's `cpuid.rst`).
mod leaf {
    pub(super) const VENDOR: u32 = 0;
    pub(super) const FEATURES: u32 = 1;
    pub(super) const CACHES: u32 = 4;
    pub(super) const COUNTERS: u32 = 0xa;
    pub(super) const TOPOLOGY: u32 = 0xb;
    pub(super) const TOPOLOGY_V2: u32 = 0x1f;
    pub(super) const HYPERVISOR: u32 = 0x4000_0000;
    pub(super) const HYPERVISOR_TIMING: u32 = 0x4000_0010;
    pub(super) const AMD_FEATURES: u32 = 0x8000_0001;
    pub(super) const AMD_SIZES: u32 = 0x8000_0008;
    /// The bit that those have which AMD has added.
    pub(super) const AMD_RANGE: u32 = 0x8000_0000;
    pub(super) const AMD_SVM: u32 = 0x8000_000a;
    pub(super) const AMD_CACHES: u32 = 0x8000_001d;
    pub(super) const AMD_TOPOLOGY: u32 = 0x8000_001e;
    pub(super) const AMD_COUNTERS: u32 = 0x8000_0022;
}

/// Leaf 1, ECX: Intel's virtualization.
const VMX: u32 = 1 << 5;
/// Leaf 1, ECX: Intel's counters have a register of capabilities (PDCM).
const COUNTER_CAPABILITIES: u32 = 1 << 15;
/// Leaf 0x8000_0001, ECX: AMD's counters of cores, of the northbridge and of the last cache.
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
/// Leaf 0x8000_0001, ECX: AMD's virtualization, whose features are in leaf 0x8000_000a.
const SVM: u32 = 1 << 2;
/// Leaf 1, ECX: the local APIC has the TSC-deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: the kernel has switched XSAVE on.
const OS_XSAVE: u32 = 1 << 27;
/// Leaf 1, ECX: a hypervisor is there.
const HYPERVISOR_PRESENT: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical processor (HTT).
const MULTIPLE_PROCESSORS: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: those are cores, not threads.
const CORES_ARE_LEGACY: u32 = 1 << 1;
/// What KVM's local APIC timer counts in, in kHz.
const APIC_TIMER_KHZ: u32 = 1_000_000;

/// What the host's processor says that it is and can, by which another one is told apart.
pub fn identity() -> Vec<u32> {
    use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};
    let leaves = [
        (leaf::VENDOR, 0),
        (leaf::FEATURES, 0),
        (7, 0),
        (7, 1),
        (0xd, 1),
        (leaf::AMD_FEATURES, 0),
        (leaf::AMD_SIZES, 0),
    ];
    let known = leaves.into_iter().filter(|(leaf, _)| __get_cpuid_max(leaf & leaf::AMD_RANGE).0 >= *leaf);
    let words = known.flat_map(|(number, index)| {
        let found = __cpuid_count(number, index);
        // Which of the processors this is, and what the kernel has switched on since.
        let (ebx, ecx) = match number {
            leaf::FEATURES => (found.ebx & 0xff00, found.ecx & !OS_XSAVE),
            0xd => (0, found.ecx),
            _ => (found.ebx, found.ecx),
        };
        [found.eax, ebx, ecx, found.edx]
    });
    words.collect()
}

/// Kinds of topology levels in leaves 0xb and 0x1f.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The CPUID of a VM with `cpus` vCPUs, before what differs between them.
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u32,
}

impl CpuidTemplate {
    /// Asks KVM for what it can give a VM of `processor`. The processor's virtualization is for a guest that has
    /// `nested` VMs, its performance counters are for one with a `pmu`, and both are kept from any other: a guest
    /// cannot attack code of KVM's that it does not reach.
    ///
    /// # Errors
    ///
    /// [`KvmError::Call`].
    pub fn new(kvm: &Kvm, processor: Processor, tsc_khz: Option<u32>) -> Result<Self, KvmError> {
        let cpus = processor.cpus;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call("ask KVM for the CPUID that it supports"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let mut entries = common(supported.as_slice(), cpus, tsc_khz, deadline);
        if !processor.nested {
            hide_virtualization(&mut entries);
        }
        if !processor.pmu {
            hide_counters(&mut entries);
        }
        Ok(Self { entries, cpus })
    }

    /// The CPUID of the vCPU whose APIC ID is `id`.
    ///
    /// # Errors
    ///
    /// [`KvmError::Call`] where there are more entries than KVM takes.
    pub fn of(&self, id: u32) -> Result<CpuId, KvmError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            personalize(entry, id, self.cpus);
        }
        CpuId::from_entries(&entries).map_err(|_| KvmError::Call {
            doing: "build the CPUID of a vCPU",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })
    }

    /// Whether the guest has Intel's virtualization.
    pub fn has_vmx(&self) -> bool {
        self.entries.iter().any(|entry| entry.function == leaf::FEATURES && entry.ecx & VMX != 0)
    }

    /// Whether the guest has AMD's virtualization.
    pub fn has_svm(&self) -> bool {
        self.entries.iter().any(|entry| entry.function == leaf::AMD_FEATURES && entry.ecx & SVM != 0)
    }

    /// How many bits of a physical address the guest has.
    pub fn physical_bits(&self) -> u32 {
        let sizes = self.entries.iter().find(|entry| entry.function == leaf::AMD_SIZES);
        // Without the leaf there are 36 (Intel SDM, CPUID).
        sizes.map_or(36, |entry| entry.eax & 0xff)
    }
}

fn hide_virtualization(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|entry| entry.function != leaf::AMD_SVM);
    for entry in entries {
        match entry.function {
            leaf::FEATURES => entry.ecx &= !VMX,
            leaf::AMD_FEATURES => entry.ecx &= !SVM,
            _ => {}
        }
    }
}

/// Hides the performance counters: KVM gives a guest without their leaf none (Intel), or but those that every processor
/// of AMD's has.
fn hide_counters(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|entry| !matches!(entry.function, leaf::COUNTERS | leaf::AMD_COUNTERS));
    for entry in entries {
        match entry.function {
            leaf::FEATURES => entry.ecx &= !COUNTER_CAPABILITIES,
            leaf::AMD_FEATURES => entry.ecx &= !AMD_COUNTERS,
            _ => {}
        }
    }
}

/// The number of bits that hold IDs of `cpus` vCPUs.
fn id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

fn common(
    supported: &[kvm_cpuid_entry2],
    cpus: u32,
    tsc_khz: Option<u32>,
    deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let remade = [leaf::TOPOLOGY, leaf::TOPOLOGY_V2, leaf::HYPERVISOR_TIMING];
    let kept = supported.iter().filter(|entry| !remade.contains(&entry.function));
    let mut entries: Vec<_> = kept.copied().collect();
    for entry in &mut entries {
        match entry.function {
            leaf::VENDOR => entry.eax = entry.eax.max(leaf::TOPOLOGY),
            leaf::FEATURES => {
                entry.ecx |= HYPERVISOR_PRESENT | if deadline { TSC_DEADLINE } else { 0 };
                entry.edx = entry.edx & !MULTIPLE_PROCESSORS | if cpus > 1 { MULTIPLE_PROCESSORS } else { 0 };
            }
            leaf::CACHES if entry.eax & 0x1f != 0 => {
                entry.eax = cache_sharing(entry.eax, cpus) & 0x03ff_ffff | ((cpus - 1) & 0x3f) << 26;
            }
            leaf::AMD_CACHES if entry.eax & 0x1f != 0 => entry.eax = cache_sharing(entry.eax, cpus),
            leaf::AMD_FEATURES => {
                entry.ecx = entry.ecx & !CORES_ARE_LEGACY | if cpus > 1 { CORES_ARE_LEGACY } else { 0 };
            }
            leaf::AMD_SIZES => entry.ecx = id_bits(cpus) << 12 | (cpus - 1),
            leaf::HYPERVISOR if tsc_khz.is_some() => {
                entry.eax = entry.eax.max(leaf::HYPERVISOR_TIMING);
            }
            _ => {}
        }
    }
    let max_leaf = entries.iter().find(|entry| entry.function == leaf::VENDOR).map_or(0, |entry| entry.eax);
    entries.extend(topology(leaf::TOPOLOGY, cpus));
    if max_leaf >= leaf::TOPOLOGY_V2 {
        entries.extend(topology(leaf::TOPOLOGY_V2, cpus));
    }
    if let Some(khz) = tsc_khz {
        entries.push(kvm_cpuid_entry2 {
            function: leaf::HYPERVISOR_TIMING,
            eax: khz,
            ebx: APIC_TIMER_KHZ,
            ..Default::default()
        });
    }
    entries
}

/// EAX of a cache leaf: caches of level 1 and 2 belong to a core, the others to the package.
fn cache_sharing(eax: u32, cpus: u32) -> u32 {
    let level = eax >> 5 & 0b111;
    let sharing = if level < 3 { 0 } else { cpus - 1 };
    eax & !(0xfff << 14) | (sharing & 0xfff) << 14
}

/// Threads, cores, and the empty level that ends the list.
fn topology(function: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, bits: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: bits,
        ebx: count,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_THREAD), level(1, id_bits(cpus), cpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

fn personalize(entry: &mut kvm_cpuid_entry2, id: u32, cpus: u32) {
    match entry.function {
        leaf::FEATURES => {
            let count = cpus.next_power_of_two().min(255);
            entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | id << 24;
        }
        leaf::TOPOLOGY | leaf::TOPOLOGY_V2 => entry.edx = id,
        leaf::AMD_TOPOLOGY => {
            entry.eax = id;
            // The core's ID; threads of the core less one stay zero.
            entry.ebx = id & 0xff;
            // Node 0 of one node.
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    fn template(cpus: u32) -> CpuidTemplate {
        let cache = |level: u32| 1 | level << 5 | 0xfff << 14;
        let supported = [
            entry(leaf::VENDOR, 0, 0xd),
            entry(leaf::FEATURES, 0, 0),
            entry(leaf::CACHES, 0, cache(1)),
            entry(leaf::CACHES, 3, cache(3)),
            entry(leaf::TOPOLOGY, 0, 7),
            entry(leaf::TOPOLOGY, 1, 7),
            entry(leaf::HYPERVISOR, 0, 0x4000_0001),
            entry(leaf::AMD_FEATURES, 0, 0),
            entry(leaf::AMD_SIZES, 0, 48),
            entry(leaf::AMD_TOPOLOGY, 0, 0),
        ];
        CpuidTemplate { entries: common(&supported, cpus, Some(2_600_000), true), cpus }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let matches = |entry: &&kvm_cpuid_entry2| entry.function == function && entry.index == index;
        let found: Vec<_> = cpuid.as_slice().iter().filter(matches).collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
        *found[0]
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_in_every_leaf_that_has_one() {
        let template = template(6);
        for id in 0..6 {
            let cpuid = template.of(id).unwrap();
            assert_eq!(find(&cpuid, leaf::FEATURES, 0).ebx >> 16, id << 8 | 8);
            assert_eq!(find(&cpuid, leaf::TOPOLOGY, 0).edx, id);
            assert_eq!(find(&cpuid, leaf::TOPOLOGY, 1).edx, id);
            assert_eq!(find(&cpuid, leaf::AMD_TOPOLOGY, 0).eax, id);
        }
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (254, 8)] {
            let cpuid = template(cpus).of(0).unwrap();
            let thread = find(&cpuid, leaf::TOPOLOGY, 0);
            assert_eq!((thread.eax, thread.ebx, thread.ecx), (0, 1, 0x100));
            let core = find(&cpuid, leaf::TOPOLOGY, 1);
            assert_eq!((core.eax, core.ebx, core.ecx), (bits, cpus, 0x201));
            assert_eq!(find(&cpuid, leaf::TOPOLOGY, 2).ecx, 2);
            assert_eq!(find(&cpuid, leaf::AMD_SIZES, 0).ecx, bits << 12 | (cpus - 1));
            assert_eq!(find(&cpuid, leaf::FEATURES, 0).edx >> 28, u32::from(cpus > 1));
        }
    }

    #[test]
    fn inner_caches_are_private_and_the_outer_one_is_shared() {
        let cpuid = template(4).of(0).unwrap();
        assert_eq!(find(&cpuid, leaf::CACHES, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&cpuid, leaf::CACHES, 3).eax >> 14 & 0xfff, 3);
        assert_eq!(find(&cpuid, leaf::CACHES, 3).eax >> 26, 3);
    }

    #[test]
    fn the_hypervisor_leaf_gives_the_frequency_of_the_tsc() {
        let cpuid = template(1).of(0).unwrap();
        assert_eq!(find(&cpuid, leaf::HYPERVISOR, 0).eax, leaf::HYPERVISOR_TIMING);
        let timing = find(&cpuid, leaf::HYPERVISOR_TIMING, 0);
        assert_eq!((timing.eax, timing.ebx), (2_600_000, 1_000_000));
        assert_eq!(find(&cpuid, leaf::FEATURES, 0).ecx, TSC_DEADLINE | HYPERVISOR_PRESENT);
    }

    #[test]
    fn performance_counters_are_there_until_they_are_hidden() {
        let mut template = template(1);
        let (features, amd) = (HYPERVISOR_PRESENT | COUNTER_CAPABILITIES, SVM | AMD_COUNTERS);
        template.entries.retain(|entry| !matches!(entry.function, leaf::FEATURES | leaf::AMD_FEATURES));
        for (function, ecx) in [
            (leaf::FEATURES, features),
            (leaf::AMD_FEATURES, amd),
            (leaf::COUNTERS, 1),
            (leaf::AMD_COUNTERS, 1),
        ] {
            template.entries.push(kvm_cpuid_entry2 { function, ecx, ..Default::default() });
        }
        hide_counters(&mut template.entries);
        let left = |function| {
            template.entries.iter().find(|entry| entry.function == function).map(|entry| entry.ecx)
        };
        assert_eq!(left(leaf::FEATURES), Some(HYPERVISOR_PRESENT));
        assert_eq!(left(leaf::AMD_FEATURES), Some(SVM));
        assert_eq!((left(leaf::COUNTERS), left(leaf::AMD_COUNTERS)), (None, None));
    }

    #[test]
    fn virtualization_is_there_until_it_is_hidden() {
        let mut template = template(1);
        assert!(!template.has_vmx() && !template.has_svm());
        for entry in &mut template.entries {
            match entry.function {
                leaf::FEATURES => entry.ecx |= VMX,
                leaf::AMD_FEATURES => entry.ecx |= SVM,
                _ => {}
            }
        }
        template.entries.push(entry(leaf::AMD_SVM, 0, 1));
        assert!(template.has_vmx() && template.has_svm());
        let before = template.entries.len();
        hide_virtualization(&mut template.entries);
        assert!(!template.has_vmx() && !template.has_svm());
        assert_eq!(template.entries.len(), before - 1);
    }

    #[test]
    fn the_address_width_is_the_hosts() {
        assert_eq!(template(1).physical_bits(), 48);
    }
}
