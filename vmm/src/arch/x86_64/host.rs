//! What `mvm doctor` says of an x86_64 host: its processor, and the module of KVM for it.

use std::fs;

use kvm_ioctls::{Cap, Kvm};

use crate::check::Check;

/// The processor's extension for virtualization, where /proc/cpuinfo has it.
fn extension(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|extension| flags.split_whitespace().any(|flag| flag == *extension))
}

pub(crate) fn processor(cpuinfo: &str) -> Check {
    const NAME: &str = "processor";
    match extension(cpuinfo) {
        Some(extension) => Check::good(NAME, format!("hardware virtualization ({extension})")),
        None if cpuinfo.split_whitespace().any(|flag| flag == "hypervisor") => Check::bad(
            NAME,
            "no hardware virtualization (neither vmx nor svm): this host is a VM without nesting",
            "enable nested virtualization on the outer host; if /dev/kvm exists nevertheless, it interprets guests, \
             and Linux does not boot on it",
        ),
        None => Check::bad(
            NAME,
            "no hardware virtualization (neither vmx nor svm)",
            "enable it in the firmware, where it may be called VT-x, AMD-V or SVM",
        ),
    }
}

/// The module of KVM for this processor.
pub(crate) fn module(cpuinfo: &str) -> Option<&'static str> {
    extension(cpuinfo).map(|extension| if extension == "svm" { "kvm_amd" } else { "kvm_intel" })
}

pub(crate) fn timer(kvm: &Kvm) -> Check {
    const NAME: &str = "timer";
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        Check::good(NAME, "guests have the TSC-deadline timer")
    } else {
        Check::poor(NAME, "guests have no TSC-deadline timer and start more slowly", "use a newer kernel")
    }
}

/// A parameter of the KVM module that is loaded.
fn module_parameter(names: [&str; 2]) -> Option<(String, bool)> {
    ["kvm_amd", "kvm_intel"].into_iter().zip(names).find_map(|(module, name)| {
        let path = format!("/sys/module/{module}/parameters/{name}");
        let value = fs::read_to_string(path).ok()?;
        Some((format!("{module}.{name}"), matches!(value.trim(), "Y" | "1")))
    })
}

pub(crate) fn nested_paging() -> Check {
    const NAME: &str = "nested paging";
    match module_parameter(["npt", "ept"]) {
        Some((name, true)) => Check::good(NAME, format!("on ({name})")),
        Some((name, false)) => Check::poor(
            NAME,
            format!("off ({name})"),
            format!("load the module with {name}=1: guests run faster"),
        ),
        None => Check::poor(
            NAME,
            "neither kvm_amd nor kvm_intel is loaded",
            "if /dev/kvm exists nevertheless, it interprets guests, slowly and not all of them",
        ),
    }
}

pub(crate) fn nesting() -> Check {
    const NAME: &str = "VMs in guests";
    match module_parameter(["nested", "nested"]) {
        Some((name, true)) => Check::good(NAME, format!("possible with --nested ({name})")),
        Some((name, false)) => Check::poor(
            NAME,
            format!("not possible ({name} is off)"),
            format!("load the module with {name}=1"),
        ),
        None => Check::poor(NAME, "not possible", "load kvm_amd or kvm_intel with nested=1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_found_as_whole_words() {
        assert_eq!(extension("flags\t: fpu svm lm\n"), Some("svm"));
        assert_eq!(extension("flags\t: fpu vmx lm\n"), Some("vmx"));
        assert_eq!(extension("flags\t: fpu svm_lock lm\n"), None);
        assert_eq!(extension("model name\t: svm\n"), None);
    }
}
