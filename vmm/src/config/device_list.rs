//! The list of a VM's virtio devices, from which all else about them follows: their count, order, names, and what they
//! need.

use super::{
    ConsoleConfig, DiskConfig, NetConfig, PmemConfig, ShareConfig, VhostUserConfig, VmConfig, VsockConfig,
};

/// A kind of virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A console (`hvc0`).
    Console,
    /// A disk.
    Block,
    /// A network interface.
    Net,
    /// Sockets between guest and host.
    Vsock,
    /// A shared folder.
    Fs,
    /// Persistent memory.
    Pmem,
    /// The memory balloon.
    Balloon,
    /// The entropy device.
    Rng,
}

impl DeviceKind {
    /// All kinds, in the order in which a guest finds their devices.
    pub const ALL: [Self; 8] =
        [Self::Console, Self::Block, Self::Net, Self::Vsock, Self::Fs, Self::Pmem, Self::Balloon, Self::Rng];

    /// The kind's name, in metrics, in docs/devices.md, and of its fuzz target.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Block => "block",
            Self::Net => "net",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
            Self::Pmem => "pmem",
            Self::Balloon => "balloon",
            Self::Rng => "rng",
        }
    }

    /// Whether another process reads and writes the guest's memory for it, which therefore has to be shared.
    pub const fn needs_shared_memory(self) -> bool {
        matches!(self, Self::Fs)
    }

    /// What the device at `index` among those of its kind is called: as Linux calls it, where it does.
    pub fn id(self, index: usize) -> String {
        match self {
            Self::Block => disk_name(index),
            Self::Console => format!("hvc{index}"),
            _ => format!("{}{index}", self.name()),
        }
    }
}

/// A virtio device as the configuration describes it.
#[derive(Clone, Copy, Debug)]
pub enum DeviceConfig<'a> {
    /// The console on standard input and output.
    Console,
    /// A disk.
    Disk(&'a DiskConfig),
    /// A slot for a disk, with the one that is in it from the beginning.
    Slot(Option<&'a DiskConfig>),
    /// A network interface.
    Net(&'a NetConfig),
    /// Sockets between guest and host.
    Vsock(&'a VsockConfig),
    /// A folder that mvm shares by a virtiofsd of its own.
    Share(&'a ShareConfig),
    /// A device that a running process serves.
    VhostUser(&'a VhostUserConfig),
    /// A file as persistent memory.
    Pmem(&'a PmemConfig),
    /// The memory balloon.
    Balloon,
    /// The entropy device, which every VM has.
    Rng,
}

impl DeviceConfig<'_> {
    /// The kind of device.
    pub const fn kind(&self) -> DeviceKind {
        match self {
            Self::Console => DeviceKind::Console,
            Self::Disk(_) | Self::Slot(_) => DeviceKind::Block,
            Self::Net(_) => DeviceKind::Net,
            Self::Vsock(_) => DeviceKind::Vsock,
            Self::Share(_) | Self::VhostUser(VhostUserConfig::Fs { .. }) => DeviceKind::Fs,
            Self::Pmem(_) => DeviceKind::Pmem,
            Self::Balloon => DeviceKind::Balloon,
            Self::Rng => DeviceKind::Rng,
        }
    }
}

impl VmConfig {
    /// The VM's virtio devices, in the order in which the guest finds them.
    pub fn devices(&self) -> impl Iterator<Item = DeviceConfig<'_>> + Clone {
        let console = (self.console == ConsoleConfig::Virtio).then_some(DeviceConfig::Console);
        let disks = self.rootfs.iter().chain(&self.disks).map(DeviceConfig::Disk);
        let slots = (0..self.slots).map(|slot| DeviceConfig::Slot(self.in_slots.get(slot)));
        let shares = self.shares.iter().map(DeviceConfig::Share);
        let served = self.vhost_user.iter().map(DeviceConfig::VhostUser);
        (console.into_iter())
            .chain(disks)
            .chain(slots)
            .chain(self.nets.iter().map(DeviceConfig::Net))
            .chain(self.vsock.iter().map(DeviceConfig::Vsock))
            .chain(shares.chain(served))
            .chain(self.pmem.iter().map(DeviceConfig::Pmem))
            .chain(self.balloon.then_some(DeviceConfig::Balloon))
            .chain([DeviceConfig::Rng])
    }
}

/// The name of the disk with that index in the guest: vda to vdz, vdaa and so on.
pub fn disk_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
        rest /= 26;
    }
    "vd".chars().chain(letters.into_iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_called_as_linux_calls_them() {
        let names = [0, 1, 25, 26, 27, 701, 702].map(disk_name);
        assert_eq!(names, ["vda", "vdb", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"]);
    }

    /// A VM with a device of each kind.
    fn full() -> VmConfig {
        VmConfig {
            console: ConsoleConfig::Virtio,
            rootfs: Some("root".parse().unwrap()),
            disks: vec!["a".parse().unwrap()],
            slots: 2,
            nets: vec!["user".parse().unwrap()],
            vsock: Some("./v".parse().unwrap()),
            shares: vec!["src:/work".parse().unwrap()],
            vhost_user: vec!["fs=s,tag=t".parse().unwrap()],
            pmem: vec!["p".parse().unwrap()],
            balloon: true,
            ..VmConfig::new("vmlinux")
        }
    }

    #[test]
    fn the_list_has_every_kind_in_the_order_of_the_guest() {
        let config = full();
        let mut kinds: Vec<_> = config.devices().map(|device| device.kind()).collect();
        kinds.dedup();
        assert_eq!(kinds, DeviceKind::ALL);
        assert_eq!(config.devices().count(), 12);
        let plain = VmConfig::new("vmlinux");
        assert_eq!(plain.devices().map(|device| device.kind()).collect::<Vec<_>>(), [DeviceKind::Rng]);
    }

    /// The first cells of the table behind `heading`.
    fn first_cells<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
        let table = text.split(heading).nth(1).expect("there is such a table");
        let rows = table.lines().skip(2).map_while(|line| line.strip_prefix("| "));
        rows.filter_map(|row| row.split(' ').next()).collect()
    }

    /// A device is described and fuzzed.
    #[test]
    fn each_kind_has_its_line_in_the_docs_and_its_fuzz_target() {
        let top = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let docs = std::fs::read_to_string(format!("{top}/docs/devices.md")).unwrap();
        let names = DeviceKind::ALL.map(DeviceKind::name);
        let listed = first_cells(&docs, "| device | for | queues | features | notes |");
        assert_eq!(listed, names, "docs/devices.md, in the order of the guest");
        for name in names {
            let target = format!("{top}/fuzz/src/bin/{name}.rs");
            assert!(std::path::Path::new(&target).exists(), "there is no fuzz target {target}");
        }
    }
}
