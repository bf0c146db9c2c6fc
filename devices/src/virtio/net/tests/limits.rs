//! Rate limits. What waits here is never waited for by a clock of the test: the limit's own timer says when.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MQ;

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::net::config::{NetLimits, NetSettings};
use crate::virtio::net::device::Net;
use crate::virtio::net::mac::MacAddress;
use crate::virtio::rate_limit::Limit;
use crate::virtio::testing::wait_readable;

fn limit(per_second: u64, burst: u64) -> Option<Limit> {
    Some(Limit { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
}

/// One packet of 100 bytes at once, and then one every 250 ms, by either limit.
fn slow() -> [RateLimits; 2] {
    let (bandwidth, operations) = (limit(400, 100), limit(4, 1));
    [RateLimits { bandwidth, operations: None }, RateLimits { bandwidth: None, operations }]
}

#[test]
fn packets_of_the_guest_stay_in_the_queue_until_the_limit_lets_them_pass() {
    for limits in slow() {
        let (backend, wire, _) = tap();
        let mut rig = Rig::limited(backend, mergeable_mode(true, SHORT), limits);
        rig.tx.write(FREE, &packet(100));
        for _ in 0..2 {
            rig.tx.add(&[(FREE, 112, 0)]);
        }
        assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
        assert_eq!((take_all(&wire).len(), rig.tx.take_used().len()), (1, 1));
        assert_eq!(rig.metrics.tx_rate_limit_waits.get(), 1);
        assert!(rig.transmit.limiter().is_waiting());
        wait_readable(rig.transmit.limiter().timer().unwrap());
        rig.transmit.limiter().timer_expired();
        assert!(!rig.transmit.turn(&mut rig.backend).unwrap());
        assert_eq!((take_all(&wire).len(), rig.tx.take_used().len()), (1, 1));
        // Nothing is left that would have to wait.
        assert!(!rig.transmit.limiter().is_waiting());
        assert_eq!(rig.metrics.tx_rate_limit_waits.get(), 1);
    }
}

#[test]
fn packets_for_the_guest_stay_with_the_backend_until_the_limit_lets_them_pass() {
    for limits in slow() {
        let (backend, wire, _) = tap();
        let mut rig = Rig::limited(backend, mergeable_mode(true, SHORT), limits);
        for index in 0..4 {
            rig.rx.add(&[(FREE + index * 0x1000, 2000, WRITE)]);
        }
        for _ in 0..2 {
            wire.send(&packet(100)).unwrap();
        }
        assert_eq!(rig.receive(true).unwrap(), Wait::Limit);
        assert_eq!(rig.rx.take_used().len(), 1);
        wait_readable(rig.receive.limiter().timer().unwrap());
        rig.receive.limiter().timer_expired();
        assert_eq!(rig.receive(true).unwrap(), Wait::Limit);
        assert_eq!(rig.rx.take_used().len(), 1);
        assert_eq!(rig.metrics.rx_rate_limit_waits.get(), 2);
    }
}

/// A device of two pairs that lets one packet pass at once and then one every 50 ms, in each direction.
fn limited_net() -> (Net, Vec<UnixDatagram>) {
    let (backends, wires) = (0..2).map(|_| tap()).map(|(backend, wire, _)| (backend, wire)).unzip();
    let limits = RateLimits { bandwidth: None, operations: limit(20, 1) };
    let limits = NetLimits { receive: limits, transmit: limits };
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
    (Net::new(NetSettings { mac, mtu: None, limits }, backends).unwrap(), wires)
}

#[test]
fn a_limit_is_for_all_queues_together_and_a_reset_fills_no_bucket() {
    let (mut net, wires) = limited_net();
    let start = Instant::now();
    for round in 1..=2 {
        let mut drivers = Driver::several(&[16, 16, 16, 16, 16]);
        net.activate(Driver::activation_of(&drivers, 1 << VIRTIO_NET_F_MQ)).unwrap();
        let counters = drivers[0].counters.clone();
        for pair in 0..2 {
            for _ in 0..2 {
                drivers[2 * pair].add(&[(FREE + 0x1000, 2000, WRITE)]);
                wires[pair].send(&packet(60)).unwrap();
                drivers[2 * pair + 1].add(&[(FREE, 72, 0)]);
                drivers[2 * pair + 1].notifier.write(1).unwrap();
            }
            drivers[2 * pair].notifier.write(1).unwrap();
        }
        counters.wait_until(|| drivers.iter().map(Driver::used_count).sum::<u16>() == 8);
        // Of four packets each way in a round, all wait for 50 ms but the very first.
        assert!(start.elapsed() >= Duration::from_millis(50 * (4 * round - 1)), "round {round}");
        net.reset().unwrap();
    }
}

#[test]
fn notifications_do_not_wake_a_queue_that_waits_for_the_limit() {
    let (mut net, _wires) = limited_net();
    let mut drivers = Driver::several(&[16, 16, 16, 16, 16]);
    net.activate(Driver::activation_of(&drivers, 0)).unwrap();
    for _ in 0..3 {
        drivers[1].add(&[(FREE, 72, 0)]);
    }
    while drivers[1].used_count() < 3 {
        drivers[1].notifier.write(1).unwrap();
        std::thread::yield_now();
    }
    let mut waits = 0;
    net.metrics().visit(&mut |name, count| waits += if name == "tx_rate_limit_waits" { count } else { 0 });
    // No more than two packets had to wait, and they were not looked at while they did.
    assert!(waits <= 2, "{waits}");
}
