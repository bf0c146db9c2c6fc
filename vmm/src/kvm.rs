//! KVM, opened and checked.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::current::vm;

/// The device.
pub const DEVICE: &str = "/dev/kvm";
/// The only API version there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Missed only when a vCPU has to be stopped, and so looked for at each start.
const IMMEDIATE_EXIT: (Cap, &str) = (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT");
/// What a VM cannot be built without on any processor, with the names of the KVM API document; [`vm::REQUIRED`] has
/// what this one needs besides. Without one of them a call fails, and [`missing`] then says which it was.
const REQUIRED: [(Cap, &str); 4] = [
    IMMEDIATE_EXIT,
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
];

/// Why KVM can't be used; each message says how to fix it.
#[derive(Debug, Error)]
pub enum KvmError {
    /// There is no device.
    #[error(
        "there is no {DEVICE}: load KVM (modprobe kvm_amd or kvm_intel), enable virtualization in the firmware, \
         or nested virtualization where this host is itself a VM; `mvm doctor` looks further"
    )]
    NoDevice,
    /// The device may not be opened.
    #[error("no permission to open {DEVICE}: {}", .0.advice())]
    NoPermission(Access),
    /// The device can't be opened for another reason.
    #[error("cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// Not the KVM that all know.
    #[error("{DEVICE} speaks API version {0}, mvm speaks {API_VERSION}: is it the KVM of Linux?")]
    ApiVersion(i32),
    /// Something that mvm needs is missing.
    #[error("this host's KVM lacks {0}: use a newer kernel")]
    Capability(&'static str),
    /// A call that can't be done.
    #[error("cannot {doing}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// KVM's refusal.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Who may open the device beside root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The members of this group.
    Group(u32),
    /// No user, or root's group.
    Root,
}

impl Access {
    /// As the device's mode says.
    fn of_device() -> Self {
        std::fs::metadata(DEVICE).map_or(Self::Root, |device| Self::of(device.mode(), device.gid()))
    }

    fn of(mode: u32, group: u32) -> Self {
        if mode & 0o060 == 0o060 && group != 0 { Self::Group(group) } else { Self::Root }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Group(_) => "join its group (usermod -aG kvm USER, then log in again), or run as root",
            Self::Root => {
                "it is root's alone: run as root, or as root give it to a group (chgrp kvm /dev/kvm && chmod 660 \
                 /dev/kvm; a rule of udev keeps it so) and join that"
            }
        }
    }
}

impl KvmError {
    /// The same error, or where a call failed because KVM lacks something, that.
    #[must_use]
    pub fn explained(self) -> Self {
        match self {
            Self::Call { .. } => {
                let missing = open().ok().and_then(|kvm| missing(&kvm));
                missing.map_or(self, Self::Capability)
            }
            other => other,
        }
    }

    /// Wraps a failed call; for `map_err`.
    pub(crate) fn call(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Call { doing, source }
    }
}

/// The name of a capability that mvm needs and `kvm` lacks.
pub fn missing(kvm: &Kvm) -> Option<&'static str> {
    missing_where(|capability| kvm.check_extension(capability))
}

/// The same of a KVM that `has` some capabilities.
fn missing_where(has: impl Fn(Cap) -> bool) -> Option<&'static str> {
    let mut required = REQUIRED.iter().chain(vm::REQUIRED);
    required.find(|(capability, _)| !has(*capability)).map(|(_, name)| *name)
}

/// Opens KVM and checks what would otherwise go wrong late; what else is missing makes a call fail.
///
/// # Errors
///
/// [`KvmError`] says what is missing and how to fix it.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::NoDevice,
        libc::EACCES | libc::EPERM => KvmError::NoPermission(Access::of_device()),
        errno => KvmError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        API_VERSION => {}
        version => return Err(KvmError::ApiVersion(version)),
    }
    let (capability, name) = IMMEDIATE_EXIT;
    if kvm.check_extension(capability) { Ok(kvm) } else { Err(KvmError::Capability(name)) }
}

/// Makes a VM.
///
/// # Errors
///
/// [`KvmError::Call`]. A call that a signal cut short is made again.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(KvmError::call("make a VM")),
        }
    }
}

/// An interrupt of the controllers in the kernel, raised by writing to an eventfd.
///
/// # Errors
///
/// [`KvmError::Call`]: there is no descriptor left, or KVM has no such interrupt.
pub fn interrupt_line(vm: &VmFd, gsi: u32) -> Result<Arc<EventFd>, KvmError> {
    let line = EventFd::new(libc::EFD_NONBLOCK).map_err(|error| KvmError::Call {
        doing: "make an eventfd for an interrupt",
        source: kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO)),
    })?;
    vm.register_irqfd(&line, gsi).map_err(KvmError::call("tie an eventfd to an interrupt"))?;
    Ok(Arc::new(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_lacks_one_is_told_which() {
        assert_eq!(missing_where(|_| true), None);
        for (lacked, name) in REQUIRED.iter().chain(vm::REQUIRED) {
            let missing = missing_where(|capability| capability as u32 != *lacked as u32);
            assert_eq!(missing, Some(*name));
            let said = KvmError::Capability(name).to_string();
            assert_eq!(said, format!("this host's KVM lacks {name}: use a newer kernel"));
        }
    }

    #[test]
    fn who_may_not_open_the_device_is_told_what_helps() {
        let said = |mode, group| KvmError::NoPermission(Access::of(mode, group)).to_string();
        assert!(said(0o20660, 104).contains("join its group"));
        for (mode, group) in [(0o20600, 104), (0o20660, 0), (0o20640, 104)] {
            assert!(said(mode, group).contains("it is root's alone: run as root"), "{mode:o}");
        }
    }

    #[test]
    fn what_a_vm_can_do_without_is_not_asked_for() {
        for optional in [Cap::GetTscKhz, Cap::VcpuEvents, Cap::Xsave, Cap::ReadonlyMem, Cap::TscDeadlineTimer]
        {
            assert_eq!(
                missing_where(|capability| capability as u32 != optional as u32),
                None,
                "{optional:?}"
            );
        }
    }
}
