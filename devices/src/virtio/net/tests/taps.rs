//! Taps of the host's kernel, in a network namespace of their own.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{UnshareFlags, unshare_unsafe};
use virtio_bindings::virtio_net::VIRTIO_NET_F_CTRL_VQ;

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::net::config::{NetLimits, NetSettings};
use crate::virtio::net::device::Net;
use crate::virtio::net::interface::{Interface, InterfaceName};
use crate::virtio::net::mac::MacAddress;
use crate::virtio::net::tap::TapError;

/// Gives this test's thread an empty network; false, with the reason printed, where only root may.
fn enter_empty_network() -> bool {
    // SAFETY: no descriptor is unshared.
    let entered =
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_ok() && std::fs::exists("/dev/net/tun").unwrap();
    if !entered {
        eprintln!("skipped: a network namespace with taps needs root and the tun driver");
    }
    entered
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn name(text: &str) -> InterfaceName {
    text.parse().unwrap()
}

fn interface(text: &str) -> Interface {
    Interface::find(&name(text)).unwrap().unwrap()
}

#[test]
fn each_wrong_tap_has_its_error() {
    if !enter_empty_network() {
        return;
    }
    ip("tuntap add single mode tap");
    ip("tuntap add many mode tap multi_queue");
    ip("tuntap add tunnel mode tun");
    let open = |text: &str, queues| Tap::open(&name(text), queues).map(|taps| taps.len());
    assert!(matches!(open("none", 1), Err(TapError::Missing(_))));
    assert!(Interface::find(&name("none")).unwrap().is_none(), "it was made");
    assert!(matches!(open("lo", 1), Err(TapError::NotATap(_))));
    assert!(matches!(open("lo", 2), Err(TapError::NotATap(_))));
    assert!(matches!(open("tunnel", 1), Err(TapError::NotATap(_))));
    let result = open("single", 2);
    assert!(matches!(result, Err(TapError::OneQueue(_))), "{result:?}");
    assert_eq!(open("single", 1).unwrap(), 1);
    assert_eq!(open("many", 1).unwrap(), 1);
    assert_eq!(open("many", 4).unwrap(), 4);
    let held = Tap::open(&name("single"), 1).unwrap();
    assert!(matches!(open("single", 1), Err(TapError::Busy(_))));
    let result = open("single", 2);
    assert!(matches!(result, Err(TapError::OneQueue(_))), "{result:?}");
    drop(held);
    assert_eq!(open("single", 1).unwrap(), 1);
}

#[test]
fn a_tap_that_was_made_goes_with_its_last_queue_and_can_be_a_port() {
    if !enter_empty_network() {
        return;
    }
    ip("link add bridge mtu 9000 type bridge");
    let (name, taps) = Tap::make(3).unwrap();
    let (other, _) = Tap::make(1).unwrap();
    assert_eq!((taps.len(), name.as_str()), (3, "mvm0"));
    assert_ne!(name, other);
    let (bridge, port) = (interface("bridge"), interface("mvm0"));
    port.set_mtu(9000).unwrap();
    assert_eq!(port.mtu().unwrap(), 9000);
    bridge.add_port(&port).unwrap();
    assert!(
        std::process::Command::new("ip")
            .args(["link", "show", "master", "bridge"])
            .output()
            .unwrap()
            .stdout
            .len()
            > 10
    );
    assert!(!port.is_up().unwrap());
    port.bring_up().unwrap();
    assert!(port.is_up().unwrap());
    assert_eq!(port.add_port(&bridge).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    drop(taps);
    // Other tests start programs, which for a moment hold all that this process does.
    let limit = Instant::now() + Duration::from_secs(10);
    while Interface::find(&name).unwrap().is_some() {
        assert!(Instant::now() < limit, "the tap stays");
        std::thread::yield_now();
    }
}

#[test]
fn queues_are_attached_and_detached_and_offloads_are_the_interfaces() {
    if !enter_empty_network() {
        return;
    }
    let (_, taps) = Tap::make(2).unwrap();
    taps[0].set_offloads(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_UFO).unwrap();
    taps[1].set_attached(false).unwrap();
    assert!(taps[1].set_attached(false).is_err());
    taps[1].set_attached(true).unwrap();
    taps[0].set_offloads(0).unwrap();
}

/// What the driver sends arrives at the host, and the other way round; then the tap is taken away.
#[test]
fn frames_go_through_the_kernel() {
    if !enter_empty_network() {
        return;
    }
    ip("tuntap add tap mode tap");
    ip("addr add 10.9.0.1/24 dev tap");
    let taps = Tap::open(&name("tap"), 1).unwrap();
    // In this order the kernel has a queue for what it sends as soon as the interface is up.
    ip("link set tap up");
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
    let settings = NetSettings { mac, mtu: None, limits: NetLimits::default() };
    let mut net = Net::new(settings, taps.into_iter().map(Backend::Tap).collect()).unwrap();
    let mut drivers = Driver::several(&[16, 16, 16]);
    net.activate(Driver::activation_of(&drivers, 1 << VIRTIO_NET_F_CTRL_VQ)).unwrap();
    let counters = drivers[0].counters.clone();
    for index in 0..16 {
        drivers[0].add(&[(FREE + 0x1_0000 + 0x1000 * index, 2000, WRITE)]);
    }
    drivers[0].notifier.write(1).unwrap();

    // Who has 10.9.0.1?
    let guest = [2, 0, 0, 0, 0, 1];
    let mut frame = [&[0; HEADER][..], &[0xff; 6], &guest, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &guest].concat();
    frame.extend([10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
    frame.resize(HEADER + 60, 0);
    drivers[1].write(FREE, &frame);
    drivers[1].add(&[(FREE, u32::try_from(frame.len()).unwrap(), 0)]);
    drivers[1].notifier.write(1).unwrap();
    let mut answer = None;
    counters.wait_until(|| {
        for (head, length) in drivers[0].take_used() {
            let bytes = drivers[0].read(FREE + 0x1_0000 + 0x1000 * u64::from(head), length as usize);
            // An ARP reply; the kernel sends more than that of itself.
            if bytes.get(HEADER + 12..HEADER + 22) == Some(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]) {
                answer = Some(bytes);
            }
        }
        answer.is_some()
    });
    let answer = answer.unwrap();
    assert_eq!(answer[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(answer[HEADER..HEADER + 6], guest);
    assert_eq!(answer[HEADER + 28..HEADER + 32], [10, 9, 0, 1]);

    assert!(net.link_is_up());
    ip("link del tap");
    counters.wait_until(|| !net.link_is_up());
}
