//! Virtio devices on their way: opened before there is a VM, then added to it.
//!
//! Files, sockets and taps are opened and processes started first, so that what is missing costs nothing and leaves
//! nothing behind.

use devices::virtio::balloon::{Balloon, BalloonHandle};
use devices::virtio::block::{Block, BlockHandle, Disk, DiskId, Piece};
use devices::virtio::pmem::PmemFile;
use devices::virtio::rate_limit::RateLimits;
use devices::virtio::rng::Rng;

use super::DeviceManager;
use crate::arch::current::layout;
use crate::config::{ConfigError, DeviceConfig, DeviceKind, PublishConfig};
use crate::network::{self, Network};
use crate::shares::{self, Share};
use crate::vsock::{self, OpenVsock};
use crate::{DiskConfig, MemorySize, NetConfig, VmConfig, VmError, descriptors};

/// A virtio device whose host's side is open.
#[allow(clippy::large_enum_variant, reason = "a VM has a few of them, for a moment")]
pub enum OpenDevice {
    /// A console.
    Console,
    /// A disk.
    Disk(Disk, DiskId, RateLimits),
    /// A slot, with the disk that is in it from the beginning.
    Slot(Option<Disk>),
    /// A network interface.
    Net(Network),
    /// Sockets between guest and host.
    Vsock(OpenVsock),
    /// A shared folder.
    Share(Share),
    /// Persistent memory.
    Pmem(PmemFile),
    /// The memory balloon of a guest with that much memory.
    Balloon(MemorySize),
    /// The entropy device.
    Rng,
}

/// What opening a device depends on besides its own configuration.
struct Opener<'a> {
    config: &'a VmConfig,
    /// The ports for the first network that can publish them.
    published: &'a [PublishConfig],
    /// How many descriptors the VM needs.
    descriptors: u64,
}

/// Opens all devices of `config`, in the order in which the guest finds them, and starts the processes that serve them.
///
/// # Errors
///
/// [`VmError`] says what cannot be opened and how to fix it.
pub fn open_devices(config: &VmConfig) -> Result<Vec<OpenDevice>, VmError> {
    let (asked, most) = (config.devices().count(), layout::VIRTIO_GSIS.len());
    if asked > most {
        return Err(VmError::TooManyDevices { asked, most });
    }
    let descriptors = descriptors::needed(config);
    let limit = descriptors::raise_limit(descriptors);
    if limit < descriptors {
        tracing::warn!(
            "this VM may need {descriptors} open files, and this process may have {limit}: raise the limit \
             (ulimit -Hn) or use fewer devices and queues"
        );
    }
    let mut opener = Opener { config, published: &config.publish, descriptors };
    config.devices().map(|device| opener.open(device)).collect()
}

impl Opener<'_> {
    fn open(&mut self, device: DeviceConfig<'_>) -> Result<OpenDevice, VmError> {
        Ok(match device {
            DeviceConfig::Console => OpenDevice::Console,
            DeviceConfig::Disk(disk) => {
                let id = disk.id.as_deref().map(DiskId::new).transpose().map_err(ConfigError::from)?;
                OpenDevice::Disk(open_disk(disk)?, id.unwrap_or_default(), disk.limits)
            }
            DeviceConfig::Slot(disk) => OpenDevice::Slot(disk.map(open_disk).transpose()?),
            DeviceConfig::Net(net) => OpenDevice::Net(self.open_network(net)?),
            DeviceConfig::Vsock(config) => OpenDevice::Vsock(vsock::open(config, self.descriptors)?),
            DeviceConfig::Share(share) => OpenDevice::Share(shares::start(share)?),
            DeviceConfig::VhostUser(device) => OpenDevice::Share(shares::connect(device)?),
            DeviceConfig::Pmem(pmem) => OpenDevice::Pmem(PmemFile::open(&pmem.path, pmem.mode, pmem.format)?),
            DeviceConfig::Balloon => OpenDevice::Balloon(self.config.memory),
            DeviceConfig::Rng => OpenDevice::Rng,
        })
    }

    fn open_network(&mut self, net: &NetConfig) -> Result<Network, VmError> {
        let published = if net.is_user() { std::mem::take(&mut self.published) } else { &[] };
        Ok(network::open(net, published)?)
    }
}

fn open_disk(config: &DiskConfig) -> Result<Disk, VmError> {
    Ok(if config.pieces.is_empty() {
        Disk::open(&config.path, config.read_only, config.format)?
    } else {
        let first = Piece { path: config.path.clone(), start: 0 };
        Disk::compose(&[&[first], &*config.pieces].concat())?
    })
}

impl OpenDevice {
    /// The file of persistent memory, where it is one.
    pub fn pmem(&self) -> Option<&PmemFile> {
        match self {
            Self::Pmem(file) => Some(file),
            _ => None,
        }
    }

    /// The number of the process that serves it, where mvm started one.
    pub fn helper(&self) -> Option<u32> {
        match self {
            Self::Net(network) => network.helper(),
            Self::Share(share) => share.helper(),
            _ => None,
        }
    }

    /// Makes it a device of the VM.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn add_to(self, devices: &mut DeviceManager<'_>) -> Result<(), VmError> {
        match self {
            Self::Console => devices.add_virtio_console(),
            Self::Disk(disk, id, limits) => {
                let block = Block::new(disk, id, limits).map_err(VmError::host("make a disk"))?;
                let block = devices.add_virtio(DeviceKind::Block, block)?;
                devices.disks.push(BlockHandle::new(block));
                Ok(())
            }
            Self::Slot(disk) => {
                let block = Block::slot(disk).map_err(VmError::host("make a disk"))?;
                let block = devices.add_virtio(DeviceKind::Block, block)?;
                devices.slots.push(BlockHandle::new(block));
                Ok(())
            }
            Self::Net(net) => {
                let (device, process) = net.into_device()?;
                devices.add_helper(process);
                devices.add_virtio(DeviceKind::Net, device).map(drop)
            }
            Self::Vsock(vsock) => devices.add_virtio(DeviceKind::Vsock, vsock.into_device()?).map(drop),
            Self::Share(share) => {
                let (device, process) = share.into_device()?;
                devices.add_helper(process);
                devices.add_virtio(DeviceKind::Fs, device).map(drop)
            }
            Self::Pmem(file) => devices.add_pmem(file),
            Self::Balloon(memory) => {
                let balloon = Balloon::new(memory.bytes()).map_err(VmError::host("make a timer"))?;
                let device = devices.add_virtio(DeviceKind::Balloon, balloon)?;
                devices.balloon = Some(BalloonHandle::new(device));
                Ok(())
            }
            Self::Rng => devices.add_virtio(DeviceKind::Rng, Rng::new()).map(drop),
        }
    }
}
