//! The same for kernels of distributions, each of whose boots takes many seconds.

use rstest::rstest;
use rustix::process::Signal;
use tests::{Boot, Guest, debian_kernel, from_environment, initrd};

/// Debian's kernels have EFI, so that they end otherwise than mvm's own; their pvpanic driver is a module that is not
/// there.
const DEBIAN: &[(&str, &str, i32, &str)] = &[
    ("poweroff -f", "", 0, "Power down"),
    ("reboot -f", "", 0, "Restarting system"),
    ("reboot -f", "reboot=a", 0, "Restarting system"),
    ("reboot -f", "reboot=k", 0, "Restarting system"),
    ("reboot -f", "reboot=p", 0, "Restarting system"),
    ("reboot -f", "reboot=e", 0, "Restarting system"),
    ("reboot -f", "reboot=b", 0, "Restarting system"),
    ("reboot -f", "reboot=t", 4, "triple fault"),
    ("echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger", "", 0, "Resetting"),
    ("echo 1 >/proc/sys/kernel/sysrq; echo o >/proc/sysrq-trigger", "", 0, "Power"),
    (
        "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
        "",
        4,
        "kernel panicked: sysrq triggered crash",
    ),
    ("exec true", "", 4, "kernel panicked: Attempted to kill init!"),
];

/// The smallest kernel in every way; the others in those that do not go by an argument, since each takes a boot of many
/// seconds.
#[rstest]
#[case::cloud("MVM_DEBIAN_KERNEL", true)]
#[case::real_time("MVM_DEBIAN_RT_KERNEL", false)]
#[case::newest("MVM_DEBIAN_NEWEST_KERNEL", false)]
fn debians_kernels_end_in_every_way(#[case] kernel: &str, #[case] by_argument: bool) {
    for (command, argument, code, said) in DEBIAN {
        if !argument.is_empty() && !by_argument {
            continue;
        }
        let outcome = debian(kernel, argument, command).finish();
        let outcome = outcome.expect_code(*code).expect(said);
        println!("{kernel} {command:?} {argument:?}: {}", outcome.status);
    }
}

/// A shell of one of Debian's kernels, as its first process, to which `command` was typed. Its disk drivers are modules
/// that the initrd does not have, so that no script can be given.
fn debian(kernel: &str, argument: &str, command: &str) -> Guest {
    let boot = Boot::new().flag("--kernel", from_environment(kernel)).flag("--initrd", initrd());
    let boot = boot.flag("--memory", "256M").flag("--stop-timeout", "2s").append("loglevel=6");
    let mut guest = boot.append(argument).append("rdinit=/bin/sh").start();
    guest.wait_for("can't access tty");
    guest.type_text(&format!("mount -t proc proc /proc; {command}\n"));
    guest
}

#[rstest]
#[case::cloud("MVM_DEBIAN_KERNEL")]
#[case::real_time("MVM_DEBIAN_RT_KERNEL")]
#[case::newest("MVM_DEBIAN_NEWEST_KERNEL")]
fn a_halted_guest_ends_when_it_is_asked_to(#[case] kernel: &str) {
    let mut guest = debian(kernel, "", "halt -f");
    guest.wait_for("System halted");
    guest.signal(Signal::TERM);
    let outcome = guest.finish().expect_code(143);
    assert!(outcome.errors.contains("SIGTERM: pressed the power button; forcing in 2 s"), "{outcome}");
}

#[test]
fn a_distributions_kernel_without_its_initrd_says_what_is_missing() {
    let outcome = Boot::new().flag("--kernel", debian_kernel()).run().expect_code(4);
    assert!(
        outcome.errors.contains("Unable to mount root fs") && outcome.errors.contains("--initrd"),
        "{outcome}"
    );
}
