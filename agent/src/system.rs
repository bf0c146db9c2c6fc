//! The machine: its file systems, its network's loopback, its end.

use std::fs;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;

use crate::cgroup;
use crate::error::{During, Result};
use crate::network;

/// Where the agent keeps what it needs for containers.
pub const RUN: &str = "/run";

/// Mounts what the agent and containers need, and sets the loopback interface up.
pub fn prepare() -> Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, target, flags, options) in [
        ("proc", "/proc", plain, c""),
        ("sysfs", "/sys", plain, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755"),
        ("tmpfs", RUN, MountFlags::NOSUID | MountFlags::NODEV, c"mode=700"),
        ("cgroup2", cgroup::TOP, plain, c"nsdelegate"),
    ] {
        match mount(kind, target, kind, flags, options) {
            // The kernel has mounted it (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error).during(format!("mount {kind} on {target}")),
        }
    }
    cgroup::enable_controllers();
    network::set_loopback_up()
}

/// Writes everything to the disks and powers the machine off.
pub fn power_off() -> ! {
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    // Without power-off, init's end is a panic, after which the machine resets.
    std::process::exit(1)
}

/// Writes `value` to a file of the kernel's.
pub fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).during(format!("write {value:?} to {path}"))
}
