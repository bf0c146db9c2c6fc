//! The device as a whole, with its threads.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

use super::*;
use crate::lock;
use crate::virtio::net::config::{NetLimits, NetSettings};
use crate::virtio::net::device::{Bounds, Net, NetError};
use crate::virtio::net::mac::MacAddress;
use crate::virtio::net::stream::Stream;
use crate::virtio::rate_limit::Limit;
use crate::virtio::{CallError, StopError, VirtioDevice};

fn settings() -> NetSettings {
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap();
    NetSettings { mac, mtu: Some(1400), limits: NetLimits::default() }
}

/// A device with so many pairs on one tap, and the other ends.
fn net(pairs: usize) -> (Net, Vec<UnixDatagram>, Vec<Ioctls>) {
    let (mut backends, mut wires, mut ioctls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (backend, wire, one) = tap();
        backends.push(backend);
        wires.push(wire);
        ioctls.push(one);
    }
    (Net::new(settings(), backends).unwrap(), wires, ioctls)
}

/// A device of one pair on a tap.
fn bounded(bounds: Bounds) -> (Net, UnixDatagram, Ioctls) {
    let (backend, wire, ioctls) = tap();
    (Net::with_bounds(settings(), vec![backend], bounds).unwrap(), wire, ioctls)
}

fn config(net: &Net) -> Vec<u8> {
    let mut space = vec![0xee; 16];
    net.read_config(0, &mut space);
    space
}

fn notify(driver: &Driver) {
    driver.notifier.write(1).unwrap();
}

const CONTROL: u64 = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR;

#[test]
fn the_config_space_has_what_a_driver_asks_for() {
    let (net, ..) = net(3);
    assert_eq!(config(&net), [2, 0, 0, 0, 0, 1, 1, 0, 3, 0, 0x78, 5, 0xee, 0xee, 0xee, 0xee]);
    let mut byte = [0];
    net.read_config(u64::MAX, &mut byte);
    assert_eq!(net.queue_sizes(), [256, 256, 256, 256, 256, 256, 16]);
    assert!(net.features() & (1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_MTU) != 0);
    assert!((0..7).all(|index| net.reads_notifier(index)));
}

#[test]
fn a_stream_offers_no_offloads() {
    let stream = || Backend::Stream(Stream::new(UnixStream::pair().unwrap().0).unwrap());
    let net = Net::new(NetSettings { mtu: None, ..settings() }, vec![stream()]).unwrap();
    let (mac, status, merge) = (1 << 5, 1 << 16, 1 << VIRTIO_NET_F_MRG_RXBUF);
    assert_eq!(net.features(), mac | status | merge | CONTROL);
    assert!(matches!(Net::new(settings(), vec![stream(), stream()]), Err(NetError::QueuesWithoutTap)));
    assert!(matches!(Net::new(settings(), Vec::new()), Err(NetError::Pairs(0))));
    assert!(matches!(Net::new(settings(), (0..17).map(|_| tap().0).collect()), Err(NetError::Pairs(17))));
}

#[test]
fn packets_go_both_ways_and_again_after_a_reset() {
    let (mut net, wires, ioctls) = net(1);
    for expected in [&["offloads 0x1"][..], &[]] {
        let mut drivers = Driver::several(&[16, 16, 16]);
        net.activate(Driver::activation_of(&drivers, CONTROL | 1 << VIRTIO_NET_F_GUEST_CSUM)).unwrap();
        // A driver that wants what the last one did changes nothing.
        assert_eq!(*lock(&ioctls[0]), expected);
        lock(&ioctls[0]).clear();
        let counters = drivers[0].counters.clone();

        wires[0].send(&packet(60)).unwrap();
        drivers[0].add(&[(FREE, 2000, WRITE)]);
        notify(&drivers[0]);
        counters.wait_until(|| drivers[0].used_count() == 1);
        assert_eq!(drivers[0].read(FREE, 72), received(60, 1));
        drivers[0].add(&[(FREE, 2000, WRITE)]);
        notify(&drivers[0]);
        wires[0].send(&packet(61)).unwrap();
        counters.wait_until(|| drivers[0].used_count() == 2);

        drivers[1].write(FREE, &packet(80));
        drivers[1].add(&[(FREE, 92, 0)]);
        notify(&drivers[1]);
        counters.wait_until(|| drivers[1].used_count() == 1);
        assert_eq!(take_all(&wires[0]), [packet(80)]);

        let mac = [1, 1, 2, 0, 0, 0, 0, 9];
        drivers[2].write(FREE, &mac);
        drivers[2].add(&[(FREE, 8, 0), (FREE + 8, 1, WRITE)]);
        notify(&drivers[2]);
        counters.wait_until(|| drivers[2].used_count() == 1);
        assert_eq!(config(&net)[..6], mac[2..]);

        net.reset().unwrap();
        assert_eq!(config(&net)[..6], settings().mac.bytes());
        // The device does not take these any more.
        drivers[1].add(&[(FREE, 92, 0)]);
        notify(&drivers[1]);
        assert_eq!(Arc::strong_count(&counters), 4, "something holds on to the queues");
        assert!(take_all(&wires[0]).is_empty());
    }
}

