//! What devices stand on: files, sockets, taps and processes of the host.
//!
//! All of it is opened before there is a VM, so that what can't be had costs nothing and leaves nothing behind.

use devices::virtio::block::{Block, Disk, DiskId};
use devices::virtio::rate_limit::RateLimits;
use devices::virtio::vsock::Vsock;

use crate::arch::current::layout;
use crate::config::ConfigError;
use crate::machine::Devices;
use crate::network::{self, Network};
use crate::shares::{self, Share};
use crate::{ConsoleConfig, VmConfig, VmError, descriptors, vsock};

/// The host's side of a VM's devices.
pub struct Backends {
    disks: Vec<(Disk, DiskId, RateLimits)>,
    nets: Vec<Network>,
    vsock: Option<Vsock>,
    shares: Vec<Share>,
}

impl Backends {
    /// Opens all that `config` names, and starts the processes that serve a device of it.
    ///
    /// # Errors
    ///
    /// [`VmError`] says what can't be had and how to mend it.
    pub fn open(config: &VmConfig) -> Result<Self, VmError> {
        check_device_count(config)?;
        let descriptors = descriptors::needed(config);
        let limit = descriptors::raise_limit(descriptors);
        if limit < descriptors {
            tracing::warn!(
                "this VM may need {descriptors} open files, and this process may have {limit}: raise the limit \
                 (ulimit -Hn) or use fewer devices and queues"
            );
        }
        Ok(Self {
            disks: open_disks(config)?,
            nets: network::open(config)?,
            vsock: config.vsock.as_ref().map(|vsock| vsock::open(vsock, descriptors)).transpose()?,
            shares: shares::start(config)?,
        })
    }

    /// Whether a process serves a device in the guest's memory, which it has to be able to map.
    pub fn need_shared_memory(&self) -> bool {
        !self.shares.is_empty()
    }

    /// Makes them the guest's devices, in the order in which the guest finds them.
    ///
    /// # Errors
    ///
    /// [`VmError`].
    pub fn add_to(self, devices: &mut Devices<'_>) -> Result<(), VmError> {
        for (disk, id, limits) in self.disks {
            devices.add_virtio(Block::new(disk, id, limits).map_err(VmError::host("make a disk"))?)?;
        }
        for net in self.nets {
            let (device, process) = net.into_device()?;
            devices.add_virtio(device)?;
            devices.add_helper(process);
        }
        if let Some(vsock) = self.vsock {
            devices.add_virtio(vsock)?;
        }
        for share in self.shares {
            let (device, process) = share.into_device()?;
            devices.add_virtio(device)?;
            devices.add_helper(process);
        }
        Ok(())
    }
}

fn open_disks(config: &VmConfig) -> Result<Vec<(Disk, DiskId, RateLimits)>, VmError> {
    let all = config.rootfs.iter().chain(&config.disks);
    all.map(|disk| {
        let id = disk.id.as_deref().map(DiskId::new).transpose().map_err(ConfigError::from)?;
        Ok((Disk::open(&disk.path, disk.read_only, disk.format)?, id.unwrap_or_default(), disk.limits))
    })
    .collect()
}

/// Checks that there is an interrupt for each device, before any of them is opened.
fn check_device_count(config: &VmConfig) -> Result<(), VmError> {
    let asked = [
        usize::from(config.console == ConsoleConfig::Virtio),
        config.rootfs.iter().count(),
        config.disks.len(),
        config.nets.len(),
        config.vsock.iter().count(),
        config.share_tags().count(),
        config.pmem.len(),
        usize::from(config.balloon),
        1, // The entropy device.
    ];
    let asked = asked.into_iter().sum();
    let most = layout::VIRTIO_GSIS.len();
    if asked > most { Err(VmError::TooManyDevices { asked, most }) } else { Ok(()) }
}
