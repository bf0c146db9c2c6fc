//! The registers of virtio devices as memory that the guest reads without an exit.

use devices::virtio::mmio::{ACKNOWLEDGE_USED, INTERRUPT_ACK, MMIO_LENGTH};
use devices::virtio::transport::{RegisterPage, RegisterPages};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::VmError;
use crate::arch::current::layout;
use crate::kvm::KvmError;

/// The registers of all virtio devices, side by side where the guest finds the devices: memory that it reads itself.
/// Its writes still reach mvm.
pub struct RegisterWindow {
    pages: RegisterPages,
    /// What acknowledging used buffers writes to, and nothing reads; `None` where reads are trapped, as the interrupt
    /// status is exact then.
    acknowledged: Option<EventFd>,
}

impl RegisterWindow {
    /// Registers for `count` devices, shown to the guest of `vm` as its memory slot `slot`. On a host without
    /// KVM_CAP_READONLY_MEM, all accesses to them are trapped.
    ///
    /// # Errors
    ///
    /// The host has no memory or descriptor left.
    pub fn new(vm: &VmFd, slot: u32, count: usize) -> Result<Self, VmError> {
        let pages = RegisterPages::new(count.max(1))
            .map_err(|error| VmError::host("map the registers of devices")(std::io::Error::other(error)))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::VIRTIO_MMIO,
            memory_size: count as u64 * MMIO_LENGTH,
            userspace_addr: pages.region().as_ptr() as u64,
        };
        // SAFETY: the region is a mapping of this process of that size, which the devices keep for as long as a vCPU
        // may run, and overlaps no other slot, as there is no RAM at the devices' addresses. The guest can only read
        // it.
        let shown = count > 0 && unsafe { vm.set_user_memory_region(region) }.is_ok();
        if !shown {
            return Ok(Self { pages, acknowledged: None });
        }
        pages.shown();
        let acknowledged = EventFd::new(libc::EFD_NONBLOCK).map_err(VmError::host("make an eventfd"))?;
        Ok(Self { pages, acknowledged: Some(acknowledged) })
    }

    /// The registers of the device at `index`.
    pub fn page(&self, index: usize) -> Option<RegisterPage> {
        self.pages.page(index)
    }

    /// Lets KVM take the acknowledgement of used buffers of the device at `base`, without an exit to user space. Any
    /// other acknowledgement still exits.
    ///
    /// # Errors
    ///
    /// KVM refuses it.
    pub fn tie_acknowledgement(&self, vm: &VmFd, base: u64) -> Result<(), KvmError> {
        let Some(acknowledged) = &self.acknowledged else { return Ok(()) };
        vm.register_ioevent(acknowledged, &IoEventAddress::Mmio(base + INTERRUPT_ACK), ACKNOWLEDGE_USED)
            .map_err(KvmError::call("tie the acknowledgement of interrupts to an eventfd"))
    }
}