#[test]
fn a_driver_that_gives_few_buffers_gets_its_packets_after_a_while() {
    let (mut net, wires, _) = net(1);
    let mut drivers = Driver::several(&[16, 16, 16]);
    let long = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
    net.activate(Driver::activation_of(&drivers, 1 << VIRTIO_NET_F_MRG_RXBUF | long)).unwrap();
    let counters = drivers[0].counters.clone();
    for at in [FREE, FREE + 0x1000] {
        drivers[0].add(&[(at, 1536, WRITE)]);
    }
    notify(&drivers[0]);
    for (count, at) in [(1, FREE), (2, FREE + 0x1000)] {
        wires[0].send(&packet(60)).unwrap();
        counters.wait_until(|| drivers[0].used_count() == count);
        assert_eq!(drivers[0].read(at, 72), received(60, 1));
    }
}

#[test]
fn a_driver_of_several_pairs_has_its_control_queue_behind_them() {
    let (mut net, wires, ioctls) = net(2);
    let mut drivers = Driver::several(&[16, 16, 16, 16, 16]);
    net.activate(Driver::activation_of(&drivers, CONTROL | 1 << VIRTIO_NET_F_MQ)).unwrap();
    assert_eq!(*lock(&ioctls[1]), ["attached false"]);
    let counters = drivers[0].counters.clone();
    drivers[4].write(FREE, &[4, 0, 2, 0, 0xee]);
    drivers[4].add(&[(FREE, 4, 0), (FREE + 4, 1, WRITE)]);
    notify(&drivers[4]);
    counters.wait_until(|| drivers[4].used_count() == 1);
    assert_eq!(drivers[4].read(FREE + 4, 1), [0]);
    assert_eq!(*lock(&ioctls[1]), ["attached false", "attached true"]);
    for pair in 0..2 {
        drivers[2 * pair].add(&[(FREE + 0x1000, 2000, WRITE)]);
        notify(&drivers[2 * pair]);
        wires[pair].send(&packet(70 + pair)).unwrap();
        counters.wait_until(|| drivers[2 * pair].used_count() == 1);
        drivers[2 * pair + 1].write(FREE, &packet(80 + pair));
        drivers[2 * pair + 1].add(&[(FREE, 92 + u32::try_from(pair).unwrap(), 0)]);
        notify(&drivers[2 * pair + 1]);
        counters.wait_until(|| drivers[2 * pair + 1].used_count() == 1);
        assert_eq!(take_all(&wires[pair]), [packet(80 + pair)]);
    }
    assert_eq!(net.state().pairs, 2);
}

#[test]
fn a_driver_of_one_pair_has_its_control_queue_behind_the_first() {
    let (mut net, ..) = net(2);
    let mut drivers = Driver::several(&[16, 16, 16, 16, 16]);
    net.activate(Driver::activation_of(&drivers, CONTROL)).unwrap();
    let mac = [1, 1, 2, 0, 0, 0, 0, 9, 0xee];
    drivers[2].write(FREE, &mac);
    drivers[2].add(&[(FREE, 8, 0), (FREE + 8, 1, WRITE)]);
    notify(&drivers[2]);
    drivers[0].counters.wait_until(|| drivers[2].used_count() == 1);
    assert_eq!(drivers[2].read(FREE + 8, 1), [0]);
}

#[test]
fn when_the_other_side_ends_the_link_goes_down_and_the_queues_go_on() {
    let (near, far) = UnixStream::pair().unwrap();
    let backend = Backend::Stream(Stream::new(near).unwrap());
    let mut net = Net::new(settings(), vec![backend]).unwrap();
    let mut drivers = Driver::several(&[16, 16, 16]);
    net.activate(Driver::activation_of(&drivers, CONTROL)).unwrap();
    assert_eq!(config(&net)[6], 1);
    let counters = drivers[0].counters.clone();
    drop(far);
    counters.wait_until(|| counters.config_changed.load(std::sync::atomic::Ordering::SeqCst) == 1);
    assert_eq!(config(&net)[6], 0);
    // What the guest goes on to send is lost, but not kept.
    for count in 1..=3 {
        drivers[1].add(&[(FREE, 92, 0)]);
        notify(&drivers[1]);
        counters.wait_until(|| drivers[1].used_count() == count);
    }
    // So it is for the next driver.
    net.reset().unwrap();
    net.activate(Driver::activation_of(&Driver::several(&[16, 16, 16]), CONTROL)).unwrap();
    assert_eq!(config(&net)[6], 0);
}

