//! The life of a VM: four steps with nothing between them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use devices::socket::ListeningSocket;
use instance::{CONTROL_SOCKET, Identity, ProcessMeter};
use kvm_ioctls::Kvm;

use crate::console::ConsoleFiles;
use crate::control::ControlServer;
use crate::device_manager::{LengthWatch, OpenDevice, open_devices};
use crate::frontend::Frontend;
use crate::gdb::Listener;
use crate::loader::BootFile;
use crate::vm::{Vm, build};
use crate::{ExitReason, Snapshot, Timeline, VmConfig, VmError, confinement, kvm};

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
    let resources = open(config, identity, None)?;
    let vm = build(resources, frontend, timeline.clone())?;
    let vm = seal(vm)?;
    vm.run()
}

/// The name of the console's log in a VM's directory.
pub const LOG_NAME: &str = "console.log";

/// Where a VM's state comes from.
pub(crate) enum Source {
    /// A kernel, and what it finds in memory.
    Boot {
        /// The kernel.
        kernel: BootFile,
        /// Its first root.
        initrd: Option<BootFile>,
    },
    /// A VM that was saved.
    Saved(Box<Snapshot>),
}

/// What a VM needs from the host, open.
pub struct Resources<'a> {
    pub(crate) config: &'a VmConfig,
    pub(crate) identity: &'a Identity,
    pub(crate) kvm: Kvm,
    pub(crate) source: Source,
    pub(crate) devices: Vec<OpenDevice>,
    /// What watches files of persistent memory.
    pub(crate) lengths: Option<LengthWatch>,
    pub(crate) debugger: Option<Listener>,
    pub(crate) control: Option<ListeningSocket>,
    pub(crate) console: ConsoleFiles,
    /// What the host says of this process.
    pub(crate) meter: ProcessMeter,
    /// Where paths of the configuration begin.
    pub(crate) working_directory: PathBuf,
}

impl Resources<'_> {
    /// The numbers of the processes that serve devices. Each leads a group of its own, which is to be killed when the VM
    /// has ended: a process that is confined may not.
    pub fn helpers(&self) -> Vec<u32> {
        self.devices.iter().filter_map(OpenDevice::helper).collect()
    }

    /// Has the guest's connections by vsock connected by another process, which calls
    /// [`dial`](devices::virtio::vsock::dial) with the other end of `dialer`.
    pub fn dial_by(&mut self, dialer: OwnedFd) {
        let vsock = self.devices.iter_mut().find_map(|device| match device {
            OpenDevice::Vsock(vsock) => Some(vsock),
            _ => None,
        });
        if let Some(vsock) = vsock {
            vsock.dial_by(dialer);
        }
    }
}

/// Checks `config`, opens all that it names and starts the processes that serve a device. The latest output of the
/// console goes to `log`, or to a file in the VM's directory.
///
/// # Errors
///
/// [`VmError`] says what cannot be used and how to fix it; nothing is left behind.
pub fn open<'a>(
    config: &'a VmConfig,
    identity: &'a Identity,
    log: Option<PathBuf>,
) -> Result<Resources<'a>, VmError> {
    config.validate()?;
    let kernel = BootFile::kernel(&config.kernel)?;
    let initrd = config.initrd.as_deref().map(BootFile::initrd).transpose()?;
    open_from(config, identity, log, Source::Boot { kernel, initrd })
}

/// The same for a VM that goes on from `snapshot`, which is of a VM of the same `config`. Its kernel is not read.
///
/// # Errors
///
/// As [`open`], and where the snapshot is of another VM.
pub fn open_snapshot<'a>(
    config: &'a VmConfig,
    identity: &'a Identity,
    log: Option<PathBuf>,
    snapshot: Snapshot,
) -> Result<Resources<'a>, VmError> {
    config.validate()?;
    open_from(config, identity, log, Source::Saved(Box::new(snapshot)))
}

fn open_from<'a>(
    config: &'a VmConfig,
    identity: &'a Identity,
    log: Option<PathBuf>,
    source: Source,
) -> Result<Resources<'a>, VmError> {
    let devices = open_devices(config)?;
    let files: Vec<_> = devices.iter().filter_map(OpenDevice::pmem).collect();
    let lengths = (!files.is_empty()).then(|| LengthWatch::open(&files)).transpose();
    let lengths = lengths.map_err(VmError::host("watch a file of --pmem"))?;
    let debugger = config.gdb.as_ref().map(Listener::bind).transpose()?;
    let kvm = kvm::open()?;
    let directory = identity.directory.as_deref();
    let control = directory.map(|directory| ControlServer::listen(&directory.join(CONTROL_SOCKET)));
    let log = log.or_else(|| directory.map(|directory| directory.join(LOG_NAME)));
    let console = ConsoleFiles::open(log, directory)?;
    let (control, meter) = (control.transpose()?, ProcessMeter::new());
    // Without one, all paths are from the root.
    let working_directory = std::env::current_dir().unwrap_or_default();
    Ok(Resources {
        config,
        identity,
        kvm,
        source,
        devices,
        lengths,
        debugger,
        control,
        console,
        meter,
        working_directory,
    })
}

/// Confines this thread as the others are, where the process is confined: the VM is built, and runs next.
///
/// # Errors
///
/// [`VmError::Seccomp`].
pub fn seal(vm: Vm) -> Result<Vm, VmError> {
    confinement::seal()?;
    Ok(vm)
}
