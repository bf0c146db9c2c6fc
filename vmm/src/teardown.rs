//! Freeing a VM without waiting for it.
//!
//! The last close of a VM's descriptor frees the VM, and waits there for a grace period of SRCU: 14 to 19 ms for a VM
//! that is younger than some 100 ms (Linux 6.18), which is most of what a short run takes. So an io_uring holds a
//! descriptor of the VM too, among its registered files. That is then the last one, and the kernel lets go of the files
//! of a ring that is closed in a thread of its own.
//!
//! The VM is gone a little later than the process. What it holds until then is KVM's own: guest RAM ends with the
//! process.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_ioctls::VmFd;

/// `IORING_REGISTER_FILES` of io_uring_register(2).
const REGISTER_FILES: libc::c_uint = 2;
/// `IORING_SETUP_R_DISABLED` of io_uring_setup(2).
const DISABLED: u64 = 1 << 6;
/// The bytes of `struct io_uring_params`, which the kernel fills and nothing here reads.
const PARAMETERS: usize = 120;

/// Frees a VM once this and all descriptors of the VM are closed, on a thread of the kernel.
pub struct BackgroundTeardown {
    _ring: OwnedFd,
}

impl BackgroundTeardown {
    /// Prepares it for `vm`; `None` where the host has no io_uring or refuses
    /// it (a seccomp filter, the sysctl `kernel.io_uring_disabled`). It is then freed by the thread that closes its
    /// last descriptor.
    pub fn prepare(vm: &VmFd) -> Option<Self> {
        let ring = setup_ring()?;
        let files = [vm.as_raw_fd()];
        // SAFETY: the pointer is to as many descriptors as the count says; the kernel keeps the files, not the pointer.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.as_raw_fd(),
                REGISTER_FILES,
                files.as_ptr(),
                files.len(),
            )
        };
        (result == 0).then_some(Self { _ring: ring })
    }
}

/// A ring of the least size, which nothing is ever submitted to: it is disabled, and stays so.
fn setup_ring() -> Option<OwnedFd> {
    let mut parameters = [0_u64; PARAMETERS / 8];
    // The flags are the third field, of four bytes each.
    parameters[1] = DISABLED;
    // SAFETY: the kernel reads and fills `PARAMETERS` bytes, aligned as its structure is; zeros ask for the
    // default.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let ring = i32::try_from(ring).ok().filter(|ring| *ring >= 0)?;
    // SAFETY: the call made the descriptor, which has no other owner.
    Some(unsafe { OwnedFd::from_raw_fd(ring) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::kvm;

    /// The descriptor of the VM among the files of this process, and what the ring says of its files (proc(5), fdinfo).
    #[test]
    fn the_ring_holds_the_vm_until_it_is_closed() {
        let Ok(kvm) = kvm::open() else { return eprintln!("skipped: there is no usable /dev/kvm") };
        let vm = kvm::create_vm(&kvm).unwrap();
        let Some(teardown) = BackgroundTeardown::prepare(&vm) else {
            return eprintln!("skipped: this host refuses io_uring");
        };
        drop(vm);
        let path = format!("/proc/self/fdinfo/{}", teardown._ring.as_raw_fd());
        let information = fs::read_to_string(path).unwrap();
        assert!(information.contains("UserFiles:\t1\n"), "{information}");
        assert!(information.contains("kvm-vm"), "{information}");
    }
}