#[test]
fn without_its_queues_the_device_does_not_start() {
    for missing in [0, 1] {
        let (mut net, ..) = net(2);
        let drivers = Driver::several(&[16, 16, 16, 16, 16]);
        let mut activation = Driver::activation_of(&drivers, CONTROL | 1 << VIRTIO_NET_F_MQ);
        activation.queues[missing] = None;
        assert!(net.activate(activation).is_err());
    }
    // A driver may leave out the second pair, and the control queue.
    let (mut net, ..) = net(2);
    let drivers = Driver::several(&[16, 16, 16, 16, 16]);
    let mut activation = Driver::activation_of(&drivers, CONTROL | 1 << VIRTIO_NET_F_MQ);
    activation.queues[2..].fill_with(|| None);
    net.activate(activation).unwrap();
}

/// Offloads in turn, so that each driver wants something else than the one before.
const OFFLOADS: [u64; 2] = [1 << VIRTIO_NET_F_GUEST_CSUM, 0];

#[test]
fn resets_that_change_nothing_cause_no_ioctl_and_others_are_limited() {
    let (mut net, _wire, ioctls) = bounded(Bounds::default());
    let drivers = Driver::several(&[16, 16, 16]);
    for _ in 0..200 {
        net.activate(Driver::activation_of(&drivers, CONTROL | OFFLOADS[0])).unwrap();
        net.reset().unwrap();
    }
    assert_eq!(lock(&ioctls).len(), 1);

    const BURST: u64 = 4;
    let limit = Limit { per_second: 1.try_into().unwrap(), burst: BURST.try_into().unwrap() };
    let (mut net, _wire, ioctls) = bounded(Bounds { ioctls: limit, ..Bounds::default() });
    let start = Instant::now();
    for offloads in OFFLOADS.into_iter().cycle().take(200) {
        net.activate(Driver::activation_of(&drivers, CONTROL | offloads)).unwrap();
        net.reset().unwrap();
    }
    let most = BURST + start.elapsed().as_secs() + 1;
    assert!((BURST..=most).contains(&(lock(&ioctls).len() as u64)), "{:?}", lock(&ioctls));
}

#[test]
fn nothing_is_received_until_the_tap_is_set_up_for_the_driver() {
    let limit = Limit { per_second: 20.try_into().unwrap(), burst: 1.try_into().unwrap() };
    let (mut net, wire, ioctls) = bounded(Bounds { ioctls: limit, ..Bounds::default() });
    let mut drivers = Driver::several(&[16, 16, 16]);
    net.activate(Driver::activation_of(&drivers, CONTROL | OFFLOADS[0])).unwrap();
    net.reset().unwrap();
    wire.send(&packet(60)).unwrap();
    drivers[0].add(&[(FREE, 2000, WRITE)]);
    // Commands wait as well: they may change the tap, too.
    drivers[2].write(FREE + 0x1000, &[1, 1, 2, 0, 0, 0, 0, 9, 0xee]);
    drivers[2].add(&[(FREE + 0x1000, 8, 0), (FREE + 0x1008, 1, WRITE)]);
    let counters = drivers[0].counters.clone();
    net.activate(Driver::activation_of(&drivers, CONTROL | OFFLOADS[1])).unwrap();
    counters.wait_until(|| drivers[0].used_count() == 1 && drivers[2].used_count() == 1);
    assert_eq!(*lock(&ioctls), ["offloads 0x1", "offloads 0x0"]);
    // Without checksums, the flags are cleared.
    assert_eq!(drivers[0].read(FREE + 1, 71), received(60, 1)[1..]);
    assert_eq!(drivers[2].read(FREE + 0x1008, 1), [0]);
}

#[test]
fn a_thread_that_hangs_in_the_host_is_given_up_in_time_and_stops_later() {
    const DEADLINE: Duration = Duration::from_millis(50);
    let (mut net, _wire, ioctls) = bounded(Bounds { deadline: DEADLINE, ..Bounds::default() });
    let mut drivers = Driver::several(&[16, 16, 16]);
    net.activate(Driver::activation_of(&drivers, CONTROL | OFFLOADS[0])).unwrap();
    let counters = drivers[0].counters.clone();
    net.reset().unwrap();
    let hanging = lock(&ioctls);
    let late = net.activate(Driver::activation_of(&drivers, CONTROL));
    assert!(late.is_err(), "the thread is in an ioctl");
    let start = Instant::now();
    assert!(matches!(net.reset(), Err(StopError::Thread(CallError::NotTaken(_)))));
    assert!(net.suspend().is_err());
    assert!((2 * DEADLINE..Duration::from_secs(5)).contains(&start.elapsed()));
    drop(hanging);
    // The host has answered: the thread goes on, and can be stopped.
    while net.reset().is_err() {}
    assert_eq!(Arc::strong_count(&counters), 4, "something holds on to the queues");
    net.activate(Driver::activation_of(&drivers, CONTROL)).unwrap();
    drivers[1].write(FREE, &packet(80));
    drivers[1].add(&[(FREE, 92, 0)]);
    notify(&drivers[1]);
    counters.wait_until(|| drivers[1].used_count() == 1);
}
