//! The disk that takes a container's changes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use agent_protocol::PodDisk;
use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom, flock, seek};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::error::{Result, failure};

/// Bytes of a block of the file system, as the host makes it.
const BLOCK: u64 = 4096;
/// `EXT4_IOC_RESIZE_FS` of Linux's fs/ext4/ext4.h: `_IOW('f', 16, __u64)`.
const RESIZE: libc::Ioctl = 0x4008_6610_u32 as libc::Ioctl;
/// What is removed is given back to the host. Tables of inodes are zeroed when the file system grows, and not later by
/// a thread, which would keep an idle VM busy.
const OPTIONS: &std::ffi::CStr = c"discard,noinit_itable";

/// The same without a journal, and without having the host write what it has in memory: what a crash leaves is of no
/// use.
const SCRATCH: &std::ffi::CStr = c"discard,noinit_itable,noload,nobarrier";

/// Whether the disk is used again after the container's end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    Yes,
    No,
}

/// How long the kernel may take to see a disk that was put into the VM: the interrupt for it came before the request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked at. The kernel sends no event for a disk's first size.
const AGAIN: Duration = Duration::from_millis(1);

/// Waits until the kernel knows that a disk is there.
pub fn wait_for(disk: &PodDisk) -> Result<()> {
    let PodDisk { device, sectors } = disk;
    let deadline = Instant::now() + PATIENCE;
    while size_of(device) != Some(*sectors) {
        if Instant::now() >= deadline {
            return Err(failure(format!("disk {device} does not become {sectors} sectors large")));
        }
        std::thread::sleep(AGAIN);
    }
    Ok(())
}

/// The sectors of a block device, as the kernel knows it.
fn size_of(device: &str) -> Option<u64> {
    let name = device.strip_prefix("/dev/")?;
    fs::read_to_string(format!("/sys/class/block/{name}/size")).ok()?.trim().parse().ok()
}

/// Whether no file system is on `device`, whose last one was written to it then.
pub fn is_free(device: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    !matches!(rustix::fs::open(device, flags, Mode::empty()), Err(Errno::BUSY))
}

/// Mounts the ext4 on `device` at `place`, and grows it to the size of the device.
pub fn mount(device: &str, place: &str, lasts: Lasts) -> io::Result<()> {
    let options = if lasts == Lasts::Yes { OPTIONS } else { SCRATCH };
    rustix::mount::mount(device, place, "ext4", MountFlags::NOATIME | MountFlags::NODEV, options)?;
    let disk = File::open(device)?;
    let blocks = seek(&disk, SeekFrom::End(0))? / BLOCK;
    // The first block is in memory, as the kernel has read it to mount it.
    let mut first = [0; FIRST];
    disk.read_exact_at(&mut first, 0)?;
    if blocks_in(&first) >= blocks {
        // The kernel would write to the disk and wait for that to find this out.
        return Ok(());
    }
    let root = File::open(place)?;
    // Containers of a pod may have the same disk, and one of them grows it.
    flock(&root, FlockOperation::LockExclusive)?;
    disk.read_exact_at(&mut first, 0)?;
    if blocks_in(&first) >= blocks {
        return Ok(());
    }
    // SAFETY: the kernel reads the number, which lives until the call returns.
    match unsafe { libc::ioctl(root.as_raw_fd(), RESIZE, &raw const blocks) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first bytes of a disk, which have its superblock.
const FIRST: usize = 4096;
/// Where in them the number of blocks is: its lower half, and the upper one (`s_blocks_count_lo` and `_hi` of Linux's
/// fs/ext4/ext4.h, in the superblock at byte 1024). A disk of 1 TiB has fewer than 2^32.
const COUNTS: [usize; 2] = [1024 + 0x4, 1024 + 0x150];

/// How many blocks the file system has.
fn blocks_in(first: &[u8; FIRST]) -> u64 {
    let number = |at: usize| {
        let bytes = first.get(at..)?.first_chunk()?;
        Some(u64::from(u32::from_le_bytes(*bytes)))
    };
    let [low, high] = COUNTS.map(|at| number(at).unwrap_or(0));
    high << 32 | low
}
