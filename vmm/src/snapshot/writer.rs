//! A copy of the VM's process that writes the RAM as it is now (fork(2)), while the VM goes on: pages that the guest
//! changes meanwhile are copied by the host's kernel.
//!
//! Other threads may hold locks at that moment, those of malloc as well, and none of them is in the copy. So the copy
//! makes system calls, looks at the RAM, and does nothing else; it has the filter of the thread that has made it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use vm_memory::GuestMemoryMmap;

use super::memory::{self, Extent};

/// How long it may take to write.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// What clone(2) is called with: the copy has nothing in common with this process, which gets a descriptor for it.
pub const CLONE_FLAGS: u32 = (libc::CLONE_PIDFD | libc::SIGCHLD).cast_unsigned();
/// The greatest exit code: no error has this number.
const UNKNOWN: i32 = 255;

/// A copy that writes.
pub struct Writer {
    process: OwnedFd,
    end: Instant,
}

impl Writer {
    /// Has all of `memory`, which does not change until this returns, written to `file`, which is empty.
    ///
    /// # Errors
    ///
    /// The host makes no process; nothing has been written.
    pub fn start(memory: &GuestMemoryMmap, file: &File) -> io::Result<Self> {
        let extents = memory::extents(memory, file)?;
        let (file, parent, mut process) = (file.as_raw_fd(), std::process::id(), -1);
        // SAFETY: the copy does what the head of this file says. The kernel writes a descriptor to `process`.
        let copy = unsafe {
            let process = &raw mut process;
            libc::syscall(
                libc::SYS_clone,
                libc::c_long::from(CLONE_FLAGS),
                0_usize,
                process,
                0_usize,
                0_usize,
            )
        };
        match copy {
            0 => {
                // SAFETY: this is the copy; the regions are mapped in it as well.
                let code = unsafe { write_alone(&extents, file, parent) };
                // SAFETY: it ends the process.
                unsafe { libc::_exit(code) }
            }
            1.. => {
                // SAFETY: the descriptor is new, and has no other owner.
                let process = unsafe { OwnedFd::from_raw_fd(process) };
                Ok(Self { process, end: Instant::now() + LIMIT })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until all has been written.
    ///
    /// # Errors
    ///
    /// Why not; [`io::ErrorKind::TimedOut`] after a quarter of an hour.
    pub fn wait(self) -> io::Result<()> {
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&timeout)) {
                Ok(1..) => break,
                // It ends with this process, if not before.
                Ok(_) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let status = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED)?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            Some(code) if code != UNKNOWN => Err(io::Error::from_raw_os_error(code)),
            _ => Err(io::Error::other("the process that wrote it was ended")),
        }
    }
}

/// Writes `extents` to `file`, as long as `parent` is there. Returns 0, or the error's number.
///
/// # Safety
///
/// The regions are mapped, and the process has one thread.
unsafe fn write_alone(extents: &[Extent], file: RawFd, parent: u32) -> i32 {
    let goes_on = || {
        // SAFETY: the call has no argument.
        unsafe { libc::syscall(libc::SYS_getppid) == libc::c_long::from(parent) }
    };
    // The VM's end is not to wait for this process: it has KVM's descriptors, and locks of disks.
    let own = file.cast_unsigned();
    let others = [own.checked_sub(1).map(|last| (0, last)), Some((own + 1, u32::MAX))];
    for (first, last) in others.into_iter().flatten() {
        // SAFETY: the descriptors are this process's own, and it uses none of them.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
    }
    // SAFETY: the regions are copies, which no other thread has.
    match unsafe { memory::write(extents, file, goes_on) } {
        Ok(()) => 0,
        Err(code) => code.clamp(1, UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn what_is_changed_after_the_start_is_not_written() {
        const MIB: u64 = 1 << 20;
        let memory = crate::memory::reserve(&[(GuestAddress(0), 64 * MIB)]).unwrap();
        for place in 0..64 {
            memory.write_obj(place + 1, GuestAddress(place * MIB)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        let writer = Writer::start(&memory, &file).unwrap();
        for place in 0..64 {
            memory.write_obj(0_u64, GuestAddress(place * MIB)).unwrap();
        }
        writer.wait().unwrap();
        for place in 0..64 {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, place * MIB).unwrap();
            assert_eq!(u64::from_ne_bytes(bytes), place + 1);
        }
    }

    #[test]
    fn an_error_is_that_of_the_file() {
        let memory = crate::memory::reserve(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        let file = rustix::fs::memfd_create("full", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        let file = File::from(file);
        file.set_len(1 << 20).unwrap();
        let seals =
            rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::GROW | rustix::fs::SealFlags::SHRINK;
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        let error = Writer::start(&memory, &file).unwrap().wait().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
