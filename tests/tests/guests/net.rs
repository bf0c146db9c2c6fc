//! Networks: packets between a guest and its host, by taps and bridges.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Boot, Guest, HostLink, Outcome, host};

/// The mean length of the packets between two counts.
fn mean_length(after: (u64, u64), before: (u64, u64)) -> u64 {
    (after.0 - before.0) / (after.1 - before.1).max(1)
}

/// A guest with one network device, which has its address when `script` runs.
fn guest(net: &str, address: &str, script: &str) -> Boot {
    let setup = format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up");
    Boot::new().flag("--net", net).script(&format!("{setup}\n{script}"))
}

fn finish(mut guest: Guest) -> Outcome {
    guest.close_input();
    guest.finish().expect_code(0)
}

/// Bytes of which no two parts are alike.
fn data(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// Sends `data` to who connects to `address`, takes what the next connection brings, and gives that.
fn send_and_receive(address: &str, data: Vec<u8>) -> JoinHandle<Vec<u8>> {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        listener.accept().unwrap().0.write_all(&data).unwrap();
        let mut back = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut back).unwrap();
        back
    })
}

#[test]
fn a_guest_and_its_host_reach_each_other() {
    let _tap = HostLink::tap("mvmping", "", "10.9.1.1");
    let script = "ping -c 3 10.9.1.1 | grep -o '3 packets received'
        echo mac=$(cat /sys/class/net/eth0/address) mtu=$(cat /sys/class/net/eth0/mtu)
        echo ready; read answer; echo answer=$answer";
    let mut guest = guest("tap=mvmping,mac=02:00:00:00:0b:0c,mtu=1400", "10.9.1.2", script).start();
    guest.wait_for("ready");
    host("busybox ping -c 3 10.9.1.2");
    guest.type_text("yes\n");
    finish(guest)
        .expect("3 packets received")
        .expect_line("mac=02:00:00:00:0b:0c mtu=1400")
        .expect_line("answer=yes");
}

#[test]
fn a_stream_arrives_whole_in_both_directions_and_in_packets_longer_than_a_frame() {
    let tap = HostLink::tap("mvmtcp", "", "10.9.2.1");
    let bytes = data(6 << 20);
    let transfer = send_and_receive("10.9.2.1:7000", bytes.clone());
    // `nc` itself sends 1,024 bytes at a time, which may well be a packet each.
    let script = "nc 10.9.2.1 7000 </dev/null >/tmp/file; echo received; read answer
        nc 10.9.2.1 7000 -e dd if=/tmp/file bs=64k status=none; read answer; echo done";
    let mut guest = guest("tap=mvmtcp", "10.9.2.2", script).start();
    guest.wait_for("received");
    // Without offloads no packet would be longer than the 1,514 bytes of a frame.
    let [to_guest, before] = ["tx", "rx"].map(|way| tap.counts(way));
    assert!(mean_length(to_guest, (0, 0)) > 1514, "segments are cut before the guest: {to_guest:?}");
    guest.type_text("yes\n");
    assert!(transfer.join().unwrap() == bytes, "the data has changed on its way");
    let from_guest = tap.counts("rx");
    guest.type_text("it has come\n");
    finish(guest).expect_line("done");
    assert!(mean_length(from_guest, before) > 1514, "the guest cuts segments: {before:?}, {from_guest:?}");
}

#[test]
fn a_limit_holds_in_each_direction() {
    let _tap = HostLink::tap("mvmlimit", "", "10.9.6.1");
    let bytes = data(2 << 20);
    let transfer = send_and_receive("10.9.6.1:7000", bytes.clone());
    let script = "echo begins; nc 10.9.6.1 7000 </dev/null >/tmp/file; echo received
        nc 10.9.6.1 7000 </tmp/file; echo done";
    let limits = "limit-rx=512K:64K,limit-tx=512K:64K";
    let mut guest = guest(&format!("tap=mvmlimit,{limits}"), "10.9.6.2", script).start();
    guest.close_input();
    // The burst passes at once, and so does a last packet, which is paid for later; and the guest's words may be seen
    // half a second late.
    let passes_at_once = (64 << 10) + (64 << 10) + (256 << 10);
    let least = Duration::from_secs_f64(f64::from((2 << 20) - passes_at_once) / f64::from(512 << 10));
    guest.wait_for("begins");
    for end in ["received", "done"] {
        let start = Instant::now();
        guest.wait_for(end);
        assert!(start.elapsed() >= least, "{end} after {:?}", start.elapsed());
    }
    guest.finish().expect_code(0);
    assert!(transfer.join().unwrap() == bytes, "the data has changed on its way");
}

#[test]
fn several_queues_carry_several_streams() {
    let tap = HostLink::tap("mvmqueues", "multi_queue", "10.9.3.1");
    let bytes = data(1 << 20);
    let transfers: Vec<_> =
        (7001..7005).map(|port| send_and_receive(&format!("10.9.3.1:{port}"), bytes.clone())).collect();
    let script = "echo queues=$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
        for p in 7001 7002 7003 7004; do
            (nc 10.9.3.1 $p </dev/null >/tmp/$p; nc 10.9.3.1 $p </tmp/$p) &
        done
        wait; grep -c virtio /proc/interrupts; echo done";
    let boot = guest("tap=mvmqueues,queues=2", "10.9.3.2", script).flag("--cpus", "2");
    let outcome = boot.run().expect_code(0).expect_line("done");
    assert_eq!(outcome.number("queues"), 2);
    for transfer in transfers {
        assert!(transfer.join().unwrap() == bytes, "the data has changed on its way");
    }
    drop(tap);
}

#[test]
fn a_bridge_has_a_port_as_long_as_the_vm_lasts() {
    let bridge = HostLink::bridge("mvmbridge", "10.9.4.1");
    let script = "ping -c 1 10.9.4.1 | grep -o '1 packets received'; echo ready; read answer";
    let boot = || guest("bridge=mvmbridge", "10.9.4.2", script);
    let mut guest = boot().start();
    guest.wait_for("ready");
    assert!(bridge.ports().starts_with("mvm"));
    // A serial port has no end of input.
    guest.type_text("yes\n");
    finish(guest).expect("1 packets received");
    assert_eq!(bridge.ports(), "");
    // Nor does it stay where mvm can't remove it.
    let mut guest = boot().start();
    guest.wait_for("ready");
    assert_ne!(bridge.ports(), "");
    guest.signal(Signal::KILL);
    guest.finish();
    assert_eq!(bridge.ports(), "");
}

#[test]
fn a_guest_outlives_its_tap_and_sees_that_the_link_is_down() {
    let tap = HostLink::tap("mvmgone", "", "10.9.5.1");
    let script = "echo before=$(cat /sys/class/net/eth0/carrier); echo ready; read answer
        while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do usleep 10000; done
        ping -c 1 -W 1 10.9.5.1 >/dev/null || echo unreachable
        echo after=$(cat /sys/class/net/eth0/carrier)";
    let mut guest = guest("tap=mvmgone", "10.9.5.2", script).start();
    guest.wait_for("ready");
    drop(tap);
    guest.type_text("yes\n");
    let outcome = finish(guest).expect_line("unreachable").expect("a network backend is gone");
    assert_eq!((outcome.number("before"), outcome.number("after")), (1, 0));
}
