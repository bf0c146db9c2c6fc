//! What the console says of a guest's crash, and what usually causes it.

use crate::VmConfig;

/// What Linux says first when it panics (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";
/// What an orderly end says behind that, where the text of a panic was merely shown before it.
const ORDERLY: [&str; 3] = ["reboot: Restarting system", "reboot: Power down", "Linux version "];
/// The most characters of a message that are kept.
const LONGEST: usize = 200;

/// What usually causes a triple fault before the guest's first word, and what to do about it.
pub(crate) const SILENT_CRASH: &str = "the guest crashed before its first output: --kernel may be damaged or made for \
    other hardware, or need more --memory; --append earlyprintk=serial,ttyS0 shows a kernel's first messages";
/// What usually causes an internal error of KVM, and what to do about it.
pub(crate) const INTERNAL_ERROR: &str = "this host's KVM cannot run what the guest did: `mvm doctor` says whether the \
    host has hardware virtualization, without which Linux does not boot";

/// What a VM has that Linux can start from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given {
    rootfs: bool,
    initrd: bool,
}

impl From<&VmConfig> for Given {
    fn from(config: &VmConfig) -> Self {
        Self { rootfs: config.rootfs.is_some(), initrd: config.initrd.is_some() }
    }
}

/// The message of the panic with which `output` ends, in printable characters; `None` where it ends otherwise.
pub(crate) fn panic_message(output: &str) -> Option<String> {
    let (before, after) = output.rsplit_once(PANIC)?;
    // Linux puts a time in brackets before a line, if anything.
    let line = before.rsplit('\n').next().unwrap_or_default();
    let prefix = line.trim_start();
    let is_kernels = prefix.is_empty() || prefix.starts_with('[') && prefix.ends_with("] ");
    if !is_kernels || ORDERLY.iter().any(|end| after.contains(end)) {
        return None;
    }
    let message = after.lines().next().unwrap_or_default().trim_end();
    Some(message.chars().filter(|character| !character.is_control()).take(LONGEST).collect())
}

/// What usually causes the panic with `message`, and what to do about it, for a VM that has what is `given`. `output`
/// is what the console showed before.
pub(crate) fn hint(message: &str, output: &str, given: Given) -> Option<&'static str> {
    let said = |text: &str| output.contains(text);
    if message.contains("Unable to mount root fs") || message.contains("Cannot open root device") {
        return Some(no_root(message, output, given));
    }
    if message.contains("No working init found") {
        return Some(
            "the root file system has no init that can be executed: Linux tries /sbin/init, /etc/init, /bin/init and \
             /bin/sh; name another one with --append init=PATH",
        );
    }
    if message.starts_with("Requested init ") {
        return Some(match message {
            message if message.contains("error -13") => {
                "the init of init= is not executable: chmod +x it in the root file system"
            }
            message if message.contains("error -8") => {
                "the init of init= is not a program for this processor, and no script that begins with #!"
            }
            _ => {
                "the root file system does not have the init of init=, or not the interpreter or loader that it names: \
                 correct --append init=PATH"
            }
        });
    }
    if message.contains("Attempted to kill init") {
        return Some(
            "the guest's init ended, which Linux does not allow: let it power off (poweroff -f) when it is done",
        );
    }
    if message.contains("deadlocked on memory") || message.contains("Out of memory") || said("Out of memory")
    {
        return Some("the guest has too little memory: give it more with --memory");
    }
    if message.contains("IO-APIC + timer") {
        return Some(
            "the guest finds no timer: remove acpi=off, noapic and nolapic from --append or --cmdline",
        );
    }
    None
}

