//! The life of a VM: four steps with nothing between them.

use std::sync::Arc;

use instance::Identity;
use kvm_ioctls::Kvm;

use crate::device_manager::{OpenDevice, open_devices};
use crate::frontend::Frontend;
use crate::gdb::Listener;
use crate::loader::BootFile;
use crate::vm::{Vm, build};
use crate::{ExitReason, Timeline, VmConfig, VmError, kvm};

/// Runs the VM of `config`, called by `identity`, from its start to its end.
///
/// Whatever a VM needs from the host is opened first. Once it is built there is no thread, file or socket to be made
/// any more, so that the process can give up its rights before the first instruction of the guest.
///
/// # Errors
///
/// [`VmError`] says what is wrong with the configuration or what the host cannot do, and how to fix it; nothing is left
/// behind. What the guest does to itself is an [`ExitReason`].
pub fn launch(
    config: &VmConfig,
    identity: &Identity,
    frontend: Frontend,
    timeline: &Arc<Timeline>,
) -> Result<ExitReason, VmError> {
    let resources = open(config, identity)?;
    let vm = build(resources, frontend, timeline.clone())?;
    let vm = seal(vm)?;
    vm.run()
}

/// What a VM needs from the host, open.
pub struct Resources<'a> {
    pub(crate) config: &'a VmConfig,
    pub(crate) identity: &'a Identity,
    pub(crate) kvm: Kvm,
    pub(crate) kernel: BootFile,
    pub(crate) initrd: Option<BootFile>,
    pub(crate) devices: Vec<OpenDevice>,
    pub(crate) debugger: Option<Listener>,
}

/// Checks `config`, opens all that it names and starts the processes that serve a device.
///
/// # Errors
///
/// [`VmError`] says what cannot be used and how to fix it; nothing is left behind.
pub fn open<'a>(config: &'a VmConfig, identity: &'a Identity) -> Result<Resources<'a>, VmError> {
    config.validate()?;
    let kernel = BootFile::kernel(&config.kernel)?;
    let initrd = config.initrd.as_deref().map(BootFile::initrd).transpose()?;
    let devices = open_devices(config)?;
    let debugger = config.gdb.as_ref().map(Listener::bind).transpose()?;
    let kvm = kvm::open()?;
    Ok(Resources { config, identity, kvm, kernel, initrd, devices, debugger })
}

/// Gives up the rights that running the VM does not need: none yet.
///
/// # Errors
///
/// None yet.
pub fn seal(vm: Vm) -> Result<Vm, VmError> {
    Ok(vm)
}
