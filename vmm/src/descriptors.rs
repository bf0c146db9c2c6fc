//! How many descriptors a VM needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::VmConfig;

/// Descriptors of the process and of each VM: standard streams, KVM, event loop, control socket and console with their
/// clients, timers, console log, signals, the debugger.
const PROCESS: u64 = 64;
/// Descriptors of a vCPU.
const VCPU: u64 = 2;
/// Descriptors of a device besides its queues: file, io_uring, socket, epoll, timers, and those of a helper process.
const DEVICE: u64 = 16;
/// Descriptors of a queue: its notifier and its interrupt.
const QUEUE: u64 = 2;
/// Descriptors of a pair of network queues: both queues, and tap, epoll, timers and commands of the pair's thread.
const PAIR: u64 = 2 * QUEUE + 8;
/// Files of a disk that is put into a slot: an image of 127 layers, and the zeros between them.
const SLOT: u64 = 256;
/// The most queues of a device that is not a network.
const QUEUES: u64 = 8;

/// The most descriptors that the VM of `config` has open, without the connections of its vsock device.
pub fn needed(config: &VmConfig) -> u64 {
    let pairs: u64 = config.nets.iter().map(|net| u64::from(net.queues)).sum();
    let count = |devices: usize| u64::try_from(devices).unwrap_or(u64::MAX);
    // The console, vsock, the balloon and the entropy device may be there once each.
    let devices = [config.disks.len() + 1, config.share_tags().count(), config.pmem.len(), 4];
    let devices = devices.into_iter().map(count).sum::<u64>();
    let networks = count(config.nets.len());
    // Each file, and the zeros before it.
    let pieces = 2 * config.disks.iter().map(|disk| count(disk.pieces.len())).sum::<u64>();
    PROCESS
        + VCPU * u64::from(config.cpus)
        + (DEVICE + QUEUES * QUEUE) * devices
        + (DEVICE + QUEUE) * networks
        + PAIR * pairs
        + pieces
        + (DEVICE + QUEUES * QUEUE + SLOT) * count(config.slots)
}

/// Raises this process's limit of open files to `count` if it is lower, as far as the hard limit allows, and returns
/// it.
pub fn raise_limit(count: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    let value = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let wanted = count.min(value(maximum));
    let limit = Rlimit { current: Some(wanted), maximum };
    if value(current) < wanted && setrlimit(Resource::Nofile, limit).is_ok() {
        return wanted;
    }
    value(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_and_each_queue_counts() {
        let plain = VmConfig::new("vmlinux");
        let with = |change: fn(&mut VmConfig)| {
            let mut config = plain.clone();
            change(&mut config);
            needed(&config) - needed(&plain)
        };
        let net = |config: &mut VmConfig| config.nets.push("tap=t,queues=16".parse().unwrap());
        assert_eq!(with(net), DEVICE + QUEUE + 16 * PAIR);
        assert_eq!(with(|config| config.cpus += 3), 3 * VCPU);
        let device = DEVICE + QUEUES * QUEUE;
        assert_eq!(with(|config| config.disks.push("d".parse().unwrap())), device);
        assert_eq!(with(|config| config.slots += 2), 2 * (device + SLOT));
        assert_eq!(with(|config| config.shares.push("s:t".parse().unwrap())), device);
        assert_eq!(with(|config| config.vhost_user.push("fs=s,tag=t".parse().unwrap())), device);
        assert_eq!(with(|config| config.pmem.push("p".parse().unwrap())), device);
    }

    #[test]
    fn a_limit_is_raised_and_never_lowered() {
        let before = raise_limit(0);
        assert_eq!(raise_limit(before), before);
        let raised = raise_limit(before.saturating_add(1));
        assert!(raised == before || raised == before + 1);
        assert_eq!(raise_limit(1), raised);
    }
}