fn no_root(message: &str, output: &str, given: Given) -> &'static str {
    let said = |text: &str| output.contains(text);
    if said("Initramfs unpacking failed") || said("junk at the end of compressed archive") {
        return "the kernel cannot unpack the --initrd: it may be incomplete, compressed in a way that the kernel does \
            not know, or larger than --memory allows";
    }
    // Linux has found the device where it has a number other than 0.
    let found = !message.contains("unknown-block(0,0)") && message.contains("unknown-block(");
    match (found, given.rootfs, given.initrd) {
        (true, ..) => {
            "the kernel finds the disk, but no file system on it that it knows: where the disk has partitions, add \
             --append root=/dev/vda1; where the file system's driver is a module, give the kernel's --initrd"
        }
        (false, false, false) => {
            "the guest has no root file system: give a disk with --rootfs or an --initrd"
        }
        (false, false, true) => {
            "the --initrd has no /init that can be executed: add --append rdinit=PATH where it has another one"
        }
        (false, true, _) => {
            "the kernel does not find the disk: it has no drivers for virtio_mmio and virtio_blk built in, as most \
            kernels of distributions: give the --initrd that belongs to it"
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const TRACE: &str = "\r\n[    1.2] CPU: 0 PID: 1 Comm: swapper/0\r\n[    1.2] Call Trace:\r\n[    1.2]  <TASK>\r\n\
                         [    1.2]  panic+0x118/0x2f0\r\n[    1.2] Kernel Offset: disabled\r\n";

    #[rstest]
    #[case::with_time(
        "x\r\n[    1.234567] Kernel panic - not syncing: Fatal exception",
        Some("Fatal exception")
    )]
    #[case::without_time(
        "x\nKernel panic - not syncing: sysrq triggered crash\r\n",
        Some("sysrq triggered crash")
    )]
    #[case::with_caller("\n[    1.2][    T1] Kernel panic - not syncing: A", Some("A"))]
    #[case::the_last("Kernel panic - not syncing: A\nKernel panic - not syncing: B\n", Some("B"))]
    #[case::escapes("Kernel panic - not syncing: \x1b[31mred\x07\n", Some("[31mred"))]
    #[case::none("[ 1.2] reboot: Restarting system\n", None)]
    #[case::merely_shown("# echo Kernel panic - not syncing: A\n", None)]
    #[case::of_the_kernel_before("Kernel panic - not syncing: A\n[ 0.0] Linux version 6.1\n", None)]
    #[case::from_a_log("[ 1.2] Kernel panic - not syncing: A\n[ 9.9] reboot: Restarting system\n", None)]
    fn a_panic_is_what_the_kernel_said_last(#[case] output: &str, #[case] message: Option<&str>) {
        assert_eq!(panic_message(output).as_deref(), message);
        let with_trace = format!("{output}{TRACE}");
        assert_eq!(panic_message(&with_trace).as_deref(), message);
    }

    /// Each message as Linux has it (init/do_mounts.c, init/main.c, kernel/exit.c, mm/oom_kill.c).
    #[rstest]
    #[case(
        "VFS: Unable to mount root fs on unknown-block(0,0)",
        "",
        "",
        "give a disk with --rootfs or an --initrd"
    )]
    #[case("VFS: Unable to mount root fs on unknown-block(0,0)", "", "rootfs", "virtio_blk built in")]
    #[case(
        "VFS: Unable to mount root fs on \"/dev/vda\" or unknown-block(0,0)",
        "",
        "rootfs",
        "give the --initrd"
    )]
    #[case("VFS: Unable to mount root fs on unknown-block(0,0)", "", "initrd", "rdinit=PATH")]
    #[case("VFS: Unable to mount root fs on unknown-block(254,0)", "", "rootfs", "root=/dev/vda1")]
    #[case(
        "VFS: Unable to mount root fs on unknown-block(0,0)",
        "Initramfs unpacking failed: write error",
        "initrd",
        "cannot unpack"
    )]
    #[case("No working init found.  Try passing init= option to kernel.", "", "rootfs", "--append init=PATH")]
    #[case("Requested init /missing failed (error -2).", "", "rootfs", "does not have the init")]
    #[case("Requested init /etc/passwd failed (error -13).", "", "rootfs", "chmod +x")]
    #[case("Requested init /bin/arm failed (error -8).", "", "rootfs", "this processor")]
    #[case("Attempted to kill init! exitcode=0x00000000", "", "rootfs", "poweroff -f")]
    #[case("Out of memory and no killable processes...", "", "rootfs", "--memory")]
    #[case("System is deadlocked on memory", "", "rootfs", "--memory")]
    #[case("IO-APIC + timer doesn't work!  Boot with apic=debug", "", "rootfs", "acpi=off")]
    fn a_common_panic_comes_with_what_to_do(
        #[case] message: &str,
        #[case] before: &str,
        #[case] has: &str,
        #[case] expected: &str,
    ) {
        let given = Given { rootfs: has == "rootfs", initrd: has == "initrd" };
        let output = format!("[ 0.5] {before}\r\n[ 1.2] Kernel panic - not syncing: {message}{TRACE}");
        assert_eq!(panic_message(&output).as_deref(), Some(message));
        let hint = hint(message, &output, given).unwrap_or_default();
        assert!(hint.contains(expected), "{hint}");
    }

    #[test]
    fn a_panic_of_an_unknown_kind_has_no_hint() {
        assert_eq!(hint("sysrq triggered crash", "", Given::default()), None);
    }

    proptest! {
        #[test]
        fn any_output_is_survived(output in any::<String>(), after in any::<String>()) {
            if let Some(message) = panic_message(&format!("{output}\n{PANIC}{after}")) {
                prop_assert!(!message.contains(char::is_control));
                prop_assert!(message.chars().count() <= LONGEST);
            }
        }
    }
}
