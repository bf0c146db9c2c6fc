//! A VM's state beside its files: saved while it stands still, and continued in another process.
//!
//! The state is what KVM and the devices know, a few dozen KiB; the RAM is a sparse file of its own, which a restored
//! VM maps copy-on-write, so that it reads what it touches alone.

mod encoding;
mod hold;
mod memory;
mod writer;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use devices::virtio::pmem::PmemMode;
use devices::{Section, Suspend, SuspendError};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::VmConfig;
use crate::arch::current::state::{Facts, InterruptState, ProcessorState, StateError, VmState};
use crate::pause::{PauseError, Pauser};
use crate::vcpu::GateError;

pub use hold::Hold;
use memory::check_length;
pub(crate) use writer::CLONE_FLAGS;

use self::writer::Writer;

/// Why a VM can't be saved or continued.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// It has something whose state can't be saved.
    #[error("a VM with {0} cannot be saved")]
    Unsupported(&'static str),
    /// It does not stand still.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// A vCPU has ended meanwhile.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// What KVM knows of it.
    #[error(transparent)]
    State(#[from] StateError),
    /// What a device knows.
    #[error("cannot save or continue a device")]
    Device(#[from] SuspendError),
    /// Its RAM can't be written or read.
    #[error("cannot {doing} the VM's memory")]
    Memory {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Who copies its disks does not hear of it, or takes too long.
    #[error("cannot wait for the VM's disks to be copied")]
    Disks(#[source] io::Error),
    /// It is not a state, or has been altered.
    #[error("invalid state of a VM: {0}")]
    Invalid(String),
    /// It is one of another VM than the configuration's.
    #[error("the state is that of another VM: it has {saved}, and the configuration {configured}")]
    Other {
        /// What was saved.
        saved: String,
        /// What is to be continued.
        configured: String,
    },
}

impl SnapshotError {
    /// Whether the host is at fault, and not what it was asked for.
    pub(crate) fn is_the_hosts(&self) -> bool {
        match self {
            Self::Pause(_) | Self::Gate(_) | Self::State(_) | Self::Memory { .. } | Self::Disks(_) => true,
            Self::Unsupported(_) | Self::Device(_) | Self::Invalid(_) | Self::Other { .. } => false,
        }
    }
}

/// The kind of a disk's section: by its device ID (VIRTIO 1.2, 5).
const BLOCK: &str = "virtio-2";

/// Guest physical address and bytes of a piece of RAM.
pub(crate) type Region = (u64, u64);

/// All of a VM that is not in its RAM or its files.
#[derive(Clone, Debug)]
pub struct SavedVm {
    pub(crate) machine: VmState,
    pub(crate) devices: Vec<Section>,
    pub(crate) regions: Vec<Region>,
}

impl SavedVm {
    /// As bytes, for a file.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Invalid`] for a state that can't be expressed.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        encoding::encode(self)
    }

    /// Reads what [`encode`](Self::encode) gave. It may come from anybody.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        encoding::decode(bytes)
    }

    /// How many disks the VM has, with slots for disks.
    pub fn disks(&self) -> usize {
        self.devices.iter().filter(|section| section.kind == BLOCK).count()
    }

    /// Bytes of the VM's RAM, and so of the file that has it.
    pub fn memory(&self) -> u64 {
        self.regions.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Checks that `file` is as long as its RAM.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: it is not, or can't be looked at.
    pub fn check_memory(&self, file: &File) -> Result<(), SnapshotError> {
        check_length(file, self.memory())
    }

    /// Checks that it has `cpus` and RAM as `regions`.
    pub(crate) fn check(&self, cpus: u32, regions: &[Region]) -> Result<(), SnapshotError> {
        let words = |cpus: usize, regions: &[Region]| {
            let memory = regions.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
            format!("{cpus} vCPUs and {} MiB of memory", memory >> 20)
        };
        let own = usize::try_from(cpus).unwrap_or(usize::MAX);
        if self.machine.processors.len() == own && self.regions == regions {
            return Ok(());
        }
        let saved = words(self.machine.processors.len(), &self.regions);
        Err(SnapshotError::Other { saved, configured: words(own, regions) })
    }

    /// Gives `devices`, which are those of a new VM, the state that they had.
    pub(crate) fn restore_devices(&self, devices: &[Arc<dyn Suspend>]) -> Result<(), SnapshotError> {
        if devices.len() != self.devices.len() {
            let words = |count: usize| format!("{count} devices");
            let (saved, configured) = (words(self.devices.len()), words(devices.len()));
            return Err(SnapshotError::Other { saved, configured });
        }
        for (device, section) in devices.iter().zip(&self.devices) {
            device.restore(section)?;
        }
        Ok(())
    }
}

/// A VM that is to go on from where it was saved.
#[derive(Debug)]
pub struct Snapshot {
    /// What is not in its RAM.
    pub state: SavedVm,
    /// Its RAM. It must not become shorter: reading what is gone ends the VM.
    pub memory: File,
    /// What a VM that goes on uses of it at once.
    pub touched: Vec<Touched>,
}

impl Snapshot {
    /// One of which it is not known what is used at once.
    pub fn new(state: SavedVm, memory: File) -> Self {
        Self { state, memory, touched: Vec::new() }
    }
}

/// Pages of a VM's RAM that it uses as soon as it goes on. To have them made in one go takes less than a fault for
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Where they are in the file, in bytes.
    pub place: u64,
    /// How many bytes.
    pub bytes: u64,
    /// It writes to them.
    pub is_written: bool,
}

/// What saves a running VM.
pub struct Saver {
    pauser: Arc<Pauser>,
    vm: Arc<VmFd>,
    facts: Arc<Facts>,
    memory: Arc<GuestMemoryMmap>,
    /// What it has whose state can't be saved.
    unsupported: Option<&'static str>,
}

impl Saver {
    /// Of the VM of `config`, whose KVM can do what `facts` say.
    pub(crate) fn new(
        config: &VmConfig,
        (vm, facts): (Arc<VmFd>, Facts),
        pauser: Arc<Pauser>,
        memory: Arc<GuestMemoryMmap>,
    ) -> Self {
        Self { pauser, vm, facts: Arc::new(facts), memory, unsupported: unsupported(config) }
    }

    /// Saves the VM, with its RAM in `ram`, which is empty. The VM stands still meanwhile, and then goes on, or stays
    /// paused if it was. That may take seconds.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the VM runs on.
    pub fn save(&self, ram: &File) -> Result<SavedVm, SnapshotError> {
        self.save_with(ram, None)
    }

    /// The same, and the VM stands still at least as long as `hold` lasts, in which its disks are copied: requests in
    /// flight are finished, and what the guest has written is in their files.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the VM runs on.
    pub fn save_with(&self, ram: &File, hold: Option<&Hold>) -> Result<SavedVm, SnapshotError> {
        if let Some(what) = self.unsupported {
            return Err(SnapshotError::Unsupported(what));
        }
        let mut since = Instant::now();
        let (saved, writer) = self.pauser.while_paused(|devices| {
            since = Instant::now();
            hold.map(Hold::begin).transpose().map_err(SnapshotError::Disks)?;
            let saved = self.save_paused(devices)?;
            let writer = self.start_writing(ram)?;
            hold.map(Hold::wait).transpose().map_err(SnapshotError::Disks)?;
            Ok::<_, SnapshotError>((saved, writer))
        })??;
        let stood_still = since.elapsed().as_micros();
        tracing::info!(
            "the VM stood still for {}.{:03} ms to be saved",
            stood_still / 1000,
            stood_still % 1000
        );
        writer.map(Writer::wait).transpose().map_err(written)?;
        Ok(saved)
    }

    /// Has the RAM written by a copy of this process, while the VM goes on; where the host makes none, it is written
    /// here.
    fn start_writing(&self, ram: &File) -> Result<Option<Writer>, SnapshotError> {
        // Memory that other processes map is the same in a copy of this one.
        if self.memory.iter().all(|region| region.file_offset().is_none()) {
            match Writer::start(&self.memory, ram) {
                Ok(writer) => return Ok(Some(writer)),
                Err(error) => {
                    tracing::info!(%error, "no process can be made: the VM stands still while its memory is written");
                }
            }
        }
        let extents = memory::extents(&self.memory, ram).map_err(written)?;
        // SAFETY: the VM is paused: its memory does not change.
        let done = unsafe { memory::write(&extents, ram.as_raw_fd(), || true) };
        done.map_err(|code| written(io::Error::from_raw_os_error(code))).map(|()| None)
    }

    fn save_paused(&self, devices: &[Arc<dyn Suspend>]) -> Result<SavedVm, SnapshotError> {
        let processors =
            (0..self.pauser.gate().cpus()).map(|vcpu| self.processor(vcpu)).collect::<Result<_, _>>()?;
        let interrupts = InterruptState::save(&self.vm)?;
        let devices = devices.iter().map(|device| device.save()).collect::<Result<_, _>>()?;
        let regions = self.memory.iter().map(|region| (region.start_addr().0, region.len())).collect();
        Ok(SavedVm { machine: VmState { processors, interrupts }, devices, regions })
    }

    /// Saves a vCPU, on its own thread.
    fn processor(&self, vcpu: usize) -> Result<ProcessorState, SnapshotError> {
        let facts = self.facts.clone();
        let saved = self.pauser.gate().with_vcpu(vcpu, move |fd| ProcessorState::save(fd, &facts))?;
        Ok(saved?)
    }
}

fn written(source: io::Error) -> SnapshotError {
    SnapshotError::Memory { doing: "write", source }
}

/// What a VM of `config` has whose state can't be saved.
fn unsupported(config: &VmConfig) -> Option<&'static str> {
    // A share's device says so itself while a driver uses it.
    if !config.vhost_user.is_empty() {
        return Some("devices that processes of others serve (--vhost-user)");
    }
    if config.pmem.iter().any(|pmem| pmem.mode != PmemMode::ReadOnly) {
        return Some("persistent memory that it can write to (--pmem without `readonly`)");
    }
    if config.gdb.is_some() {
        return Some("a debugger (--gdb)");
    }
    config.nested.then_some("VMs of its own (--nested)")
}
