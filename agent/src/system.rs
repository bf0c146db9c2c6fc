//! The machine: its file systems, its network's loopback, its end.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::{fs, io, mem, ptr};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::DumpableBehavior;
use rustix::system::RebootCommand;

use crate::cgroup;
use crate::error::{During, Result};
use crate::network;

/// The VMM's port for the boot marker, and what init writes there (`devices::legacy::BootMarker`).
const BOOT_MARKER: u64 = 0x520;
const INIT_STARTED: u8 = 1;

/// Where the agent keeps what it needs for containers.
pub const RUN: &str = "/run";

/// The least pieces of free memory that are reported to the host, in powers of two of pages.
const REPORTING_ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// A machine with less memory has little of it, in bytes.
const SMALL_MEMORY: u64 = 256 << 20;

/// Milliseconds since the VM's boot.
pub fn uptime() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1000);
    seconds.saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000)
}

/// Flags of file systems of the kernel's that nothing is executed from.
const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts what any init needs.
pub fn mount_basics() -> Result<()> {
    for (kind, target, flags, options) in [
        ("proc", "/proc", PLAIN, c""),
        ("sysfs", "/sys", PLAIN, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755"),
        ("tmpfs", RUN, MountFlags::NOSUID | MountFlags::NODEV, c"mode=700"),
    ] {
        match mount(kind, target, kind, flags, options) {
            // The kernel has mounted it (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error).during(format!("mount {kind} on {target}")),
        }
    }
    Ok(())
}

/// The kernel's arguments.
pub fn kernel_arguments() -> Result<String> {
    fs::read_to_string("/proc/cmdline").during("read the kernel's arguments")
}

/// Mounts what containers need, and sets the loopback interface up.
pub fn prepare() -> Result<()> {
    mount("cgroup2", cgroup::TOP, "cgroup2", PLAIN, c"nsdelegate").during("mount control groups")?;
    hide()?;
    report_small_pieces();
    cgroup::make_containers()?;
    network::set_loopback_up()
}

/// Keeps others from tracing and reading this process: containers' processes and users of the guest see the copies of
/// it that are about to become commands.
pub fn hide() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).during("hide this process")
}

/// Has the kernel report free memory by pieces of 128 KiB, and not by 2 MiB alone, where there is little of it. What
/// the kernel has used until here and frees is in pieces: a sixth of what such a VM takes of the host.
fn report_small_pieces() {
    let memory = rustix::system::sysinfo();
    if u64::from(memory.mem_unit).saturating_mul(memory.totalram) <= SMALL_MEMORY {
        // Another kernel may not know it.
        let _ = fs::write(REPORTING_ORDER, "5");
    }
}

/// Tells the VMM that init runs, for the table of `mvm run --timing`: a byte to its boot-marker port.
pub fn mark_start() {
    // Without devtmpfs or the port the table lacks a line.
    let port = fs::OpenOptions::new().write(true).open("/dev/port");
    let _ = port.and_then(|port| port.write_at(&[INIT_STARTED], BOOT_MARKER));
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

/// Blocks the signal of ended children, and has it read from a descriptor.
pub fn signals() -> Result<OwnedFd> {
    // SAFETY: all zeros is a valid set; the calls change this thread's mask, which is the only one, and make a
    // descriptor, which has no other owner.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            fd if fd < 0 => Err(io::Error::last_os_error()).during("take signals"),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}
