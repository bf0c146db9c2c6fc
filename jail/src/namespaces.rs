//! Namespaces, and an empty root.

use std::io;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};

/// Makes namespaces for this process, which has one thread. Its user and group stay what they are, and nobody else
/// exists there.
pub(crate) fn unshare() -> Result<(), (&'static str, Errno)> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let namespaces = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: no memory and no descriptor is shared with another process.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(|error| ("make namespaces", error))?;
    let maps = [
        (c"/proc/self/setgroups", "deny".to_owned()),
        (c"/proc/self/uid_map", format!("{user} {user} 1")),
        (c"/proc/self/gid_map", format!("{group} {group} 1")),
    ];
    for (path, text) in maps {
        let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        file.and_then(|file| rustix::io::write(file, text.as_bytes()))
            .map_err(|error| ("map this user in a namespace", error))?;
    }
    Ok(())
}

/// Makes an empty file system that cannot be written to the root of this process, which has a namespace of mounts.
pub(crate) fn empty_root() -> Result<(), (&'static str, Errno)> {
    let failed = |doing| move |error| (doing, error);
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make mounts private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    // Any directory does: what it hides is not reached any more.
    mount(c"jail", c"/proc", c"tmpfs", flags, c"mode=555,size=4k,nr_inodes=2")
        .map_err(failed("mount an empty file system"))?;
    rustix::process::chdir(c"/proc").map_err(failed("enter an empty file system"))?;
    // With both at the same place, the old root is on top of the new one, and is taken away there (pivot_root(2)).
    rustix::process::pivot_root(c".", c".").map_err(failed("make an empty file system the root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(failed("leave the old root"))?;
    rustix::process::chdir(c"/").map_err(failed("enter the new root"))?;
    debug_assert!(rustix::fs::openat(CWD, c"dev", OFlags::PATH, Mode::empty()).is_err());
    Ok(())
}

/// Whether this process may make another directory its root.
pub(crate) fn may_change_root() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_CHROOT))
}

/// Makes the working directory the root.
pub(crate) fn change_root() -> io::Result<()> {
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")?;
    Ok(())
}

/// Gives up all capabilities but those of `kept` that this process has, for good: it has no_new_privs set. What is not
/// inheritable is not ambient either (capabilities(7)).
///
/// The bounding set stays as it is, also where the host has no seccomp. It limits what a program that is executed may
/// get, and with no_new_privs that is nothing beyond what the process has (execve(2), prctl(2)); in a new namespace of
/// users the kernel fills it again. To empty it takes a system call for each of the 41 capabilities, a quarter of what
/// confinement would cost.
pub(crate) fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let kept = if kept.is_empty() { kept } else { kept & rustix::thread::capabilities(None)?.permitted };
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::enter::tests::in_a_process;

    /// Root's user ID is what gives a program that it executes all capabilities of the bounding set.
    #[test]
    fn a_program_of_roots_gets_no_capability_that_was_given_up() {
        if !geteuid().is_root() {
            return eprintln!("skipped: only root has capabilities");
        }
        let of_program = || {
            let status = Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8(status.stdout).unwrap();
            let of =
                |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            (of("CapEff:"), of("CapBnd:"))
        };
        for kept in [CapabilitySet::empty(), CapabilitySet::CHOWN] {
            let text = in_a_process(|| {
                crate::process::set_no_new_privs().unwrap();
                keep_capabilities(kept).unwrap();
                format!("{:?}", of_program())
            });
            // What the bounding set leaves to it is not what it gets.
            let (_, bounding) = of_program();
            assert_eq!(text, format!("{:?}", (format!("{:016x}", kept.bits()), bounding)));
        }
    }
}
